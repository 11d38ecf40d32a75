"""A backbone that is tiny and untrained, and files of weights for it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ahfal_app.backbones import Backbone, load_backbone

#: timm's smallest network, made for tests.
NAME = "timm/test_efficientnet"

#: Settings of a run with it.
SETTINGS: dict[str, object] = {
    "backbone": NAME,
    "backbone-weights": "none",
    "backbone-size": 32,
}


def small_backbone(weights: str = "none", size: int = 32) -> Backbone:
    return load_backbone(NAME, weights, size)


def write_weights(path: Path, change: float = 0.0) -> Path:
    """Write the network's weights, changed a little where that is wanted."""
    network: nn.Module = small_backbone().network
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    first = next(iter(state))
    state[first] = state[first] + change
    save_file(state, path)
    return path
