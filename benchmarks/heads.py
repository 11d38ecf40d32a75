"""Heads on features against ResNet-8 on images, and extraction against a plain loop of timm's.

    uv run python benchmarks/heads.py --clients 10 --labels 1575

Local training of all clients of a round: heads together, heads in turns (with cross-entropy, FEAL's
loss and FedProx's term), ResNet-8 in turns, each on one processor thread, as samples per second of
processor time, so that a busy machine matters less. Extraction: images per second of processor
time, by the store and by a plain loop, both on all cores. Ways take turns; what is told are
medians. Features and images are random, since no result depends on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch.nn.functional import cross_entropy

from ahfal_app.backbones import load_backbone
from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.device import DeviceFeatures, DeviceImages
from ahfal_app.data.features import Features, FeatureStore, extracting
from ahfal_app.data.images import Images
from ahfal_app.models import Classifier, build_model
from ahfal_app.query import TrainingContext, make_strategy
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.sgd import (
    LocalUpdate,
    Objective,
    Recipe,
    TrainingResult,
    train_locally,
)
from ahfal_app.training.together.trainer import TogetherTrainer

CPU = torch.device("cpu")
CLASSES, NUMBERS = 10, 1280
BACKBONE = "tf_efficientnet_lite0"
BATCH = 32


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    torch.set_num_threads(1)
    clients, labels = arguments.clients, arguments.labels
    networks = network_updates(1, 256)
    ways: dict[str, tuple[Callable[[], object], int]] = {}
    for name, objective in objectives(clients).items():
        heads = head_updates(clients, labels, objective)
        # Each keeps its vectors ready from round to round, as in a run.
        ways |= {
            f"{name}_together": (
                partial(trained, TogetherTrainer(False), heads),
                5 * clients * labels,
            ),
            f"{name}_in_turns": (partial(trained, one_by_one, heads), 5 * clients * labels),
        }
    ways["resnet8"] = (partial(trained, one_by_one, networks), 256)
    training = in_turns(ways, arguments.rounds)
    extraction: dict[str, float] = {}
    if arguments.images:
        extraction = in_turns(extractions(arguments.images, arguments.size), arguments.rounds)
    result = {
        "benchmark": "heads",
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "torch": torch.__version__,
        "samples_per_cpu_second": training,
        "images_per_cpu_second": extraction,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def in_turns(ways: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Return the median rate of each way, having let them take turns; the first turn is warming."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (work, _) in ways.items():
            start = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: round(ways[name][1] / statistics.median(s), 1) for name, s in seconds.items()}


def recipe(epochs: int, augmentation: Augmentation) -> Recipe:
    """Return the recipe of the paper."""
    return Recipe(epochs, 128, 0.1, 0.9, 5e-4, 260, 0.1, augmentation, "fp32", False)


def trained(
    train: Callable[[Sequence[LocalUpdate]], object], updates: Callable[[], list[LocalUpdate]]
) -> None:
    """Make a round's updates and carry them out."""
    train(updates())


def one_by_one(updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
    """Train one client after the other."""
    return [train_locally(each) for each in updates]


def objectives(clients: int) -> dict[str, Callable[[Classifier], Objective]]:
    """Return what heads minimise, by name: cross-entropy, FEAL's loss, FedProx's term."""
    counts_C = np.full(CLASSES, clients)
    evidential = make_strategy("feal").training_loss(TrainingContext(CLASSES, counts_C, 5))

    def near(model: Classifier) -> Objective:
        anchors = {name: weight.detach() for name, weight in model.named_parameters()}
        return Objective(cross_entropy, ProximalTerm(0.01, anchors, CPU))

    return {
        "heads": lambda _: Objective(cross_entropy),
        "evidential_heads": lambda _: Objective(evidential or cross_entropy),
        "proximal_heads": near,
    }


def head_updates(
    clients: int, labels: int, objective: Callable[[Classifier], Objective]
) -> Callable[[], list[LocalUpdate]]:
    """Return what makes a round's updates of heads: five epochs of all clients."""
    draw = np.random.default_rng(0)
    count = clients * labels
    values = draw.normal(size=(count, NUMBERS)).astype(np.float16)
    classes = draw.integers(0, CLASSES, count)
    features = DeviceFeatures(Features(values, np.arange(count)), classes, CPU)
    model = build_model("linear", (1, 1, NUMBERS), CLASSES, 0)
    return lambda: [
        replace(
            update(features, model, client, labels, recipe(5, NO_AUGMENTATION)),
            objective=objective(model),
        )
        for client in range(clients)
    ]


def network_updates(clients: int, labels: int) -> Callable[[], list[LocalUpdate]]:
    """Return what makes updates of ResNet-8: one epoch."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (clients * labels, 32, 32, 3)).astype(np.uint8)
    classes = draw.integers(0, CLASSES, len(pixels))
    images = DeviceImages(Images(pixels, classes), (0.5,) * 3, (0.25,) * 3, CPU)
    model = build_model("resnet8", (32, 32, 3), CLASSES, 0).to(memory_format=torch.channels_last)
    return lambda: [
        update(images, model, client, labels, recipe(1, Augmentation(4, True)))
        for client in range(clients)
    ]


def update(
    images: DeviceImages, model: Classifier, client: int, labels: int, how: Recipe
) -> LocalUpdate:
    """Return one client's update."""
    rows = torch.arange(client * labels, (client + 1) * labels)
    generator = torch.Generator().manual_seed(client)
    return LocalUpdate(
        copy.deepcopy(model), images, rows, images.labels_N[rows], how, None, generator
    )


def extractions(count: int, size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return extraction by the store, compiled, and by a plain loop over the same images.

    The compiled one is what the store does with many images, its compilation left out.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    backbone = load_backbone(f"timm/{BACKBONE}", "none", size)
    plain = timm.create_model(BACKBONE, pretrained=False, num_classes=0).eval()

    def stored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            FeatureStore(Path(folder), backbone, CPU).of(pixels, "a", tell=lambda *_: None)

    def loop() -> None:
        # The store computes on all cores, too.
        torch.set_num_threads(os.cpu_count() or 1)
        with torch.inference_mode():
            for batch in torch.split(torch.from_numpy(pixels), BATCH):
                images = (batch.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
                plain(images.contiguous())
        torch.set_num_threads(1)

    # For as long as this process lives.
    extract = ExitStack().enter_context(extracting(backbone, CPU, BATCH))

    def compiled() -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        for batch in torch.split(torch.from_numpy(pixels), BATCH):
            extract(batch)
        torch.set_num_threads(1)

    return {
        "store": (stored, count),
        "store_compiled": (compiled, count),
        "plain_timm": (loop, count),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--labels", type=int, default=1575, help="Labelled samples of a client.")
    parser.add_argument("--images", type=int, default=64, help="Images of an extraction; 0: none.")
    parser.add_argument("--size", type=int, default=224, help="Their height and width.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/heads.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
