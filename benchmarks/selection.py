"""Cost of each query strategy's selection, against the forward passes that it needs.

For every registered strategy: seconds of `checked_select` on signals that are at hand, as a
ratio to the seconds that ResNet-8 takes to compute them for as many 32x32 images, and the
memory that the selection takes besides. Strategies that compare samples with samples are measured
at three sizes of the pool, to see that they grow linearly, and all once on a large pool of narrow
embeddings, to see that none makes a matrix of all pairs.

    uv run python benchmarks/selection.py

Each strategy runs in a process of its own, on one thread, where passes and selections take
turns, since a shared machine's speed drifts. A pass, whose time is that of its images, goes over a
quarter of them and counts four times; one that is made often is made once. Signals are synthetic:
classes of different size around random centres, rectified, and the logits of a linear layer with
some noise. They are wider than ResNet-8's 64 numbers by default, since wider networks are used,
too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ahfal_app.class_statistics import class_statistics
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models import build_model
from ahfal_app.parameters import Scalar
from ahfal_app.query import (
    LocalOnlyTraining,
    Outputs,
    PoolView,
    QueryContext,
    Signal,
    TrainingContext,
    checked_select,
    make_strategy,
    strategy_class,
    strategy_names,
)
from ahfal_app.results.environment import describe_environment
from ahfal_app.seeds import torch_generator
from ahfal_app.training.local_only import train_local_only_model
from ahfal_app.training.prediction import predict
from ahfal_app.training.sgd import LocalUpdate, Objective, Recipe, train_locally

#: Strategies whose time is measured on parts of the pool, too, and which parts.
GROWTH = dict.fromkeys(
    (
        "badge",
        "centroids",
        "coordinated-max-herding",
        "coordinated-prob-cover",
        "coordinated-typicality",
        "core-set",
        "dcom",
        "drop-query",
        "fairfal",
        "feal",
        "ifal",
        "logo",
        "max-herding",
        "noise-stability",
        "prob-cover",
        "temporal",
        "typicality",
        "uncertainty-herding",
    ),
    (0.25, 0.5),
)

#: Which forward pass gives a signal. Logits and embeddings of a model come from the same.
PASSES = {
    Signal.LOCAL_LOGITS: "local",
    Signal.LOCAL_EMBEDDINGS: "local",
    Signal.GLOBAL_LOGITS: "global",
    Signal.GLOBAL_EMBEDDINGS: "global",
    Signal.LABELLED_LOCAL_EMBEDDINGS: "labelled",
    Signal.LABELLED_GLOBAL_EMBEDDINGS: "labelled",
    Signal.LABELLED_LOCAL_LOGITS: "labelled",
    Signal.LABELLED_GLOBAL_LOGITS: "labelled",
    Signal.LOCAL_HEAD: "head",
    Signal.GLOBAL_HEAD: "head",
    Signal.LOCAL_FLIPS: "watched",
    Signal.TEMPORAL_SPREAD: "watched",
    Signal.TEMPORAL_PROBABILITIES: "watched",
    Signal.LOCAL_FEATURE_MAPS: "local",
    Signal.PERTURBED_LOCAL_MODEL: "noisy",
    Signal.LOCAL_ONLY_MODEL: "local-only",
}

#: What no forward pass at the time of the selection is needed for: the passes of what is watched
#: are made during training.
WITHOUT_PASS = frozenset({"head", "watched"})


# Pieces of memory from this size on are given back to the system when they are freed.
_M_MMAP_THRESHOLD = -3
_GIVEN_BACK_FROM = 1 << 16

# Of the last feature map; ResNet-8 has as many.
_MAP_CHANNELS = 64


# Seconds of a selection from which on it is timed once: noise is small beside it.
_LONG_S = 5.0

# A pass goes over one of so many parts of the images.
_SHARE = 4

# Of a local-only model's training so many are timed.
_TIMED_EPOCHS = 3

#: Of strategies that ask a local-only model in some cases alone: those in which they do.
_ASKING_LOCAL_ONLY: dict[str, Mapping[str, Scalar]] = {
    "fairfal": {"model": "local-only"},
    "coordinated-fairfal": {"model": "local-only"},
}

#: Labelled samples, classes, width of the embeddings and budget beside a large pool.
_LARGE = (500, 10, 64, 100)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the problem."""

    pool: int
    labelled: int
    classes: int
    width: int
    budget: int


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    sizes = Sizes(
        arguments.pool, arguments.labelled, arguments.classes, arguments.width, arguments.budget
    )
    result: dict[str, Any] = {
        "benchmark": "selection",
        "environment": describe_environment(
            class_names=[], data_fingerprint="synthetic", partition_fingerprint=None
        ),
        "settings": {**asdict(sizes), "seed": arguments.seed, "repeats": arguments.repeats},
        "threads": 1,
        "strategies": {},
        "not_measured": {},
        "growth": {},
        "large_pool": {},
        "extra_training_seconds": {},
    }
    for name in arguments.strategies or strategy_names():
        unknown = strategy_class(name).signals - PASSES.keys()
        if unknown:
            needs = ", ".join(sorted(signal.value for signal in unknown))
            result["not_measured"][name] = f"needs {needs}"
            continue
        measure = partial(_in_own_process, name, arguments.seed)
        result["strategies"][name] = measure(arguments.repeats, sizes)
        for fraction in GROWTH.get(name, ()):
            size = int(sizes.pool * fraction)
            smaller = Sizes(size, sizes.labelled, sizes.classes, sizes.width, sizes.budget)
            result["growth"].setdefault(name, {})[size] = measure(
                arguments.repeats, smaller, with_passes=False
            )
        if arguments.large_pool:
            large = Sizes(arguments.large_pool, *_LARGE)
            result["large_pool"][name] = asdict(large) | measure(1, large, with_passes=False)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name in result["strategies"]:
        if parts := _extra_training(name, sizes, arguments.seed):
            result["extra_training_seconds"][name] = parts
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(_markdown(result))


def _extra_training(name: str, sizes: Sizes, seed: int) -> dict[str, float]:
    """Return seconds of what a strategy trains besides, or trains differently, with what it is."""
    torch.set_num_threads(1)
    if name == "feal":
        return _feal_training(sizes, seed)
    signals = strategy_class(name).signals
    return _local_only_training(name, sizes, seed) if Signal.LOCAL_ONLY_MODEL in signals else {}


def _local_only_training(name: str, sizes: Sizes, seed: int) -> dict[str, float]:
    """Return the seconds of an epoch of a strategy's local-only training; it may end early."""
    models = _Models(_signals(seed, Sizes(400, 40, sizes.classes, sizes.width, 40)), Counter())
    _select(name, models, seed, 40, _ASKING_LOCAL_ONLY.get(name))
    training = models.training
    if training is None:
        return {}
    images, rows_N = _images(seed, sizes), torch.arange(sizes.labelled)
    labels_N = torch.arange(sizes.labelled) % sizes.classes
    model, teacher = (build_model("resnet8", (32, 32, 3), sizes.classes, i) for i in range(2))
    generator = torch_generator(seed, "benchmark-training")
    short = replace(training, epochs=_TIMED_EPOCHS, stop_accuracy=2.0, patience=0)
    train = partial(
        train_local_only_model,
        model,
        images,
        rows_N,
        labels_N,
        augmentation=Augmentation(4, True),
        precision="fp32",
        generator=generator,
        teacher=teacher.eval() if training.distil_weight else None,
    )
    short = replace(training, epochs=1, stop_accuracy=2.0, patience=0)
    train(training=short)  # The first one prepares.
    seconds = _seconds(partial(train, training=replace(short, epochs=_TIMED_EPOCHS)))
    what = f"an epoch, of at most {training.epochs}, of the local-only model"
    return {what: seconds / _TIMED_EPOCHS}


def _feal_training(sizes: Sizes, seed: int) -> dict[str, float]:
    """Return the seconds of a local epoch with FEAL's loss and with cross-entropy."""
    images, rows_N = _images(seed, sizes), torch.arange(sizes.labelled)
    labels_N = torch.arange(sizes.labelled) % sizes.classes
    counts_C = np.bincount(labels_N.numpy(), minlength=sizes.classes)
    context = TrainingContext(sizes.classes, counts_C, round=1)
    recipe = Recipe(1, 128, 0.1, 0.9, 5e-4, 0, 0.1, Augmentation(4, True), "fp32", False)
    seconds = {}
    for name, loss in (
        ("an epoch with the evidential loss", make_strategy("feal").training_loss(context)),
        ("an epoch with cross-entropy", cross_entropy),
    ):
        if loss is None:
            raise RuntimeError("feal has no loss of its own")
        model = build_model("resnet8", (32, 32, 3), sizes.classes, 0)
        generator = torch_generator(seed, "benchmark-training")
        objective = Objective(loss)
        update = LocalUpdate(model, images, rows_N, labels_N, recipe, None, generator, objective)
        seconds[name] = _seconds(partial(train_locally, update))
    return seconds


def _in_own_process(
    name: str, seed: int, repeats: int, sizes: Sizes, with_passes: bool = True
) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        arguments = (name, seed, repeats, sizes, with_passes)
        measured: dict[str, Any] = pool.apply(_measure, arguments)
    return measured


def _measure(name: str, seed: int, repeats: int, sizes: Sizes, with_passes: bool) -> dict[str, Any]:
    """Return times, ratio and memory of one strategy; runs in a process of its own."""
    torch.set_num_threads(1)
    # Libraries are loaded and their buffers made by a small selection.
    small = _signals(seed, Sizes(400, 40, sizes.classes, sizes.width, 40))
    _select(name, _Models(small, Counter()), seed, 40)
    signals = _signals(seed, sizes)

    def run() -> Counter[str]:
        return _select(name, _Models(signals, Counter()), seed, sizes.budget)

    start = time.perf_counter()
    used, memory = _peak_memory(run)
    if time.perf_counter() - start > _LONG_S:
        repeats = 1
    if not with_passes:
        seconds = statistics.median(_seconds(run) for _ in range(repeats))
        return {"selection_seconds": seconds, "extra_memory_mib": memory / 2**20}
    images = _images(seed, sizes)
    passes, selections = [], []
    _pass_seconds(images, Counter({"local": 1}), sizes)  # The first one prepares.
    for _ in range(repeats):
        passes.append(_pass_seconds(images, used, sizes))
        selections.append(_seconds(run))
    ratios = [s / p for s, p in zip(selections, passes, strict=True) if p]
    return {
        "passes": dict(used),
        "pass_seconds": statistics.median(passes),
        "selection_seconds": statistics.median(selections),
        "ratio": statistics.median(ratios) if used else None,
        "extra_memory_mib": memory / 2**20,
    }


class _Models:
    """Stands in for models that are made for a selection; counts the passes they would cost.

    Attributes
    ----------
    training : LocalOnlyTraining | None
        What a model was to be trained by, where one was asked for.
    """

    def __init__(self, signals: dict[Signal, Tensor], used: Counter[str]) -> None:
        self.signals = signals
        self.used = used
        self.training: LocalOnlyTraining | None = None

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        """Return the local outputs, moved by something that depends on the draw."""
        self.used["noisy"] += 1
        move = 1e-3 * math.sin(self.used["noisy"])
        logits_NC = self.signals[Signal.LOCAL_LOGITS]
        return Outputs(logits_NC.roll(1, 0).mul_(move).add_(logits_NC), self._embeddings)

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        """Return the local outputs as those of a model of the client's own."""
        self.used["local-only"] = 1
        self.training = training
        return Outputs(self.signals[Signal.LOCAL_LOGITS], self._embeddings)

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        """Return the labelled set's local outputs as those of a model of the client's own."""
        self.used["labelled"] = 1
        logits_LC = self.signals[Signal.LABELLED_LOCAL_LOGITS]
        return Outputs(logits_LC, self.signals[Signal.LABELLED_LOCAL_EMBEDDINGS])

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        """Return both sets' local embeddings as those of a model of the client's own."""
        pool, labelled = self.local_only(training), self.local_only_labelled(training)
        return pool.embeddings_ND, labelled.embeddings_ND

    @property
    def _embeddings(self) -> Tensor:
        return self.signals[Signal.LOCAL_EMBEDDINGS]


def _select(
    name: str,
    models: _Models,
    seed: int,
    budget: int,
    parameters: Mapping[str, Scalar] | None = None,
) -> Counter[str]:
    """Select once; return the forward passes that the signals used would have cost."""
    signals, used = models.signals, models.used

    def source(signal: Signal) -> Tensor:
        if PASSES[signal] not in WITHOUT_PASS:
            used[PASSES[signal]] = 1
        return signals[signal]

    size, classes = signals[Signal.LOCAL_LOGITS].shape
    sources: dict[Signal, Callable[[], Tensor]] = {s: partial(source, s) for s in signals}
    histograms = np.random.default_rng(seed).integers(0, 40, (10, classes))
    context = QueryContext(
        budget=budget,
        num_classes=classes,
        class_counts_C=histograms[0],
        # Half of the classes above, half below.
        statistics=class_statistics(histograms, tau=_middle_deviation(histograms)),
        seed=seed,
        client=0,
        cycle=1,
        labels_L=np.arange(len(signals[Signal.LABELLED_LOCAL_LOGITS])) % classes,
    )
    pool = PoolView(np.arange(size), sources, models)
    checked_select(make_strategy(name, parameters), pool, context)
    return used


def _middle_deviation(histograms: np.ndarray) -> float:
    shares = histograms / histograms.sum(axis=1, keepdims=True)
    return float(np.median(100 * shares.std(axis=0)))


def _signals(seed: int, sizes: Sizes) -> dict[Signal, Tensor]:
    """Return every signal of a made-up client."""
    generator = torch_generator(seed, "benchmark-signals")
    randn = partial(torch.randn, generator=generator)
    centres_CD = randn(sizes.classes, sizes.width)
    head_DC = normalize(torch.relu(centres_CD), dim=1).T
    shares_C = torch.softmax(randn(sizes.classes), dim=0)
    directions_CKD = randn(sizes.classes, 8, sizes.width) / 2

    def embeddings(size: int) -> Tensor:
        labels = torch.multinomial(shares_C, size, replacement=True, generator=generator)
        # Within a class, samples vary most in a few directions, as a network's features do.
        inside = torch.empty(size, sizes.width)
        for c in range(sizes.classes):
            members = labels == c
            inside[members] = randn(int(members.sum()), 8) @ directions_CKD[c]
        return torch.relu(centres_CD[labels] + inside + randn(size, sizes.width) / 2)

    def logits(embeddings_ND: Tensor) -> Tensor:
        cosines_NC = normalize(embeddings_ND, dim=1) @ head_DC
        return 20 * cosines_NC + randn(len(embeddings_ND), sizes.classes)

    local_ND = embeddings(sizes.pool)
    global_ND = torch.relu(local_ND + randn(sizes.pool, sizes.width) / 4)
    labelled_local_LD, labelled_global_LD = embeddings(sizes.labelled), embeddings(sizes.labelled)
    head_CD = torch.cat([20 * head_DC.T, torch.zeros(sizes.classes, 1)], dim=1)
    return {
        Signal.LABELLED_LOCAL_LOGITS: logits(labelled_local_LD),
        Signal.LABELLED_GLOBAL_LOGITS: logits(labelled_global_LD),
        Signal.LOCAL_HEAD: head_CD,
        Signal.GLOBAL_HEAD: head_CD,
        Signal.LOCAL_FLIPS: torch.randint(0, 5, (sizes.pool, 1), generator=generator).float(),
        Signal.TEMPORAL_SPREAD: randn(sizes.pool, 1).abs(),
        Signal.TEMPORAL_PROBABILITIES: torch.softmax(randn(sizes.pool, sizes.classes), dim=1),
        Signal.LOCAL_EMBEDDINGS: local_ND,
        Signal.LOCAL_LOGITS: logits(local_ND),
        Signal.GLOBAL_EMBEDDINGS: global_ND,
        Signal.GLOBAL_LOGITS: logits(global_ND),
        Signal.LABELLED_LOCAL_EMBEDDINGS: labelled_local_LD,
        Signal.LABELLED_GLOBAL_EMBEDDINGS: labelled_global_LD,
        Signal.LOCAL_FEATURE_MAPS: torch.relu(randn(sizes.pool, 9 * _MAP_CHANNELS)),
    }


def _images(seed: int, sizes: Sizes) -> DeviceImages:
    size = max(sizes.pool, sizes.labelled)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    images = Images(pixels, np.zeros(size, dtype=np.int64))
    return DeviceImages(images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device("cpu"))


def _pass_seconds(images: DeviceImages, used: Counter[str], sizes: Sizes) -> float:
    """Return the seconds of ResNet-8's passes that the signals need."""
    model = build_model("resnet8", (32, 32, 3), sizes.classes, 0)
    seconds = 0.0
    for which, count in used.items():
        size = sizes.labelled if which == "labelled" else sizes.pool
        rows = torch.arange(max(1, size // _SHARE))
        seconds += count * size / len(rows) * _seconds(partial(predict, model, images, rows))
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_memory(work: Callable[[], Counter[str]]) -> tuple[Counter[str], int]:
    """Return the work's result, and by how many bytes resident memory rose at its peak."""
    # What is free goes back to the system, before the work, or it would not be counted, and
    # during it, or what the work has freed would be.
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, _GIVEN_BACK_FROM)
    library.malloc_trim(0)
    # Linux sets the peak back to the present size when a 5 is written here.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    result = work()
    return result, max(0, _memory("VmHWM") - before)


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def _markdown(result: dict[str, Any]) -> str:
    lines = [
        "| strategy | passes | pass, s | selection, s | ratio | extra memory, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, measured in result["strategies"].items():
        lines.append(_row(name, measured))
    for name, by_size in result["growth"].items():
        lines += [_without_passes(name, size, measured) for size, measured in by_size.items()]
    for name, measured in result["large_pool"].items():
        lines.append(_without_passes(name, measured["pool"], measured))
    lines += [f"| {name} | not measured: {why} |" for name, why in result["not_measured"].items()]
    for name, parts in result["extra_training_seconds"].items():
        lines += [f"| {name}: {what} | | {seconds:.1f} | | | |" for what, seconds in parts.items()]
    return "\n".join(lines)


def _row(name: str, measured: dict[str, Any]) -> str:
    passes = " + ".join(measured["passes"]) or "none"
    ratio = "" if measured["ratio"] is None else f"{measured['ratio']:.3f}"
    return (
        f"| {name} | {passes} | {measured['pass_seconds']:.2f} "
        f"| {measured['selection_seconds']:.3f} | {ratio} "
        f"| {measured['extra_memory_mib']:.0f} |"
    )


def _without_passes(name: str, size: int, measured: dict[str, Any]) -> str:
    seconds, memory = measured["selection_seconds"], measured["extra_memory_mib"]
    return f"| {name}, pool of {size} | | | {seconds:.3f} | | {memory:.0f} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="*", default=[], help="by name; all if left out")
    parser.add_argument("--pool", type=int, default=20_000)
    parser.add_argument("--labelled", type=int, default=2_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--budget", type=int, default=1_000)
    parser.add_argument(
        "--large-pool", type=int, default=200_000, help="size; 0: it is not measured"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "selection.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
