"""Faults on real processes, again and again: whether labels are lost or bought twice.

Each run starts a server and its sites as the compose files do, on this machine, lets one of the
faults of `tests/support/fault_registry.py` happen at a random moment, and counts what people have
answered against what the sites' label stores hold.

    uv run python benchmarks/faults.py --times 5

The runs of one fault follow each other at the same server and sites. Each is a line in the file of
lines as soon as it is over; runs that are there already are not repeated. The last step makes
`results/faults.json` of them, and prints the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ahfal_app.results.environment import describe_environment

_ROOT = Path(__file__).parent.parent
_RESULTS = Path(__file__).parent / "results"
_KILLS = 200
_MOST_CHARACTERS = 24_000
_SOUND = "sound"
_COUNTS = ("answered", "lost", "waiting", "bought_twice")

sys.path.insert(0, str(_ROOT / "tests"))

from support.fault_registry import FAULTS  # noqa: E402
from support.faults import COMPLETED, no_fault  # noqa: E402
from support.hospitals import SETTINGS, trial  # noqa: E402
from support.killed_buyer import kill_buyer  # noqa: E402


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    arguments.lines.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, max_tasks_per_child=1) as pool:
        repeated = [
            pool.submit(_repeat, name, arguments.times, arguments.lines)
            for name in arguments.faults
            if not FAULTS[name].missing
        ]
        for each in as_completed(repeated):
            each.result()
    if arguments.kills and not _drawn(arguments.lines, "store_writer_killed"):
        _append(arguments.lines, _kill_writer(arguments.kills))
    runs = _read(arguments.lines)
    _write(runs, arguments.output)
    print(_table(runs))


def _repeat(name: str, times: int, lines: Path) -> None:
    """Let one fault happen until it has happened so often."""
    while left := sorted(set(range(times)) - _drawn(lines, name)):
        with tempfile.TemporaryDirectory(prefix="ahfal-fault-") as folder:
            os.environ["AHFAL_TEST"] = folder
            _strike(name, left, Path(folder), lines)


def _strike(name: str, draws: list[int], folder: Path, lines: Path) -> None:
    """Let one fault happen in one run after the other, at the same server and sites.

    The first run that goes wrong is the last one; what went wrong is a result, too.
    """
    fault = FAULTS[name]
    with trial(folder, folder / "cache", fault.sites) as running:
        fault.prepare(running)
        for draw in draws:
            start = time.monotonic()
            line: dict[str, Any] = {"fault": name, "draw": draw, "sites": fault.sites}
            line |= {"injected": int(name != no_fault.__name__), **dict.fromkeys(_COUNTS)}
            try:
                line["outcome"] = fault.strike(running, random.Random(f"{name} {draw}"))
                line |= asdict(running.account())
            # Whatever it is belongs into the line: the others go on with processes of their own.
            except Exception:  # noqa: BLE001
                line["outcome"] = traceback.format_exc(chain=False)[-_MOST_CHARACTERS:]
            # Where this run's files were is different each time.
            line["failures_on_the_way"] = [
                reason.replace(f"{folder}/", "") for reason in running.reasons()
            ]
            line["seconds"] = round(time.monotonic() - start, 1)
            _append(lines, line)
            if line["answered"] is None:
                break
            running.forget()


def _append(lines: Path, line: dict[str, Any]) -> None:
    text = json.dumps(line) + "\n"
    with lines.open("ab", buffering=0) as file:
        file.write(text.encode())
    print(text, end="", flush=True)


def _drawn(lines: Path, name: str) -> set[int]:
    return {run["draw"] for run in _read(lines) if run["fault"] == name}


def _kill_writer(kills: int) -> dict[str, Any]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ahfal-fault-") as folder:
        counts = kill_buyer(Path(folder), kills)
    return {
        "fault": "store_writer_killed",
        "draw": 0,
        **asdict(counts),
        "outcome": _SOUND,
        "seconds": round(time.monotonic() - start, 1),
    }


def _read(lines: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def _write(runs: list[dict[str, Any]], output: Path) -> None:
    environment = describe_environment(
        class_names=[], data_fingerprint="", partition_fingerprint=None
    )
    result = {"benchmark": "faults", "environment": environment, "settings": SETTINGS, "runs": runs}
    output.write_text(json.dumps(result, indent=2) + "\n")


def _table(runs: list[dict[str, Any]]) -> str:
    """Return the runs as Markdown, a row a fault."""
    rows = [
        "| fault | injected | answers | lost | bought twice | completed | of these, resumed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(run["fault"] for run in runs):
        own = [run for run in runs if run["fault"] == name]
        completed = sum(run["outcome"].endswith((COMPLETED, _SOUND)) for run in own)
        resumed = sum(run["outcome"].startswith("resumed") for run in own)
        cells = [name.replace("_", " ")]
        cells += [_sum(own, key) for key in ("injected", "answered", "lost", "bought_twice")]
        cells += [f"{completed} of {len(own)}", str(resumed)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _sum(runs: Iterable[dict[str, Any]], key: str) -> str:
    values = [run[key] for run in runs]
    # A run that could not be counted must not look like one without a loss.
    return "not known" if None in values else f"{sum(values):,}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="how often each fault happens")
    parser.add_argument(
        "--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS), metavar="FAULT"
    )
    parser.add_argument("--jobs", type=int, default=1, help="deployments beside each other")
    parser.add_argument("--kills", type=int, default=_KILLS, help="of the store's writer")
    parser.add_argument("--lines", type=Path, default=_RESULTS / "faults.jsonl")
    parser.add_argument("--output", type=Path, default=_RESULTS / "faults.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
