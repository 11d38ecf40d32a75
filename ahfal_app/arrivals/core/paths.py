"""Paths along which data change over the cycles of a run.

Shape suffix: T cycles.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

#: How far data have changed: steadily from the first cycle to the last; all at once in the middle;
#: there and back again.
Path = Literal["linear", "sudden", "recurring"]

PATHS: tuple[str, ...] = get_args(Path)

#: Paths on which what has happened depends on how many cycles there will be.
BY_LENGTH = frozenset({"linear", "sudden"})


def changed(path: Path, num_cycles: int, period: int) -> NDArray[np.float64]:
    """Return how far data have changed in each cycle, from 0 to 1. Shape (T,).

    Parameters
    ----------
    path : str
        `linear`: t / (T - 1); `sudden`: 0 before cycle ⌈T / 2⌉, then 1; `recurring`:
        (1 - cos(2π t / period)) / 2.
    num_cycles : int
        T, at least 1.
    period : int
        Cycles until `recurring` is back where it was, at least 2.
    """
    cycles_T = np.arange(num_cycles)
    if path == "linear":
        return cycles_T / max(1, num_cycles - 1)
    if path == "sudden":
        return (cycles_T >= -(-num_cycles // 2)).astype(np.float64)
    # By the place within the period, so that each period is the same to the last bit.
    return (1 - np.cos(2 * np.pi * (cycles_T % period) / period)) / 2
