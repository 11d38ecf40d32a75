"""Models that small runs have left, for tests of their use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from support.small_backbone import SETTINGS

#: One cycle of one round on some digits.
QUICK: dict[str, object] = {
    "model": "auto",
    "cycles": 1,
    "rounds": 1,
    "max-train-samples": 120,
    "max-test-samples": 60,
    "strategy": "random",
}

#: A network of ours, a frozen backbone with a head, and a backbone of which a part is trained.
KINDS: dict[str, dict[str, object]] = {
    "network": QUICK,
    "head": {**QUICK, **SETTINGS, "model.normalise": "unit"},
    "tuned": {**QUICK, **SETTINGS, "tune": "conv_head,bn2,head"},
}


def digits(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return images of the shape that digits have."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
