"""Logistic regression on MNIST: whole runs from command to result, beside Flower's simulation.

The setting of FLUTE's own comparison with Flower: 1,000 clients, 10 of them in a round, 100 rounds
of one epoch in batches of 10, SGD at 0.03 without momentum, FedAvg. MNIST is split IID; both sides
have the same split and the same first weights, and test the model that they end with. Ours is
`ahfal run`, with its checkpoints, records and report, whose last round trains all 1,000
clients. Flower's is an app in the shape of its quickstarts (`quickstart/`), in a process of its
own with Ray on all cores, once without evaluation at the clients and, for few rounds, with that of
the quickstart, half of the clients in each round.

    benchmarks/peers/make_environment.sh ../peers-environment
    uv run python benchmarks/peers/lr_mnist.py --peers ../peers-environment --data MNIST

They take turns, a whole run each, and find nothing decoded: the folders for that are new each time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from turns import summary

from ahfal_app.config import parse_settings
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.reading import read_run
from ahfal_app.storage.files import write_json
from ahfal_app.training.resources import resources

_HERE = Path(__file__).parent
_CLIENTS, _AT_ONCE, _BATCH, _RATE = 1000, 10, 10, 0.03
_NAME = "lr-mnist"
_OURS, _THEIRS, _QUICKSTART = "ours", "flower", "flower, clients evaluate"

#: Share of the clients that evaluate in each round of Flower's quickstart.
_EVALUATE = 0.5


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(arguments, Path(folder))
        result: dict[str, Any] = {
            "benchmark": "peers/lr_mnist",
            "environment": _exported(settings, Path(folder) / "told.npz"),
            "peers": _versions(arguments.peers),
            "settings": {key: value for key, value in settings.items() if "dir" not in key},
            "rounds_with_evaluation": arguments.rounds_with_evaluation,
            "runs": {},
        }
        for turn in range(arguments.times):
            for name in (_OURS, _THEIRS):
                _take(result, name, arguments, Path(folder) / f"{turn}-{name}", arguments.rounds)
            write_json(arguments.output, _judged(result))
        if arguments.rounds_with_evaluation:
            place = Path(folder) / "evaluated"
            _take(result, _QUICKSTART, arguments, place, arguments.rounds_with_evaluation)
            write_json(arguments.output, _judged(result))
    print(json.dumps(result["ratio"], indent=2))


def _take(
    result: dict[str, Any], name: str, arguments: argparse.Namespace, folder: Path, rounds: int
) -> None:
    """Have one side run, in a new folder, and note what came of it."""
    folder.mkdir()
    load = os.getloadavg()[0]
    if name == _OURS:
        run = _ours(arguments, folder)
    else:
        share = _EVALUATE if name == _QUICKSTART else 0.0
        run = _flower(arguments, folder, rounds, share)
    result["runs"].setdefault(name, []).append({**run, "load_before": load})
    told = {key: value for key, value in run.items() if isinstance(value, float)}
    print(name, {key: round(value, 4) for key, value in told.items()}, flush=True)


def _judged(result: dict[str, Any]) -> dict[str, Any]:
    """Say how much faster ours is."""
    runs = result["runs"]
    seconds = {name: [run["seconds"] for run in of_one] for name, of_one in runs.items()}
    result["summary"] = {name: summary(times) for name, times in seconds.items()}
    ratios = [t / o for t, o in zip(seconds[_THEIRS], seconds[_OURS], strict=True)]
    result["ratio"] = {"turns": len(ratios), **summary(ratios)}
    if _QUICKSTART in runs:
        # What the few rounds tell of as many as ours has: an extrapolation.
        (run,) = runs[_QUICKSTART]
        rounds = result["settings"]["rounds"] - run["rounds"]
        whole = run["seconds"] + rounds * run["seconds_per_round"]
        ours = statistics.median(seconds[_OURS])
        result["extrapolated"] = {"seconds": whole, "ratio": whole / ours}
    return result


def _ours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = _settings(arguments, folder)
    command = [str(Path(sys.executable).parent / "ahfal"), "run"]
    command += [f"{key}={value}" for key, value in settings.items()]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    metrics = read_run(folder / "runs" / _NAME).metrics
    spent = [sum(record.seconds.values()) for record in metrics.rounds]
    return {
        "seconds": seconds,
        "seconds_per_round": statistics.median(spent),
        "seconds_of_last_round": spent[-1],
        "accuracy": metrics.cycles[-1].accuracy,
    }


def _flower(
    arguments: argparse.Namespace, folder: Path, rounds: int, fraction_evaluate: float
) -> dict[str, Any]:
    report = folder / "report.json"
    told = {
        "rounds": rounds,
        "clients": _CLIENTS,
        "fraction-train": _AT_ONCE / _CLIENTS,
        "fraction-evaluate": fraction_evaluate,
        "batch-size": _BATCH,
        "local-epochs": 1,
        "lr": _RATE,
        "report": str(report),
    }
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_DEDUP_LOGS": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(_HERE),
        "LR_MNIST_DATA": str(arguments.data.absolute()),
        "LR_MNIST_TOLD": str(folder.parent / "told.npz"),
        "LR_MNIST_SETTINGS": json.dumps(told),
    }
    command = [str(arguments.peers / "bin" / "python"), str(_HERE / "flower_lr.py")]
    began, start = time.time(), time.perf_counter()
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    seconds = time.perf_counter() - start
    if done.returncode or not report.is_file():
        raise RuntimeError((folder / "log").read_text(errors="replace")[-4000:])
    ran = json.loads(report.read_text())
    of_rounds = [end - before for before, end in pairwise(ran["round_ends"])]
    return {
        "rounds": rounds,
        "seconds": seconds,
        "seconds_until_first_round": ran["round_ends"][0] - began,
        # The first has the clients' processes import and decode.
        "seconds_of_first_round": of_rounds[0],
        "seconds_per_round": statistics.median(of_rounds[1:]),
        "accuracy": ran["accuracy"],
    }


def _settings(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        "name": _NAME,
        "dataset": str(arguments.data.absolute()),
        "data-dir": str(folder / "cache"),
        "output-dir": str(folder / "runs"),
        "num-clients": _CLIENTS,
        "client-fraction": _AT_ONCE / _CLIENTS,
        "partition": "iid",
        "model": "linear",
        "rounds": arguments.rounds,
        "local-epochs": 1,
        "batch-size": _BATCH,
        "learning-rate": _RATE,
        "momentum": 0.0,
        "weight-decay": 0.0,
        "augment": "none",
        # No labels are bought: all are there from the start.
        "strategy": "random",
        "initial-fraction": 1.0,
        "target-fraction": 1.0,
        "cycles": 1,
    }


def _exported(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    """Write the split and the first weights; return the environment."""
    loaded = resources(parse_settings(settings))
    train = loaded.train_images
    model = loaded.new_model(0)  # What our run begins with.
    users = [loaded.client_rows(user) for user in range(_CLIENTS)]
    np.savez(
        file,
        users_UN=np.stack(users),
        scale=train.scale_C.numpy(),
        shift=train.shift_C.numpy(),
        **{name: value.numpy() for name, value in model.state_dict().items()},
    )
    return describe_environment(
        class_names=loaded.dataset.class_names,
        data_fingerprint=loaded.dataset.fingerprint,
        partition_fingerprint=loaded.partition.fingerprint,
    )


def _versions(peers: Path) -> dict[str, str]:
    names = ("flwr", "ray", "torch", "datasets")
    code = "from importlib.metadata import version as v; import json; " + (
        f"print(json.dumps({{n: v(n) for n in {names}}}))"
    )
    command = [str(peers / "bin" / "python"), "-c", code]
    versions: dict[str, str] = json.loads(subprocess.check_output(command))
    return versions


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="their environment")
    parser.add_argument("--data", type=Path, required=True, help="MNIST as parquet files")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--times", type=int, default=3, help="whole runs of each")
    parser.add_argument(
        "--rounds-with-evaluation", type=int, default=4, help="of the quickstart; 0: none"
    )
    parser.add_argument(
        "--output", type=Path, default=_HERE.parent / "results" / "peers_lr_mnist.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
