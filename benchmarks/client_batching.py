"""A federated round, trained together, in turns, and by a plain loop: samples per second.

Together: all clients of a round as one tensor program (on a GPU as CUDA graphs, and without).
In turns: one client after the other, as without client batching, uncompiled. The plain loop is
that of `local_training.py`, on the same device. All train the same clients on the same rows.
Their rounds take turns, since a shared machine's speed drifts.

    uv run python benchmarks/client_batching.py --data uoft-cs/cifar10
    uv run python benchmarks/client_batching.py --data uoft-cs/cifar10 --whole-run

With `--whole-run` the paper's run on CIFAR-10 (α = 0.1, AHFAL: 6 cycles of 100 rounds of 10
clients of 5 epochs) is done, too, and its time and accuracy are added to the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from local_training import OurGrid, PlainProcess, State, describe, plain_task, timed
from rich.console import Console

from ahfal_app.config import Settings, parse_settings
from ahfal_app.engine.local import simulate
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import read_run
from ahfal_app.training.resources import resources
from ahfal_app.training.together.trainer import TogetherTrainer

_Way = OurGrid | PlainProcess


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    settings = _settings(arguments)
    shared = resources(settings)
    result = describe(arguments, settings, shared) | {"benchmark": "client_batching"}
    result["device"] = _device_name(shared.device)
    result |= _measure(arguments, settings)
    _write(arguments.output, result)
    if arguments.whole_run:
        result["whole_run"] = _whole_run(arguments)
        _write(arguments.output, result)
    print(json.dumps({key: result[key] for key in ("device", "summary")}, indent=2))


def _measure(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    shared = resources(settings)
    start = {name: value.clone() for name, value in shared.new_model(0).state_dict().items()}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways, passes = _ways(arguments, settings, Path(folder))
        weights: dict[str, State] = dict.fromkeys(ways, start)
        for round_ in range(arguments.rounds + 1):
            for name, way in sorted(ways.items(), reverse=bool(round_ % 2)):
                taken, weights[name] = way.timed_round(weights[name], round_)
                if round_ > 0:  # The first one records graphs and lets libraries choose.
                    seconds.setdefault(name, []).append(taken)
                print(f"round {round_}: {name} {taken:.2f} s", flush=True)
        for way in ways.values():
            way.close()
    return {"sample_passes": passes, "seconds": seconds, "summary": _summary(seconds, passes)}


def _ways(
    arguments: argparse.Namespace, settings: Settings, folder: Path
) -> tuple[dict[str, _Way], int]:
    """Return the ways to run a round by name, and the samples that each trains on."""
    shared = resources(settings)
    shared.train_images, shared.test_images  # noqa: B018
    ways: dict[str, _Way] = {
        "in turns": (in_turns := OurGrid(settings, shared, folder / "in turns")),
        "together": OurGrid(settings, shared, folder / "together", TogetherTrainer(graphs=False)),
    }
    if shared.device.type == "cuda":
        ways["together, graphs"] = OurGrid(
            settings, shared, folder / "graphs", TogetherTrainer(graphs=True)
        )
    clients = in_turns.clients()
    if not arguments.without_plain_loop:
        ways["plain loop"] = PlainProcess(plain_task(settings, shared, clients))
    return ways, sum(len(client.rows_N) for client in clients) * settings.local_epochs


def _summary(seconds: Mapping[str, list[float]], passes: int) -> dict[str, Any]:
    """Return samples per second, and each way's speed as a multiple of training in turns."""
    in_turns = seconds["in turns"]
    return {
        name: {
            "samples_per_second": passes / statistics.median(values),
            "times_as_fast_as_in_turns": statistics.median(
                a / b for a, b in zip(in_turns, values, strict=True)
            ),
        }
        for name, values in seconds.items()
    }


def _whole_run(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {
        "dataset": arguments.data,
        "data-dir": arguments.data_dir,
        "num-clients": 10,
        "model": "resnet8",
        "alpha": 0.1,
        "rounds": 100,
        "local-epochs": 5,
        "batch-size": arguments.batch_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        console = Console()
        seconds, run = timed(lambda: simulate(values | {"output-dir": folder}, Progress(console)))
        cycles = read_run(run).metrics.cycles
        return {
            "seconds": seconds,
            "accuracy": [cycle.accuracy for cycle in cycles],
            "labels": [cycle.labels for cycle in cycles],
        }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def _settings(arguments: argparse.Namespace) -> Settings:
    return parse_settings(
        {
            "dataset": arguments.data,
            "data-dir": arguments.data_dir,
            "num-clients": arguments.clients,
            "model": arguments.model,
            "local-update": arguments.local_update,
            "local-epochs": arguments.local_epochs,
            "batch-size": arguments.batch_size,
            "max-train-samples": arguments.samples,
            "rounds": 100,
            "compile": "never",
            "precision": arguments.precision,
            "device": arguments.device,
        }
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="uoft-cs/cifar10", help="as the setting `dataset`")
    parser.add_argument("--data-dir", default="", help="as the setting `data-dir`")
    parser.add_argument("--data-note", default="", help="what the data is, for the results")
    parser.add_argument("--samples", type=int, default=0, help="of the training set; 0: all")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--local-update", default="plain", choices=["plain", "kcfu"])
    parser.add_argument("--local-epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=Settings().batch_size)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3, help="measured, after one that is not")
    parser.add_argument("--without-plain-loop", action="store_true")
    parser.add_argument("--whole-run", action="store_true", help="the paper's run, besides")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "client_batching.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
