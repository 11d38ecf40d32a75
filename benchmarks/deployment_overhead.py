"""Seconds that a round takes on each engine, and in a plain Flower app.

The same small run, handwritten digits at two sites, whose training is over in no time: what is
left is what the engine costs. On this machine, one after the other, `--times` times:

- in this process,
- in Flower's simulation,
- in a deployment of SuperLink, proxy and two SuperNodes with TLS and registered keys, started as
  the compose files start it,
- in another one, whose SuperExecs look for work as seldom as Flower's default is; there also the
  plain Flower app of `benchmarks/plain-flower`: FedAvg in Flower's own loop, with evaluation at the
  sites, as Flower's quickstarts have it, and without.

    uv run python benchmarks/deployment_overhead.py

A round's time is that from one round's end to the next one's; the first round is not counted.
The load of the machine is written down beside it, since processes that start share its cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from ahfal_app.deployment.certificates import write_certificates
from ahfal_app.engine.flower import run_on_flower
from ahfal_app.engine.local import run_in_process
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.reading import read_metrics

_ROOT = Path(__file__).parent.parent
_RESULTS = Path(__file__).parent / "results"

sys.path.insert(0, str(_ROOT / "tests"))

from support.deployment import Deployment, deployment  # noqa: E402

_SITES = ("site-1", "site-2")
_PLAIN = "benchmarks/plain-flower"
_LOOK_S = 0.01
_END_TIMEOUT_S = 3600.0

_POLL_VARIABLE = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
_POLL_DEFAULT_S = "1.0"

#: One cycle, of as many rounds as the command line says; each site has 72 labels.
_SETTINGS: dict[str, object] = {
    "dataset": "digits",
    "num-clients": len(_SITES),
    "partition": "iid",
    "model": "small-cnn",
    "strategy": "random",
    "local-epochs": 1,
    "initial-fraction": 0.1,
    "cycles": 1,
    "start-timeout": 900.0,
    "round-timeout": 900.0,
}

#: Returns the time of each round's end.
Way = Callable[[Path], list[float]]


@dataclass
class Bench:
    """Server and sites, and the same rounds in several ways."""

    running: Deployment
    rounds: int
    data_dir: Path

    def in_process(self, folder: Path) -> list[float]:
        """Run in this process."""
        with _watched(folder) as times:
            run_in_process(self._settings(folder), Console(file=io.StringIO()))
        return times

    def simulation(self, folder: Path) -> list[float]:
        """Run in Flower's simulation."""
        with _watched(folder) as times:
            run_on_flower(self._settings(folder), Console(file=io.StringIO()))
        return times

    def deployed(self, folder: Path) -> list[float]:
        """Run at the sites."""
        with _watched(folder) as times:
            self._run(".", folder, self._settings(folder))
        return times

    def plain(self, folder: Path) -> list[float]:
        """Run the plain app at the sites."""
        return self._plain(folder, 1.0)

    def plain_training(self, folder: Path) -> list[float]:
        """Run the plain app at the sites, with a single exchange a round."""
        return self._plain(folder, 0.0)

    def _plain(self, folder: Path, fraction_evaluate: float) -> list[float]:
        file = folder / "times"
        settings: dict[str, object] = {
            "num-server-rounds": self.rounds,
            "fraction-evaluate": fraction_evaluate,
            "times-file": str(file),
        }
        self._run(_PLAIN, folder, settings)
        return [float(line) for line in file.read_text().split()][1:]  # Without the start.

    def _run(self, app: str, folder: Path, settings: dict[str, object]) -> None:
        config = folder / "run.toml"
        config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
        arguments = ("deployment", "--run-config", str(config), "--format", "json")
        printed = self.running.flwr("run", app, *arguments)
        run = str(json.loads(printed[printed.index("{") :])["run-id"])
        status = self.running.wait_for_end(run, _END_TIMEOUT_S)
        assert status == "finished:completed", f"{status}\n{self.running.logs()}"

    def _settings(self, folder: Path) -> dict[str, object]:
        own = {"output-dir": str(folder / "runs"), "data-dir": str(self.data_dir)}
        return {**_SETTINGS, "rounds": self.rounds, **own}


@dataclass
class _Watch:
    """Notes when the number of rounds in a run's records grows."""

    folder: Path
    times: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        size = 0
        while not self._stop.wait(_LOOK_S):
            for path in self.folder.glob("runs/*/metrics.jsonl"):
                if path.stat().st_size != size:
                    size = path.stat().st_size
                    rounds = len(read_metrics(path.parent).rounds)
                    self.times += [time.time()] * (rounds - len(self.times))

    def end(self) -> None:
        self._stop.set()


@contextmanager
def _watched(folder: Path) -> Iterator[list[float]]:
    """Give the times at which the rounds of a run below a folder are over."""
    watch = _Watch(folder)
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch.times
    finally:
        watch.end()
        thread.join()


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    result: dict[str, Any] = {
        "benchmark": "deployment_overhead",
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
        "settings": {**_SETTINGS, "rounds": arguments.rounds},
        "runs": [],
    }
    for _ in range(arguments.times):
        for polls_as_flower in (False, True):
            with tempfile.TemporaryDirectory(prefix="ahfal-overhead-") as name:
                os.environ["AHFAL_TEST"] = name
                for measured in _measured(Path(name), arguments.rounds, polls_as_flower):
                    result["runs"].append(measured)
                    _write(result, arguments.output)
                    print(json.dumps(measured), flush=True)
    print(json.dumps(result["seconds_per_round"], indent=2))


def _measured(work: Path, rounds: int, polls_as_flower: bool) -> Iterator[dict[str, Any]]:
    """Yield what each way takes."""
    write_certificates(work / "certificates", [], _SITES)
    with deployment(work, work / "certificates") as running:
        bench = Bench(running, rounds, work / "cache")
        if polls_as_flower:
            default = {_POLL_VARIABLE: _POLL_DEFAULT_S}
            running.environments = {f"{site}-superexec": default for site in _SITES}
        else:
            # Before there are processes of the deployment, which poll.
            yield _measure("in-process", bench.in_process, work)
            yield _measure("simulation", bench.simulation, work)
        _start(running)
        if polls_as_flower:
            yield _measure("deployment, Flower's polling", bench.deployed, work)
            yield _measure("plain Flower app, training only", bench.plain_training, work)
            yield _measure("plain Flower app", bench.plain, work)
        else:
            yield _measure("deployment", bench.deployed, work)


def _start(running: Deployment) -> None:
    running.start_server()
    for number, site in enumerate(_SITES):
        key = running.certificates / "server" / "sites" / f"{site}.pub"
        printed = running.flwr("supernode", "register", str(key), "deployment")
        assert "registered" in printed, printed
        state = running.folder / "labels" / site
        place = f"partition-id={number} num-partitions={len(_SITES)}"
        running.start_site(site, f'{place} state-dir="{state}"')


def _measure(name: str, way: Way, work: Path) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(dir=work))
    load_before = os.getloadavg()[0]
    times = way(folder)
    return {
        "way": name,
        "seconds": [round(after - before, 3) for before, after in pairwise(times)],
        "load_average": [load_before, os.getloadavg()[0]],
    }


def _write(result: dict[str, Any], output: Path) -> None:
    names = dict.fromkeys(run["way"] for run in result["runs"])
    medians = {
        name: median(s for run in result["runs"] if run["way"] == name for s in run["seconds"])
        for name in names
    }
    result["seconds_per_round"] = medians
    if ours := medians.get("deployment"):
        result["ratio_to_deployment"] = {name: value / ours for name, value in medians.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="of each run")
    parser.add_argument("--times", type=int, default=1, help="how often each way is measured")
    parser.add_argument("--output", type=Path, default=_RESULTS / "deployment_overhead.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
