"""What a step of training costs where batches are tiny: processor time of a client's epoch.

A client of 50 images of CIFAR-10's shape (synthetic), one epoch in batches of 10 with crops and
mirroring, `small-cnn` in fp32 on one thread: there the calls around the arithmetic are what counts.

    uv run python benchmarks/small_batches.py
    uv run python benchmarks/small_batches.py --against ../before

`--against` names another checkout of the project, measured in turns with ours, each in a process of
its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models import build_model
from ahfal_app.results.environment import describe_environment
from ahfal_app.training.sgd import LocalUpdate, Recipe, train_locally

_SHAPE, _CLASSES = (32, 32, 3), 10
_RECIPE = Recipe(
    local_epochs=1,
    batch_size=10,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    lr_decay_epochs=0,
    lr_decay_factor=1.0,
    augmentation=Augmentation(4, True),
    precision="fp32",
    compile=False,
)


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    if arguments.measure:
        print(json.dumps(_measure(arguments.images, arguments.epochs)))
        return
    checkouts = {"now": Path(__file__).parents[1]}
    if arguments.against is not None:
        # Of a folder that is none, Python would take the installed package, which is ours.
        if not (arguments.against / "ahfal_app").is_dir():
            sys.exit(
                f"--against={arguments.against}: allowed is a checkout, with `ahfal_app/` in it"
            )
        checkouts = {"before": arguments.against.resolve(), **checkouts}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    result: dict[str, Any] = {
        "benchmark": "small_batches",
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
        "images": arguments.images,
        "batch_size": _RECIPE.batch_size,
        "runs": runs,
    }
    for _ in range(arguments.turns):
        for name, folder in checkouts.items():
            runs[name].append(_in_process(folder))
            print(name, runs[name][-1], flush=True)
    result["ms_per_step"] = {
        name: statistics.median(run["ms_per_step"] for run in measured)
        for name, measured in runs.items()
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ms_per_step"]))


def _in_process(checkout: Path) -> dict[str, float]:
    """Measure a checkout's code, in a process of its own."""
    arguments = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--measure"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
    run: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return run


def _measure(num_images: int, epochs: int) -> dict[str, float]:
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (num_images, *_SHAPE)).astype(np.uint8)
    labels = draw.integers(0, _CLASSES, num_images)
    images = DeviceImages(Images(pixels, labels), (0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    model = build_model("small-cnn", _SHAPE, _CLASSES, 0).to(memory_format=torch.channels_last)
    rows = torch.arange(num_images)
    state, spent = None, []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(epoch)
        start = time.process_time()
        update = LocalUpdate(model, images, rows, images.labels_N, _RECIPE, state, generator)
        state = train_locally(update).state
        spent.append(time.process_time() - start)
    steps = -(-num_images // _RECIPE.batch_size)
    return {"ms_per_step": statistics.median(spent) * 1000 / steps, "load": os.getloadavg()[0]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="of the client")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "small_batches.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
