"""What a training step of ResNet-8 on a CPU costs, as it is and in the ways that were tried.

    uv run python benchmarks/step.py
    uv run python benchmarks/step.py --ways "as it is" "eager" --turns 9

Images of CIFAR-10's shape (random), batches of 128 on one thread. The ways take turns in one
process; told are medians of processor time, and how many times as fast as it is now each way is.
Compiling and three steps to warm up come first and do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from ahfal_app.models import Classifier, build_model
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.results.environment import describe_environment

_SHAPE, _CLASSES, _BATCH = (32, 32, 3), 10, 128
_WARM_UP = 3

Step = Callable[[], None]


class PairedConv2d(nn.Module):
    """A convolution on pairs of neighbouring pixels: twice the channels, half the width.

    In channels_last a pair's channels lie side by side, so that this is a view. Half of the larger
    kernel is zero: twice the products, in a shape that may suit the processor better.

    Parameters
    ----------
    of : nn.Conv2d
        3 x 3, stride 1, padded by 1; the maps' width is even.
    """

    def __init__(self, of: nn.Conv2d) -> None:
        super().__init__()
        self.weight = of.weight

    def forward(self, maps_BcHW: Tensor) -> Tensor:
        """Return what the convolution returns."""
        batch, channels, height, width = maps_BcHW.shape
        pairs = maps_BcHW.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels)
        made = conv2d(pairs.permute(0, 3, 1, 2), self._kernel(), padding=1)
        out = made.permute(0, 2, 3, 1).reshape(batch, height, width, len(self.weight))
        return out.permute(0, 3, 1, 2)

    def _kernel(self) -> Tensor:
        outputs, inputs = self.weight.shape[:2]
        kernel = self.weight.new_zeros(2, outputs, 2, inputs, 3, 3)
        for to in range(2):
            for pair in range(3):
                for of in range(2):
                    column = 2 * (pair - 1) + of - to + 1
                    if 0 <= column < 3:
                        kernel[to, :, of, :, :, pair] = self.weight[..., column]
        flat = kernel.view(2 * outputs, 2 * inputs, 3, 3)
        return flat.contiguous(memory_format=torch.channels_last)


class _UnfoldedGradient(torch.autograd.Function):
    """A 3 x 3 convolution whose weights' gradient is one product with all patches."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return conv2d(maps, weight, padding=1)

    @staticmethod
    # Torch declares it with any number of gradients; there is one.
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        maps, weight = ctx.saved_tensors
        by_maps = torch.nn.grad.conv2d_input(maps.shape, weight, gradient, padding=1)
        padded = nn.functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(0, 2).flatten(1)
        flat = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        by_weight = (flat.T @ patches).view_as(weight)
        return by_maps, by_weight.to(weight.dtype)


class UnfoldedConv2d(nn.Module):
    """Has `_UnfoldedGradient`."""

    def __init__(self, of: nn.Conv2d) -> None:
        super().__init__()
        self.weight = of.weight

    def forward(self, maps: Tensor) -> Tensor:
        """Return what the convolution returns."""
        made: Tensor = _UnfoldedGradient.apply(maps, self.weight.to(maps.dtype))
        return made


def _is_first_stage(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and (layer.in_channels, layer.out_channels) == (16, 16)


def _replaced(model: Classifier, by: Callable[[nn.Conv2d], nn.Module]) -> Classifier:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and _is_first_stage(layer):
            model.set_submodule(name, by(layer))
    return model


def _with_torchs_norm(model: Classifier) -> Classifier:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BatchNorm2d):
            plain = nn.BatchNorm2d(layer.num_features)
            plain.load_state_dict(layer.state_dict())
            model.set_submodule(name, plain)
    return model


def _same(model: Classifier) -> Classifier:
    return model


def make_step(
    change: Callable[[Classifier], Classifier] = _same,
    precision: str = "bf16",
    compiled: bool = True,
    channels_last: bool = True,
    options: dict[str, Any] | None = None,
    batch: int = _BATCH,
) -> Step:
    """Return a step of SGD on one batch, forward, backward and descent."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = change(build_model("resnet8", _SHAPE, _CLASSES, 0)).to(memory_format=layout).train()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=draw).to(memory_format=layout)
    labels = torch.randint(0, _CLASSES, (batch,), generator=draw)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True
    )

    def loss_of(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
        return cross_entropy(logits.float(), labels)

    compiled_loss = torch.compile(loss_of, dynamic=False, options=options) if compiled else loss_of

    def step() -> None:
        optimiser.zero_grad()
        compiled_loss(images).backward()
        optimiser.step()

    return step


_WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "eager": {"compiled": False},
    "single precision": {"precision": "fp32"},
    "single precision, eager": {"precision": "fp32", "compiled": False},
    "channels first": {"channels_last": False},
    "torch's batch norm": {"change": _with_torchs_norm},
    "max-autotune": {"options": {"max_autotune": True}},
    "no contraction": {"options": {"cpp.enable_floating_point_contract_flag": "off"}},
    "vectors of 256 bits": {"options": {"cpp.simdlen": 256}},
    "pairs of pixels in the first stage": {"change": lambda m: _replaced(m, PairedConv2d)},
    "pairs of pixels, eager": {
        "change": lambda m: _replaced(m, PairedConv2d),
        "compiled": False,
    },
    "weights' gradient by one product, eager": {
        "change": lambda m: _replaced(m, UnfoldedConv2d),
        "compiled": False,
    },
    "batches of 16": {"batch": 16},
    "batches of 32": {"batch": 32},
    "batches of 64": {"batch": 64},
    "batches of 256": {"batch": 256},
}


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = _arguments()
    torch.set_num_threads(1)
    rates = measure(arguments.ways, arguments.turns)
    base = rates.get("as it is")
    result = {
        "benchmark": "step",
        "samples_per_processor_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_as_fast": {n: round(r / base, 3) for n, r in rates.items()} if base else {},
        "turns": arguments.turns,
        "load": os.getloadavg(),
        "environment": describe_environment(
            class_names=[], data_fingerprint="", partition_fingerprint=None
        ),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS), help="all of them")
    parser.add_argument("--turns", type=int, default=15, help="of all ways; default 15")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step.json"))
    return parser.parse_args()


def measure(names: list[str], turns: int) -> dict[str, float]:
    """Return samples per second of processor time by way; the ways take turns."""
    torch._dynamo.config.recompile_limit = len(_WAYS) + 1
    steps = {name: make_step(**_WAYS[name]) for name in names}
    for step in steps.values():
        for _ in range(_WARM_UP):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {
        name: _WAYS[name].get("batch", _BATCH) / statistics.median(taken)
        for name, taken in seconds.items()
    }


if __name__ == "__main__":
    main()
