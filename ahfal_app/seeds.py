"""Random generators by key: (seed, purpose, client, cycle, round, ...).

A generator depends on what it is for and never on what was drawn before, so a
retried message, a resumed run and another order of clients all see the same numbers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_sequence(seed: int, purpose: str, *key: int) -> np.random.SeedSequence:
    """Return the seed sequence of a purpose and its key (non-negative integers)."""
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *key])


def numpy_generator(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a NumPy generator for a purpose and its key."""
    return np.random.default_rng(seed_sequence(seed, purpose, *key))


def torch_seed(seed: int, purpose: str, *key: int) -> int:
    """Return a 63-bit seed for torch for a purpose and its key."""
    return int(seed_sequence(seed, purpose, *key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """Return a CPU torch generator for a purpose and its key."""
    import torch

    return torch.Generator().manual_seed(torch_seed(seed, purpose, *key))
