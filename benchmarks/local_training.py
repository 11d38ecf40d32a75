"""Local training against a plain loop, side by side: time of a federated round, and accuracy.

The plain loop is what published research code runs: torchvision's transforms on one PIL
image after the other in a DataLoader, float32, contiguous tensors, all processor threads
on one client. Ours is what the in-process engine runs. Both start each seed from the same
weights, train the same clients on the same labelled rows with the same recipe, and
average the models alike; their rounds take turns, since a shared machine's speed drifts.

    python benchmarks/local_training.py --data uoft-cs/cifar10

Results are written after each pair of rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ahfal_app.config import Settings, parse_settings
from ahfal_app.resources import Resources
from ahfal_app.results.environment import describe_environment
from ahfal_app.seeds import numpy_generator, torch_generator
from ahfal_app.training import TrainingState, evaluate, train_locally

State = dict[str, Tensor]


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    measured = _Measurements(arguments.output)
    for seed in range(arguments.seeds):
        settings = _settings(arguments, seed)
        shared = Resources(settings)
        if not measured.header:
            measured.header = _header(arguments, settings, shared)
        measured.add(seed, *_compare(arguments, settings, shared, measured))
    print(json.dumps(measured.summary(), indent=2))


@dataclass(frozen=True)
class _Client:
    """A client's number and labelled rows."""

    number: int
    rows_N: Tensor
    labels_N: Tensor


class _PilImages(Dataset[tuple[Tensor, int]]):
    """A client's images as torchvision's data sets hold them, transformed one by one."""

    def __init__(self, shared: Resources, client: _Client) -> None:
        self._pixels_NHWC = shared.dataset.train.images_NHWC[client.rows_N.numpy()]
        self._labels_N = client.labels_N.tolist()
        augmentation, steps = shared.dataset.augmentation, []
        if augmentation.padding:
            height, width = shared.dataset.image_shape[:2]
            steps.append(transforms.RandomCrop((height, width), padding=augmentation.padding))
        if augmentation.flip:
            steps.append(transforms.RandomHorizontalFlip())
        normalise = transforms.Normalize(shared.dataset.mean_C, shared.dataset.std_C)
        self._transform = transforms.Compose([*steps, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self._labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._pixels_NHWC[index].squeeze())
        return self._transform(image), self._labels_N[index]


class _PlainLoop:
    """One model, optimizer and loader for each client, trained one after the other."""

    def __init__(self, settings: Settings, shared: Resources, clients: Sequence[_Client]) -> None:
        self._settings = settings
        self._model = shared.new_model(0)
        self._loaders = [
            DataLoader(
                _PilImages(shared, client),
                settings.batch_size,
                shuffle=True,
                generator=torch_generator(settings.seed, "benchmark-order", client.number),
            )
            for client in clients
        ]
        self._models = [copy.deepcopy(self._model) for _ in clients]
        self._optimizers = [
            torch.optim.SGD(
                model.parameters(),
                lr=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
            for model in self._models
        ]

    def round(self, weights: State, round_: int) -> list[State]:
        """Train all clients from the given weights; return theirs."""
        # torchvision's transforms draw from the global generator.
        torch.manual_seed(self._settings.seed * 1000 + round_)
        return [self._train(client, weights) for client in range(len(self._models))]

    def _train(self, client: int, weights: State) -> State:
        model, optimizer = self._models[client], self._optimizers[client]
        model.load_state_dict(weights)
        model.train()
        for _ in range(self._settings.local_epochs):
            for images, labels in self._loaders[client]:
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss.item()
        return model.state_dict()


class _OurLoop:
    """The product's local training, as many clients at a time as the in-process engine."""

    def __init__(self, settings: Settings, shared: Resources, clients: Sequence[_Client]) -> None:
        self._settings = settings
        self._shared = shared
        self._clients = clients
        self._states: dict[int, TrainingState] = {}
        self._recipe = shared.recipe(settings)
        threads = settings.threads or os.cpu_count() or 1
        workers = max(1, (os.cpu_count() or 1) // threads)
        self._workers = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(threads,)
        )

    def round(self, weights: State, round_: int) -> list[State]:
        """Train all clients from the given weights; return theirs."""
        return list(
            self._workers.map(lambda client: self._train(client, weights, round_), self._clients)
        )

    def _train(self, client: _Client, weights: State, round_: int) -> State:
        model = self._shared.model()
        model.load_state_dict(weights)
        key = (client.number, 0, round_)
        result = train_locally(
            model,
            self._shared.train_images,
            client.rows_N,
            client.labels_N,
            self._recipe,
            self._states.get(client.number),
            torch_generator(self._settings.seed, "benchmark-training", *key),
        )
        self._states[client.number] = result.state
        return {name: value.clone() for name, value in model.state_dict().items()}


def _compare(
    arguments: argparse.Namespace,
    settings: Settings,
    shared: Resources,
    measured: _Measurements,
) -> tuple[float, float]:
    """Run one seed's rounds in turns; return the accuracies of the plain loop and of ours."""
    clients = _clients(settings, shared)
    # Made before anything is timed; a process of a simulation makes them once, too.
    shared.train_images, shared.test_images  # noqa: B018
    loops: dict[str, tuple[_PlainLoop | _OurLoop, int]] = {
        "plain": (_PlainLoop(settings, shared, clients), os.cpu_count() or 1),
        "ours": (_OurLoop(settings, shared, clients), settings.threads or os.cpu_count() or 1),
    }
    if settings.seed == 0:
        measured.warm_up_seconds = _warm_up(settings, shared, clients[:2])
    start = {name: value.clone() for name, value in shared.new_model(0).state_dict().items()}
    weights = dict.fromkeys(loops, start)
    examples = [len(client.rows_N) for client in clients]
    for round_ in range(arguments.rounds):
        seconds = {}
        # Whoever comes first changes, so that neither always runs on the warmer machine.
        for name in sorted(loops, reverse=bool(round_ % 2)):
            loop, threads = loops[name]
            torch.set_num_threads(threads)
            federated_round = partial(_federated_round, loop, weights[name], round_, examples)
            seconds[name], weights[name] = _timed(federated_round)
        passes = sum(examples) * settings.local_epochs
        measured.add_round(settings.seed, round_, passes, seconds["plain"], seconds["ours"])
    torch.set_num_threads(os.cpu_count() or 1)
    return _accuracy(shared, weights["plain"]), _accuracy(shared, weights["ours"])


def _warm_up(settings: Settings, shared: Resources, clients: Sequence[_Client]) -> dict[str, float]:
    """Run a round of a few clients in both ways, compilation included; return the seconds."""
    seconds = {}
    for name, loop in (("plain", _PlainLoop), ("ours", _OurLoop)):
        weights = {k: v.clone() for k, v in shared.new_model(0).state_dict().items()}
        made = loop(settings, shared, clients)
        seconds[name], _ = _timed(partial(made.round, weights, 0))
    return seconds


def _clients(settings: Settings, shared: Resources) -> list[_Client]:
    """Return the clients with the initial labels that a run would start with in number."""
    clients = []
    for number, indices in enumerate(shared.partition.indices):
        draw = numpy_generator(settings.seed, "benchmark-labelled", number)
        chosen = draw.choice(indices, settings.labels_due(0, len(indices)), replace=False)
        rows = np.sort(chosen)
        labels = shared.dataset.train.labels_N[rows]
        clients.append(_Client(number, torch.from_numpy(rows), torch.from_numpy(labels)))
    return clients


def _federated_round(
    loop: _PlainLoop | _OurLoop, weights: State, round_: int, examples: Sequence[int]
) -> State:
    return _average(loop.round(weights, round_), examples)


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


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class _Measurements:
    """Rounds and accuracies so far, written to a file whenever one comes in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header: dict[str, Any] = {}
        self.warm_up_seconds: dict[str, float] = {}
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
                name: _spread([entry[name] for entry in self._accuracies])
                for name in ("plain", "ours")
            }
            summary["accuracy"]["difference"] = _spread(
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
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(self._path)


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value does not have."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation}


def _header(arguments: argparse.Namespace, settings: Settings, shared: Resources) -> dict[str, Any]:
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
        "benchmark": "local_training",
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
