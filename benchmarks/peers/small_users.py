"""Many small users: rounds a second beside pfl-research, in turns.

The setting of pfl-research's own CIFAR-10 benchmark: the training images split IID over 1,000 users
of 50, of which 50 train in a round, one epoch in batches of 10, SGD without momentum, FedAvg;
`small-cnn` on both sides, from the same weights on the same users' images. Ours is a run as
`ahfal run` carries it out, records and checkpoint of each round included; pfl is tried as one
process with one and with two threads, and as two processes, and all of them have all cores.

    benchmarks/peers/make_environment.sh ../peers-environment
    uv run python benchmarks/peers/small_users.py --peers ../peers-environment --data CIFAR-10

All take turns, a round each. Results are written after each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from turns import Player, Referee, Stopped, summary

from ahfal_app.config import parse_settings
from ahfal_app.engine.local import simulate
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.progress import Progress
from ahfal_app.results.records import RoundRecord
from ahfal_app.storage.files import write_json
from ahfal_app.training.resources import resources

_HERE = Path(__file__).parent
_OURS = "ours"
_USERS, _AT_ONCE, _BATCH, _RATE = 1000, 50, 10, 0.1

#: Processes and threads of each that pfl is tried with.
_PFL = {"pfl, 1 thread": (1, 1), "pfl, 2 threads": (1, 2), "pfl, 2 processes": (2, 1)}


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    if arguments.play:
        _play(json.loads(arguments.play))
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(arguments, Path(folder))
        result: dict[str, Any] = {
            "benchmark": "peers/small_users",
            "environment": _exported(settings, Path(folder) / "data.npz"),
            "peers": _versions(arguments.peers),
            "settings": settings,
            "seconds": {},
            "load": [],
        }
        with Referee(str(Path(folder) / "socket")) as referee:
            _start(referee, arguments, settings, Path(folder))
            _measure(referee, arguments, result)
    print(json.dumps(_judged(result, arguments.output)["ratio"], indent=2))


def _start(
    referee: Referee, arguments: argparse.Namespace, settings: dict[str, object], folder: Path
) -> None:
    address = str(folder / "socket")
    told = {"address": address, "settings": settings}
    referee.start(_OURS, [sys.executable, __file__, "--play", json.dumps(told)])
    for name in arguments.ways:
        processes, threads = _PFL[name]
        python = str(arguments.peers / "bin" / "python")
        launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone"]
        launch += [] if processes == 1 else [f"--nproc-per-node={processes}"]
        flags = {
            "address": address,
            "name": name,
            "data": folder / "data.npz",
            "classes": 10,
            "users": _AT_ONCE,
            "rounds": arguments.warm_up + arguments.rounds + 1,
            "batch": _BATCH,
            "learning-rate": _RATE,
            "threads": threads,
        }
        command = [python, *launch, str(_HERE / "pfl_users.py")]
        command += [f"--{key}={value}" for key, value in flags.items()]
        environment = {"PFL_PYTORCH_DEVICE": "cpu", "OMP_NUM_THREADS": str(threads)}
        referee.start(name, command, processes, environment)


def _measure(referee: Referee, arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Have all take turns; the first rounds, which compile, and the last, which tests, are free."""
    names = [_OURS, *arguments.ways]
    for name in names:
        for _ in range(arguments.warm_up):
            referee.round(name)
    seconds = result["seconds"]
    for number in range(arguments.rounds):
        for name in names:
            seconds.setdefault(name, []).append(referee.round(name)[0])
        result["load"].append(os.getloadavg()[0])
        print(number, {name: round(times[-1], 3) for name, times in seconds.items()}, flush=True)
        _judged(result, arguments.output)
    result["test_accuracy"] = {name: referee.round(name)[1].get("accuracy") for name in names}


def _judged(result: dict[str, Any], output: Path) -> dict[str, Any]:
    """Say how much faster we are than the best of theirs; write it down."""
    seconds = result["seconds"]
    result["summary"] = {name: summary(times) for name, times in seconds.items()}
    theirs = seconds.keys() - {_OURS}
    best = min(theirs, key=lambda name: result["summary"][name]["median"])
    result["best_of_theirs"] = best
    ratios = [of_best / ours for of_best, ours in zip(seconds[best], seconds[_OURS], strict=True)]
    result["ratio"] = {"to": best, "rounds": len(ratios), **summary(ratios)}
    result["ratio"]["of_medians"] = statistics.median(seconds[best]) / statistics.median(
        seconds[_OURS]
    )
    write_json(output, result)
    return result


def _settings(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    rounds = arguments.warm_up + arguments.rounds + 1
    return {
        "dataset": str(arguments.data),
        "data-dir": str(folder / "cache"),
        "output-dir": str(folder / "runs"),
        "num-clients": _USERS,
        "client-fraction": _AT_ONCE / _USERS,
        "partition": "iid",
        "model": "small-cnn",
        # All clients train in a cycle's last round, which is not reached.
        "rounds": rounds + 1,
        "evaluate-every": rounds,
        "local-epochs": 1,
        "batch-size": _BATCH,
        "learning-rate": _RATE,
        "momentum": 0.0,
        "weight-decay": 0.0,
        "augment": "none",
        "strategy": "random",
        "initial-fraction": 1.0,
        "target-fraction": 1.0,
        "cycles": 1,
        "compile": arguments.compile,
    }


def _exported(settings: Mapping[str, object], file: Path) -> dict[str, Any]:
    """Write what both sides train on; return the environment."""
    loaded = resources(parse_settings(settings))
    train, test = loaded.train_images, loaded.test_images
    model = loaded.new_model(0)  # What our run begins with.
    arrays = {
        "train_NHWc": train.images_NHWC.numpy(),
        "train_labels_N": train.labels_N.numpy(),
        "test_NHWc": test.images_NHWC.numpy(),
        "test_labels_N": test.labels_N.numpy(),
        "users_UN": np.stack([loaded.client_rows(user) for user in range(_USERS)]),
        "scale_c": train.scale_C.numpy(),
        "shift_c": train.shift_C.numpy(),
    }
    weights = {f"weight:{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez(file, **arrays, **weights)
    return describe_environment(
        class_names=loaded.dataset.class_names,
        data_fingerprint=loaded.dataset.fingerprint,
        partition_fingerprint=loaded.partition.fingerprint,
    )


def _versions(peers: Path) -> dict[str, str]:
    code = "from importlib.metadata import version as v; import json; " + (
        "print(json.dumps({n: v(n) for n in ('pfl', 'torch', 'numpy')}))"
    )
    command = [str(peers / "bin" / "python"), "-c", code]
    versions: dict[str, str] = json.loads(subprocess.check_output(command))
    return versions


class _Turns(Progress):
    """A run that waits for its turn before each round."""

    def __init__(self, player: Player) -> None:
        super().__init__(Console(quiet=True))
        self._player = player

    def run_started(self, num_cycles: int, rounds: int, rounds_done: int = 0) -> None:
        super().run_started(num_cycles, rounds, rounds_done)
        self._player.wait()

    def round_done(self, record: RoundRecord) -> None:
        super().round_done(record)
        self._player.done({"accuracy": record.test_accuracy})
        self._player.wait()


def _play(told: Mapping[str, Any]) -> None:
    try:
        simulate(told["settings"], _Turns(Player(told["address"], _OURS)))
    except Stopped:
        return


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="their environment")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--ways", nargs="+", choices=list(_PFL), default=list(_PFL), help="of pfl")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds of each that do not count")
    parser.add_argument("--compile", default="auto", help="the setting of this name")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output",
        type=Path,
        default=_HERE.parent / "results" / "peers_small_users.json",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
