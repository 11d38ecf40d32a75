"""What a training step of several clients costs on this device, and its convolutions by layout.

    python3 benchmarks/gpu/steps.py --output steps.json

Each figure is written as soon as it is there: milliseconds of a step, median of `--times`, eager
and replayed as a CUDA graph, in bf16 and fp32, with full batches and with remainders; and of each
convolution of ResNet-8, forward and backward, grouped in either layout, and client by client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models import build_model
from ahfal_app.training.choices import resolve_device
from ahfal_app.training.sgd import Recipe
from ahfal_app.training.together.cuda_graphs import CudaGraphs
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.steps import Batch, ClientConstants, TogetherStep

#: Channels in and out, side and stride of ResNet-8's convolutions with a 3x3 kernel.
CONVOLUTIONS = ((3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 32, 2), (32, 32, 16, 1), (64, 64, 8, 1))


class Figures:
    """Figures by name, in a file that is whole after each."""

    def __init__(self, path: Path, device: torch.device) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self._path = path
        self._values: dict[str, Any] = {"device": name, "torch": torch.__version__}

    def add(self, name: str, measure: Callable[[], object]) -> None:
        """Measure and write; what cannot be measured is written as its error."""
        try:
            value = measure()
        except RuntimeError as error:
            value = f"{type(error).__name__}: {str(error)[:300]}"
        self._values[name] = value
        self._path.write_text(json.dumps(self._values, indent=2) + "\n")
        print(f"{name}: {value}", flush=True)


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    device = resolve_device(arguments.device)
    figures = Figures(arguments.output, device)
    for precision in ("bf16", "fp32"):
        for is_full in (True, False):
            name = f"{precision}, {'full batches' if is_full else 'remainders'}"
            step = _step(device, arguments, precision, is_full)
            figures.add(f"ms of a step, eager, {name}", lambda s=step: _median_ms(s, arguments))  # type: ignore[misc]
            if device.type == "cuda":
                figures.add(
                    f"ms of a step, replayed, {name}",
                    lambda s=step: _median_ms(_replayed(s, device), arguments),  # type: ignore[misc]
                )
    for sizes in CONVOLUTIONS:
        for how, call in _convolutions(device, arguments, *sizes).items():
            figures.add(
                "ms of a convolution {}->{}, {} pixels, stride {}, ".format(*sizes) + how,
                lambda c=call: _median_ms(c, arguments),  # type: ignore[misc]
            )


def _step(
    device: torch.device, arguments: argparse.Namespace, precision: Any, is_full: bool
) -> Callable[[], object]:
    clients, size = arguments.clients, arguments.batch_size
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (5000, 32, 32, 3)).astype(np.uint8)
    images = DeviceImages(
        Images(pixels, draw.integers(0, 10, 5000)), (0.5,) * 3, (0.25,) * 3, device
    )
    recipe = Recipe(5, size, 0.1, 0.9, 5e-4, 260, 0.1, Augmentation(4, True), precision, False)
    model = build_model("resnet8", (32, 32, 3), 10, 0)
    network = StackedNetwork(model, clients, device)
    network.load([model.state_dict()] * clients, [None] * clients)
    zeros_KC = torch.zeros(clients, 10, device=device)
    step = TogetherStep(network, recipe, images, ClientConstants(zeros_KC, zeros_KC), None)
    shape = (clients, size)
    counting_kB = torch.arange(size).expand(shape) < size - 12
    batch = Batch(
        torch.from_numpy(draw.integers(0, 5000, shape)).to(device),
        torch.from_numpy(draw.integers(0, 9, (2, *shape))).to(device),
        torch.from_numpy(draw.integers(0, 2, shape).astype(bool)).to(device),
        None,
        torch.from_numpy(draw.integers(0, 10, shape)).to(device),
        None if is_full else counting_kB.to(device),
    )
    rates_k = torch.full((clients,), 1e-4, dtype=torch.float64, device=device)
    return lambda: step(rates_k, batch, None)


def _replayed(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return what replays a step whose inputs stay where they are."""
    rates_k = torch.zeros(1, device=device)
    zeros_kB = torch.zeros(1, 1, dtype=torch.int64, device=device)
    batch = Batch(zeros_kB, None, None, None, zeros_kB, None)
    return CudaGraphs()(lambda *_: step(), rates_k, batch, None).replay  # type: ignore[arg-type, return-value]


def _convolutions(
    device: torch.device,
    arguments: argparse.Namespace,
    channels: int,
    width: int,
    side: int,
    stride: int,
) -> dict[str, Callable[[], object]]:
    clients, size = arguments.clients, arguments.batch_size
    calls: dict[str, Callable[[], object]] = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        for groups in (clients, 1):
            pairs = [
                (
                    _random((size, groups * channels, side, side), layout, device),
                    _random((groups * width, channels, 3, 3), layout, device),
                )
                for _ in range(clients // groups)
            ]
            how = "grouped" if groups == clients else "client by client"

            def call(pairs: list[tuple[Tensor, Tensor]] = pairs, groups: int = groups) -> object:
                outputs = [
                    conv2d(maps, kernel, stride=stride, padding=1, groups=groups)
                    for maps, kernel in pairs
                ]
                inputs = [tensor for pair in pairs for tensor in pair]
                return torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])

            calls[f"{how}, {str(layout).removeprefix('torch.')}"] = call
    return calls


def _random(shape: tuple[int, ...], layout: torch.memory_format, device: torch.device) -> Tensor:
    values = torch.randn(shape, device=device, dtype=torch.bfloat16)
    return values.to(memory_format=layout).requires_grad_()


def _median_ms(call: Callable[[], object], arguments: argparse.Namespace) -> float:
    def waited() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(arguments.warm_up):
        call()
    taken = []
    for _ in range(arguments.times):
        start = waited()
        for _ in range(arguments.calls):
            call()
        taken.append((waited() - start) / arguments.calls)
    return round(1000 * statistics.median(taken), 4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--times", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--calls", type=int, default=20, help="in each of these")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
