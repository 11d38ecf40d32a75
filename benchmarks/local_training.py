"""Local training against a plain loop, side by side: time of a federated round, and accuracy.

The plain loop is what published research code runs: torchvision's transforms on one PIL
image after the other in a DataLoader, float32, contiguous tensors, all processor threads
on one client, in a process of its own, since ours tunes the allocator of the process it
runs in. Ours is what the in-process engine runs. Both start each seed from the same
weights, train the same clients on the same labelled rows with the same recipe, and
average the models alike; their rounds take turns, since a shared machine's speed drifts.

    uv run python benchmarks/local_training.py --data uoft-cs/cifar10

Results are written after each pair of rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ahfal_app.client.state import ClientState
from ahfal_app.client_app import app as client_app
from ahfal_app.config import Settings, parse_settings
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.messages.keys import ARRAYS_KEY, CONFIG_KEY
from ahfal_app.messages.protocol import TRAIN, Order
from ahfal_app.models import build_model, resolve_model_name
from ahfal_app.plugins import shared_code_hash
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.identity import mark
from ahfal_app.seeds import torch_generator
from ahfal_app.server.aggregation import Aggregation
from ahfal_app.server.federation import Federation
from ahfal_app.server.membership import join
from ahfal_app.storage.files import write_json
from ahfal_app.training.choices import resolve_device
from ahfal_app.training.prediction import evaluate
from ahfal_app.training.resources import Resources, resources
from ahfal_app.training.together.gathering import TrainTogether

# An identity as a run has one.
_RUN = "0" * 16

State = dict[str, Tensor]
Arrays = dict[str, NDArray[np.generic]]


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    measured = _Measurements(arguments.output)
    for seed in range(arguments.seeds):
        settings = _settings(arguments, seed)
        shared = resources(settings)
        if not measured.header:
            measured.header = describe(arguments, settings, shared)
        measured.add(seed, *_compare(arguments, settings, shared, measured))
    print(json.dumps(measured.summary(), indent=2))


@dataclass(frozen=True)
class _Client:
    """A client's number and labelled rows."""

    number: int
    rows_N: Tensor
    labels_N: Tensor


@dataclass(frozen=True)
class _PlainTask:
    """Everything that the plain loop needs, to be sent to its process."""

    settings: Settings
    dataset_name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    augmentation: Augmentation
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    pixels: list[NDArray[np.uint8]]
    labels: list[list[int]]


class _PilImages(Dataset[tuple[Tensor, int]]):
    """A client's images as torchvision's data sets hold them, transformed one by one."""

    def __init__(self, task: _PlainTask, client: int) -> None:
        self._pixels_NHWC = task.pixels[client]
        self._labels_N = task.labels[client]
        augmentation, steps = task.augmentation, []
        if augmentation.padding:
            height, width = task.image_shape[:2]
            steps.append(transforms.RandomCrop((height, width), padding=augmentation.padding))
        if augmentation.flip:
            steps.append(transforms.RandomHorizontalFlip())
        normalise = transforms.Normalize(task.mean_C, task.std_C)
        self._transform = transforms.Compose([*steps, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self._labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._pixels_NHWC[index].squeeze())
        return self._transform(image), self._labels_N[index]


class _PlainLoop:
    """One model, optimizer and loader for each client, trained one after the other."""

    def __init__(self, task: _PlainTask) -> None:
        settings = task.settings
        self._settings = settings
        self._labels = task.labels
        self._device = resolve_device(settings.device)
        clients = range(len(task.labels))
        name = resolve_model_name(settings.model, task.dataset_name)
        self._loaders = [
            DataLoader(
                _PilImages(task, client),
                settings.batch_size,
                shuffle=True,
                generator=torch_generator(settings.seed, "benchmark-order", client),
            )
            for client in clients
        ]
        self._models = [
            build_model(name, task.image_shape, task.num_classes, 0).to(self._device)
            for _ in clients
        ]
        self._optimizers = [
            torch.optim.SGD(
                model.parameters(),
                lr=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
            for model in self._models
        ]

    def round(self, weights: State, round_: int) -> State:
        """Train all clients from the given weights; return the average of theirs."""
        # torchvision's transforms draw from the global generator.
        torch.manual_seed(self._settings.seed * 1000 + round_)
        states = [self._train(client, weights) for client in range(len(self._models))]
        return _average(states, [len(labels) for labels in self._labels])

    def _train(self, client: int, weights: State) -> State:
        model, optimizer = self._models[client], self._optimizers[client]
        model.load_state_dict(weights)
        model.train()
        for _ in range(self._settings.local_epochs):
            for images, labels in self._loaders[client]:
                optimizer.zero_grad()
                logits = model(images.to(self._device))
                loss = cross_entropy(logits, labels.to(self._device))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss.item()
        return {name: value.cpu() for name, value in model.state_dict().items()}


_plain_loop: _PlainLoop


def _start_plain_loop(task: _PlainTask) -> None:
    global _plain_loop
    _plain_loop = _PlainLoop(task)


def _plain_round(weights: Arrays, round_: int) -> tuple[float, Arrays]:
    """Run a round in the plain loop's process; return its seconds and the global weights."""
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    seconds, state = timed(partial(_plain_loop.round, state, round_))
    return seconds, _as_arrays(state)


def _as_arrays(state: State) -> Arrays:
    # Tensors would travel through shared memory, arrays travel as they are.
    return {name: value.numpy().copy() for name, value in state.items()}


class PlainProcess:
    """The plain loop in a process of its own, with the allocator as it comes."""

    def __init__(self, task: _PlainTask) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(1, _start_plain_loop, (task,))

    def timed_round(self, weights: State, round_: int) -> tuple[float, State]:
        """Run a round; return the seconds that it took there, and the global weights."""
        seconds, arrays = self._pool.apply(_plain_round, (_as_arrays(weights), round_))
        return seconds, {name: torch.from_numpy(value) for name, value in arrays.items()}

    def close(self) -> None:
        """End the process."""
        self._pool.terminate()
        self._pool.join()


class OurGrid:
    """The product's rounds: strategy's messages, in-process grid, ClientApp, aggregation."""

    def __init__(
        self,
        settings: Settings,
        shared: Resources,
        folder: Path,
        train_together: TrainTogether | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        mark(folder, _RUN)
        self._order = Order(settings, _RUN, str(folder), shared_code_hash(settings.to_flat()))
        self._shared = shared
        self._aggregation = Aggregation(settings, shared.trainable_names)
        threads = settings.threads or os.cpu_count() or 1
        workers = max(1, (os.cpu_count() or 1) // threads)
        self._grid = InProcessGrid(client_app, settings.num_clients, workers, train_together)
        self._federation = Federation(self._grid, timeout=3600, time_to_live=3600)
        join(self._federation, self._order)

    def clients(self) -> list[_Client]:
        """Return the clients' labelled rows, as they were bought at random at the start."""
        clients = []
        for number, indices in enumerate(self._shared.partition.indices):
            state = ClientState.on_disk(Path(self._order.run_folder) / "clients" / str(number))
            with state.labels(indices, self._shared.num_classes) as store:
                labelled = store.labelled()
            rows, labels = map(torch.from_numpy, (labelled.samples_N, labelled.labels_N))
            clients.append(_Client(number, rows, labels))
        return clients

    def timed_round(self, weights: State, round_: int) -> tuple[float, State]:
        """Run a round; return its seconds, aggregation included, and the global weights."""
        return timed(partial(self._round, weights, round_))

    def _round(self, weights: State, round_: int) -> State:
        arrays = ArrayRecord(weights)
        config = replace(self._order, round=round_ + 1).to_record()
        content = RecordDict({ARRAYS_KEY: arrays, CONFIG_KEY: config})
        clients = self._federation.clients
        messages = [self._federation.message(c, TRAIN, content, "round") for c in clients]
        replies = self._federation.exchange(messages)
        if replies.failures:
            raise RuntimeError(self._federation.describe(replies.failures))
        self._aggregation.configure_train(round_ + 1, arrays, self._grid)
        result = self._aggregation.aggregate_train(0, round_ + 1, list(replies.messages.values()))
        return result.to_torch_state_dict()

    def close(self) -> None:
        """End the worker threads."""
        self._grid.__exit__(None, None, None)


def _compare(
    arguments: argparse.Namespace,
    settings: Settings,
    shared: Resources,
    measured: _Measurements,
) -> tuple[float, float]:
    """Run one seed's rounds in turns; return the accuracies of the plain loop and of ours."""
    # Made before anything is timed; a process of a simulation makes them once, too.
    shared.train_images, shared.test_images  # noqa: B018
    start = {name: value.clone() for name, value in shared.new_model(0).state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        ours = OurGrid(settings, shared, Path(folder) / "measured")
        clients = ours.clients()
        plain = PlainProcess(plain_task(settings, shared, clients))
        if settings.seed == 0:
            # Clients of their own, so that momentum starts at nothing in those measured.
            extra = OurGrid(settings, shared, Path(folder) / "warm-up")
            measured.warm_up_seconds, _ = extra.timed_round(start, 0)
            extra.close()
        loops: dict[str, PlainProcess | OurGrid] = {"plain": plain, "ours": ours}
        weights = dict.fromkeys(loops, start)
        passes = sum(len(client.rows_N) for client in clients) * settings.local_epochs
        for round_ in range(arguments.rounds):
            seconds = {}
            # Whoever comes first changes, so that neither always runs on the warmer machine.
            for name in sorted(loops, reverse=bool(round_ % 2)):
                seconds[name], weights[name] = loops[name].timed_round(weights[name], round_)
            measured.add_round(settings.seed, round_, passes, seconds["plain"], seconds["ours"])
        plain.close()
        ours.close()
    return _accuracy(shared, weights["plain"]), _accuracy(shared, weights["ours"])


def plain_task(settings: Settings, shared: Resources, clients: Sequence[_Client]) -> _PlainTask:
    """Return what the plain loop needs to train the same clients on the same rows."""
    dataset = shared.dataset
    return _PlainTask(
        settings,
        dataset.name,
        dataset.image_shape,
        dataset.num_classes,
        dataset.augmentation,
        dataset.mean_C,
        dataset.std_C,
        [dataset.train.images_NHWC[client.rows_N.numpy()] for client in clients],
        [client.labels_N.tolist() for client in clients],
    )


def _average(states: Sequence[State], examples: Sequence[int]) -> State:
    shares = torch.tensor(examples, dtype=torch.float64) / sum(examples)
    return {
        name: torch.stack(
            [state[name].double() * s for state, s in zip(states, shares, strict=True)]
        )
        .sum(dim=0)
        .to(value.dtype)
        for name, value in states[0].items()
    }


def _accuracy(shared: Resources, weights: State) -> float:
    model = shared.model()
    model.load_state_dict(weights)
    return evaluate(model, shared.test_images, shared.num_classes).accuracy


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that some work takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class _Measurements:
    """Rounds and accuracies so far, written to a file whenever one comes in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: dict[str, Any] = {}
        self.warm_up_seconds = 0.0
        self._rounds: list[dict[str, float]] = []
        self._accuracies: list[dict[str, float]] = []

    def add_round(self, seed: int, round_: int, passes: int, plain: float, ours: float) -> None:
        """Add the seconds of a pair of rounds."""
        entry = {
            "seed": seed,
            "round": round_,
            "sample_passes": passes,
            "plain_seconds": plain,
            "our_seconds": ours,
            "ratio": plain / ours,
        }
        self._rounds.append(entry)
        print(f"seed {seed} round {round_}: {plain:.1f} s and {ours:.1f} s, {plain / ours:.2f}x")
        self._write()

    def add(self, seed: int, plain: float, ours: float) -> None:
        """Add the accuracies of a seed."""
        self._accuracies.append({"seed": seed, "plain": plain, "ours": ours})
        self._write()

    def summary(self) -> dict[str, Any]:
        """Return the ratio of times, images a second, and accuracies."""
        ratios = [entry["ratio"] for entry in self._rounds]
        summary: dict[str, Any] = {
            "rounds": len(ratios),
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
            "images_per_second": {
                name: statistics.median(
                    entry["sample_passes"] / entry[f"{key}_seconds"] for entry in self._rounds
                )
                for name, key in (("plain", "plain"), ("ours", "our"))
            },
        }
        if self._accuracies:
            summary["accuracy"] = {
                name: spread([entry[name] for entry in self._accuracies])
                for name in ("plain", "ours")
            }
            summary["accuracy"]["difference"] = spread(
                [entry["ours"] - entry["plain"] for entry in self._accuracies]
            )
        return summary

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            **self.header,
            "warm_up_seconds": self.warm_up_seconds,
            "summary": self.summary(),
            "rounds": self._rounds,
            "accuracies": self._accuracies,
        }
        write_json(self._path, content)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value does not have."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation}


def describe(
    arguments: argparse.Namespace, settings: Settings, shared: Resources
) -> dict[str, Any]:
    """Return what a result file tells of data, settings and machine."""
    recipe = shared.recipe(settings)
    where = describe_environment(
        class_names=shared.dataset.class_names,
        data_fingerprint=shared.dataset.fingerprint,
        partition_fingerprint=shared.partition.fingerprint,
    )
    flat = settings.to_flat()
    for key in ("dataset", "data-dir", "output-dir"):  # Paths of one machine mean nothing.
        del flat[key]
    return {
        "benchmark": Path(__file__).stem,
        "data": arguments.data_note or shared.dataset.name,
        "resolved": {"precision": recipe.precision, "compile": recipe.compile},
        "environment": where,
        "settings": flat,
    }


def _settings(arguments: argparse.Namespace, seed: int) -> Settings:
    return parse_settings(
        {
            "dataset": arguments.data,
            "data-dir": arguments.data_dir,
            "num-clients": arguments.clients,
            "model": "resnet8",
            "rounds": arguments.rounds_of_run,
            "compile": arguments.compile,
            "precision": arguments.precision,
            "seed": seed,
        }
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="uoft-cs/cifar10", help="as the setting `dataset`")
    parser.add_argument("--data-dir", default="", help="as the setting `data-dir`")
    parser.add_argument("--data-note", default="", help="what the data is, for the results")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1, help="federated rounds for each seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rounds-of-run", type=int, default=100, help="length of run that `auto` decides for"
    )
    parser.add_argument("--compile", default="auto", choices=["auto", "always", "never"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "local_training.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
