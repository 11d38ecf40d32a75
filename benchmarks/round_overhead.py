"""What a round costs besides its steps of training: processor time of a round, by part.

A run in one process, with the training left out: clients get the global model, read their labels,
momentum and schedule, and answer with all that a trained client answers with; the server checks,
aggregates, records and writes its checkpoint.

    uv run python benchmarks/round_overhead.py
    uv run python benchmarks/round_overhead.py --against ../before

`--against` names another checkout of the project, whose rounds are measured in turns with ours,
each in a process of its own. Processor time is compared, since a shared machine's clock says
little; what other processes do to the caches is in it, too.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from rich.console import Console

import ahfal_app.client_app as client_module
import ahfal_app.engine.local as engine_module
import ahfal_app.server.run as run_module
from ahfal_app.client import local_training
from ahfal_app.client.client import Client
from ahfal_app.client.state import ClientState
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.progress import Progress
from ahfal_app.results.records import RoundRecord
from ahfal_app.results.run_folder import Recorder
from ahfal_app.server import rounds as rounds_module
from ahfal_app.server.aggregation import Aggregation
from ahfal_app.server.federation import Federation
from ahfal_app.training.sgd import LocalUpdate, TrainingResult, TrainingState, train_locally

_FIRST_ROUNDS = 3  # They load data and make models.


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    if arguments.measure:
        print(json.dumps(_measure(arguments)))
        return
    checkouts = {"now": Path(__file__).parents[1]}
    if arguments.against is not None:
        # Of a folder that is none, Python would take the installed package, which is ours.
        if not (arguments.against / "ahfal_app").is_dir():
            sys.exit(
                f"--against={arguments.against}: allowed is a checkout, with `ahfal_app/` in it"
            )
        checkouts = {"before": arguments.against.resolve(), **checkouts}
    result: dict[str, Any] = {
        "benchmark": "round_overhead",
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
        "model": arguments.model,
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        "runs": {name: [] for name in checkouts},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(arguments.turns):
        for name, folder in checkouts.items():
            run = _in_process(folder)
            result["runs"][name].append(run)
            print(
                f"{name}: {run['ms_per_round']:.1f} ms a round, {run['ms_per_client']:.2f} ms "
                f"a client, load {run['load']:.1f}",
                flush=True,
            )
            result["summary"] = _summary(result["runs"])
            arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"], indent=2))


def _in_process(checkout: Path) -> dict[str, Any]:
    """Measure a checkout's code, in a process of its own."""
    arguments = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--measure"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run


def _summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the turns, in milliseconds of processor time."""
    summary: dict[str, Any] = {}
    for name, measured in runs.items():
        if measured:
            summary[name] = {
                "ms_per_round": statistics.median(run["ms_per_round"] for run in measured),
                "ms_per_client": statistics.median(run["ms_per_client"] for run in measured),
                "parts_ms_per_round": {
                    part: statistics.median(run["parts_ms_per_round"][part] for run in measured)
                    for part in measured[0]["parts_ms_per_round"]
                },
            }
    if len(summary) > 1:
        summary["times_faster"] = summary["before"]["ms_per_round"] / summary["now"]["ms_per_round"]
    return summary


class _Parts:
    """Processor time by part, without that of the parts that are called inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._local = threading.local()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts towards a part."""

        @functools.wraps(function)
        def timed(*values: Any, **named: Any) -> Any:
            outer, self._local.inside = getattr(self._local, "inside", 0.0), 0.0
            start = time.thread_time()
            try:
                return function(*values, **named)
            finally:
                spent = time.thread_time() - start
                with self._lock:
                    self.seconds[part] += spent - self._local.inside
                self._local.inside = outer + spent

        return timed

    def count(self, part: str, owner: object, *names: str) -> None:
        """Have functions of a module or class count towards a part."""
        for name in names:
            if hasattr(owner, name):  # An older checkout may do it elsewhere.
                setattr(owner, name, self.timed(part, getattr(owner, name)))


def _instrumented(parts: _Parts) -> Callable[[Message, Context], Message]:
    """Have all parts counted; return what answers a message."""
    vars(local_training)["carry_out"] = _without_steps
    parts.count("client: read the message", client_module, "_order", "_client", "_tensors")
    parts.count("client: labels and the rest of it", Client, "train")
    parts.count("client: load the model", local_training.ClientTraining, "_model")
    parts.count("client: optimiser, the steps left out", local_training, "carry_out")
    parts.count("client: read momentum", ClientState, "load_training")
    parts.count("client: keep momentum and f^L", ClientState, "save_training", "save_local_model")
    parts.count("server: check answers", rounds_module, "problem_with")
    parts.count("server: aggregate", Aggregation, "aggregate_train", "merged")
    parts.count("server: messages", Federation, "exchange", "message")
    parts.count("server: record", Recorder, "record")
    parts.count("server: momentum of all to the disk", Federation, "settle")
    parts.count("server: checkpoint", run_module, "write_checkpoint")
    return parts.timed("client: arrays of the answer, Flower's message", client_module.app)


def _without_steps(update: LocalUpdate) -> TrainingResult:
    """Do all that training does but for its steps."""
    state = update.state
    if state is None:
        parameters = update.model.named_parameters()
        state = TrainingState({name: torch.zeros_like(value) for name, value in parameters}, 0)
    recipe = replace(update.recipe, local_epochs=0)
    return train_locally(replace(update, state=state, recipe=recipe))


class _Watch(Progress):
    """Notes the processor time at the end of each round."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__(Console(quiet=True))
        self._parts = parts
        self.marks: list[tuple[float, dict[str, float]]] = []

    def round_done(self, record: RoundRecord) -> None:
        """Take note of a round's end."""
        self.marks.append((time.process_time(), dict(self._parts.seconds)))
        super().round_done(record)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    parts = _Parts()
    handler = _instrumented(parts)
    with tempfile.TemporaryDirectory() as folder:
        start = engine_module.prepare(
            {
                "dataset": arguments.data,
                "model": arguments.model,
                "output-dir": folder,
                "num-clients": arguments.clients,
                "cycles": 1,
                "rounds": arguments.rounds,
                "compile": "never",
            }
        )
        watch = _Watch(parts)
        start = replace(start, engine={"name": "in-process", "client_batching": False})
        with InProcessGrid(handler, arguments.clients, os.cpu_count() or 1) as grid:  # type: ignore[arg-type]
            engine_module.execute(start, grid, watch)
    # Without the last round, in which clients keep f^L, too.
    (begin, before), (end, after) = watch.marks[_FIRST_ROUNDS - 1], watch.marks[-2]
    rounds = len(watch.marks) - _FIRST_ROUNDS - 1
    total = (end - begin) * 1000 / rounds
    by_part = {part: (after[part] - before.get(part, 0)) * 1000 / rounds for part in sorted(after)}
    by_part["all else, threads among it"] = total - sum(by_part.values())
    of_clients = sum(spent for part, spent in by_part.items() if part.startswith("client: "))
    return {
        "ms_per_round": total,
        "ms_per_client": of_clients / arguments.clients,
        "parts_ms_per_round": by_part,
        "load": os.getloadavg()[0],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "round_overhead.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
