"""Heads on features against ResNet-8 on images, and extraction against a plain loop of timm's.

    uv run python benchmarks/heads.py --clients 10 --labels 1575

Local training of all clients of a round: heads together, heads in turns (with cross-entropy, FEAL's
loss and FedProx's term), ResNet-8 in turns, each on one processor thread, as samples per second of
processor time, so that a busy machine matters less; heads in bf16, too, where the processor has it.
Extraction: images per second of processor time and by the clock, on all cores, by the store, by its
compiled network, and by plain loops: as one would write it, with channels last, and in bf16; with
`--whole` so many images once by the store as in a run, with compiling, hashing and writing, and by
the plain loops; `TORCHINDUCTOR_FORCE_DISABLE_CACHES=1` has it compile as for the first time on a
machine. Ways take turns; what is told are medians. Features and images are
random, since no result depends on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from ahfal_app.backbones import load_backbone
from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.device import DeviceFeatures, DeviceImages
from ahfal_app.data.features import Features, FeatureStore, extracting
from ahfal_app.data.images import Images
from ahfal_app.models import Classifier, build_model
from ahfal_app.query import TrainingContext, make_strategy
from ahfal_app.results.environment import describe_environment
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.sgd import (
    LocalUpdate,
    Objective,
    Recipe,
    TrainingResult,
    resolve_precision,
    train_locally,
)
from ahfal_app.training.together.trainer import TogetherTrainer

CPU = torch.device("cpu")
CLASSES, NUMBERS = 10, 1280
BACKBONE = "tf_efficientnet_lite0"
BATCH = 32

#: What is timed, by name, and how many samples or images it does.
Ways = Mapping[str, tuple[Callable[[], object], int]]

Precision = Literal["fp32", "bf16"]


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    torch.set_num_threads(1)
    clients, labels = arguments.clients, arguments.labels
    networks = network_updates(1, 256)
    ways: dict[str, tuple[Callable[[], object], int]] = {}
    for name, precision, objective in objectives(clients):
        heads = head_updates(clients, labels, precision, objective)
        # Each keeps its vectors ready from round to round, as in a run.
        ways |= {
            f"{name}_together": (
                partial(trained, TogetherTrainer(False), heads),
                5 * clients * labels,
            ),
            f"{name}_in_turns": (partial(trained, one_by_one, heads), 5 * clients * labels),
        }
    ways["resnet8"] = (partial(trained, one_by_one, networks), 256)
    result: dict[str, object] = {
        "benchmark": "heads",
        "environment": describe_environment(
            class_names=[], data_fingerprint="synthetic", partition_fingerprint=None
        ),
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "samples_per_second": in_turns(ways, arguments.rounds),
    }
    if arguments.images:
        images = random_images(arguments.images, arguments.size)
        result["images_per_second"] = in_turns(extractions(images), arguments.rounds)
    if arguments.whole:
        images = random_images(arguments.whole, arguments.size)
        result["whole_images_per_second"] = in_turns(whole_extractions(images), 1, warming=False)
    result["load"] = os.getloadavg()
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def in_turns(ways: Ways, rounds: int, warming: bool = True) -> dict[str, dict[str, float]]:
    """Return the median rates of each way by processor time and by the clock.

    Ways take turns, and the first turn is warming where that is wanted.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + warming):
        for name, (work, _) in ways.items():
            cpu, clock = time.process_time(), time.perf_counter()
            work()
            if turn >= warming:
                spent[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    return {
        name: {
            "cpu": round(ways[name][1] / statistics.median(s for s, _ in seconds), 1),
            "clock": round(ways[name][1] / statistics.median(s for _, s in seconds), 1),
        }
        for name, seconds in spent.items()
    }


def recipe(epochs: int, augmentation: Augmentation, precision: Precision = "fp32") -> Recipe:
    """Return the recipe of the paper."""
    return Recipe(epochs, 128, 0.1, 0.9, 5e-4, 260, 0.1, augmentation, precision, False)


def trained(
    train: Callable[[Sequence[LocalUpdate]], object], updates: Callable[[], list[LocalUpdate]]
) -> None:
    """Make a round's updates and carry them out."""
    train(updates())


def one_by_one(updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
    """Train one client after the other."""
    return [train_locally(each) for each in updates]


def objectives(clients: int) -> list[tuple[str, Precision, Callable[[Classifier], Objective]]]:
    """Return names, precisions and what heads minimise: cross-entropy, FEAL's loss, FedProx's term.

    In single precision all, and the first in bf16, too, where that is what a run takes.
    """
    counts_C = np.full(CLASSES, clients)
    evidential = make_strategy("feal").training_loss(TrainingContext(CLASSES, counts_C, 5))

    def near(model: Classifier) -> Objective:
        anchors = {name: weight.detach() for name, weight in model.named_parameters()}
        return Objective(cross_entropy, ProximalTerm(0.01, anchors, CPU))

    def plain(_: Classifier) -> Objective:
        return Objective(cross_entropy)

    native = resolve_precision("auto", CPU, "linear", 1)
    return [
        ("heads", "fp32", plain),
        *([(f"heads_{native}", native, plain)] if native != "fp32" else []),
        ("evidential_heads", "fp32", lambda _: Objective(evidential or cross_entropy)),
        ("proximal_heads", "fp32", near),
    ]


def head_updates(
    clients: int, labels: int, precision: Precision, objective: Callable[[Classifier], Objective]
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
            update(features, model, client, labels, recipe(5, NO_AUGMENTATION, precision)),
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


def random_images(count: int, size: int) -> NDArray[np.uint8]:
    """Return images (N, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def plain_loop(
    images_NHWC: NDArray[np.uint8], memory: torch.memory_format, precision: str
) -> Callable[[], None]:
    """Return a loop over the images as one writes it with timm alone."""
    network = timm.create_model(BACKBONE, pretrained=False, num_classes=0).eval()
    network = network.to(memory_format=memory)

    def loop() -> None:
        with all_cores(), torch.inference_mode(), autocast(precision):
            for batch in torch.split(torch.from_numpy(images_NHWC), BATCH):
                images = (batch.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
                network(images.contiguous(memory_format=memory))

    return loop


def plain_loops(images_NHWC: NDArray[np.uint8]) -> Ways:
    """Return the plain loops by name."""
    formats = torch.contiguous_format, torch.channels_last
    return {
        "plain_timm": (plain_loop(images_NHWC, formats[0], "fp32"), len(images_NHWC)),
        "plain_channels_last": (plain_loop(images_NHWC, formats[1], "fp32"), len(images_NHWC)),
        "plain_bf16": (plain_loop(images_NHWC, formats[1], "bf16"), len(images_NHWC)),
    }


def extractions(images_NHWC: NDArray[np.uint8]) -> Ways:
    """Return extraction by the store, by its compiled network, and by plain loops.

    The compiled one is what the store does with many images, its compilation left out.
    """
    stack = ExitStack()  # For as long as this process lives.
    ways: dict[str, tuple[Callable[[], object], int]] = {}
    count = len(images_NHWC)
    for precision in ("fp32", "bf16"):
        in_bf16 = precision == "bf16"
        backbone = load_backbone(f"timm/{BACKBONE}", "none", images_NHWC.shape[1])
        extract = stack.enter_context(extracting(backbone, CPU, BATCH, in_bf16))

        def compiled(extract: Callable[[torch.Tensor], object] = extract) -> None:
            with all_cores():
                for batch in torch.split(torch.from_numpy(images_NHWC), BATCH):
                    extract(batch)

        ways[f"store_{precision}"] = (partial(stored, images_NHWC, None, in_bf16), count)
        ways[f"store_{precision}_compiled"] = (compiled, count)
    return ways | plain_loops(images_NHWC)


def whole_extractions(images_NHWC: NDArray[np.uint8]) -> Ways:
    """Return extraction of many images as in a run, and by plain loops."""
    count = len(images_NHWC)
    return {
        "store_fp32_compiled": (partial(stored, images_NHWC, 0, False), count),
        "store_bf16_compiled": (partial(stored, images_NHWC, 0, True), count),
        **plain_loops(images_NHWC),
    }


def stored(images_NHWC: NDArray[np.uint8], compiles_from: int | None, in_bf16: bool) -> None:
    """Have a new store compute features of images."""
    backbone = load_backbone(f"timm/{BACKBONE}", "none", images_NHWC.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(
            Path(folder), backbone, CPU, compiles_from=compiles_from, in_bf16=in_bf16
        )
        store.of(images_NHWC, "a", tell=lambda *_: None)


@contextmanager
def all_cores() -> Iterator[None]:
    """Compute on all cores, as the store does."""
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def autocast(precision: str) -> torch.autocast:
    """Return the context of a precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--labels", type=int, default=1575, help="Labelled samples of a client.")
    parser.add_argument("--images", type=int, default=64, help="Images of an extraction; 0: none.")
    parser.add_argument("--size", type=int, default=160, help="Their height and width.")
    parser.add_argument("--whole", type=int, default=0, help="Images as in a run; 0: none.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/heads.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
