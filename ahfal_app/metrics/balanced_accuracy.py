"""Balanced accuracy: the mean of the accuracies of the classes that were tested."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def measure(confusion_CC: NDArray[np.int64]) -> float | None:
    """Return it, in [0, 1]; None without test samples.

    Parameters
    ----------
    confusion_CC : NDArray[np.int64]
        Test samples by true class (row) and predicted class (column).
    """
    tested_C = confusion_CC.sum(axis=1)
    has_C = tested_C > 0
    if not has_C.any():
        return None
    return float((confusion_CC.diagonal()[has_C] / tested_C[has_C]).mean())
