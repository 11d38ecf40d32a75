"""A backbone that is tiny and untrained, and files of weights for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


def features_in(data_dir: Path) -> dict[bytes, bytes]:
    """Return the features of the only store, by the hash of their image; nothing else is there."""
    (folder,) = (path for path in (data_dir / "features").iterdir() if path.is_dir())
    width = small_backbone().features
    values_MD = np.fromfile(folder / "features.f16", np.float16).reshape(-1, width)
    digests_MB = np.fromfile(folder / "digests.bin", np.uint8).reshape(-1, 32)
    found = {
        digest.tobytes(): values_D.tobytes()
        for digest, values_D in zip(digests_MB, values_MD, strict=True)
    }
    assert len(found) == len(values_MD), "features that are there twice"
    others = {path.name for path in folder.iterdir() if not path.name.startswith("rows-")}
    assert others == {"features.f16", "digests.bin"}
    return found
