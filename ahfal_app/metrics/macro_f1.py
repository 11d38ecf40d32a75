"""Macro F1: the mean over classes of the harmonic mean of precision and recall.

A class that was tested or predicted counts, with 0 where none of it was right; a class that was
neither does not, as in scikit-learn's `f1_score(average="macro")` over the labels that occur.
"""

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
    occurs_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1)
    has_C = occurs_C > 0
    if not has_C.any():
        return None
    return float((2 * confusion_CC.diagonal()[has_C] / occurs_C[has_C]).mean())
