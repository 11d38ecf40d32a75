"""Otsu's threshold: where values part into two groups of the most different means.

Otsu, A threshold selection method from gray-level histograms, IEEE Transactions on Systems, Man,
and Cybernetics 9, 1979, equation 18, of the values themselves instead of a histogram.

Shape suffixes: N values, K places between neighbours in order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: Places whose criteria differ by no more than this share of the larger are equal.
_SAME = 1e-9


def otsu_neighbours(values_N: ArrayLike, tolerance: float = 0.0) -> tuple[float, float] | None:
    """Return the two neighbours in order between which values part.

    Of all places between neighbours the one with the largest w₁ w₂ (μ₁ - μ₂)², for the groups'
    shares w and means μ; among equal ones the lowest.

    Parameters
    ----------
    values_N : ArrayLike
        Finite values. Shape (N,).
    tolerance : float
        Neighbours that differ by no more are of one group, whatever rounding says.

    Returns
    -------
    tuple[float, float] | None
        None where no neighbours differ, or there is one value.
    """
    sorted_N = np.sort(np.asarray(values_N, np.float64))
    if not len(sorted_N) or sorted_N[-1] - sorted_N[0] <= tolerance:
        return None
    below_K = np.arange(1, len(sorted_N))
    above_K = len(sorted_N) - below_K
    sum_K = np.cumsum(sorted_N)[:-1]
    gap_K = sum_K / below_K - (sorted_N.sum() - sum_K) / above_K
    between_K = np.where(np.diff(sorted_N) > tolerance, below_K * above_K * gap_K**2, -1.0)
    if between_K.max() < 0:
        return None
    best = int((between_K >= between_K.max() * (1 - _SAME)).argmax())
    return float(sorted_N[best]), float(sorted_N[best + 1])
