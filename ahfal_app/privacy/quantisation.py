"""A client's class proportions as integers modulo 2^64, and what their sums say.

Shape suffixes: C classes, D = 2 C + 1 entries: 1, then p, then p².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahfal_app.errors import SecureAggregationFailed

#: Integers per unit: each entry is rounded to a step of 2^-40, by at most 2^-41. So the mean is
#: off by at most 2^-41 and the variance by 3 · 2^-41 (and 2^-82); a deviation σ by 3 · 2^-42 / σ
#: to first order, and never by more than 1.2e-6. At σ = 0.12 this is 6e-10 percentage points,
#: below the tolerance with which τ is compared. Sums over fewer than 2^23 clients fit.
UNITS = 2**40


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the clients of a secure sum.

    Attributes
    ----------
    num_clients : int
        How many of them have labels, M.
    proportions_C : NDArray[np.float64]
        Sum of their class proportions, Σp.
    squares_C : NDArray[np.float64]
        Sum of the squared class proportions, Σp².
    """

    num_clients: int
    proportions_C: NDArray[np.float64]
    squares_C: NDArray[np.float64]


def quantise(proportions_C: ArrayLike) -> NDArray[np.uint64]:
    """Return (1, p, p²) in units of 2^-40, uint64 (D,); all zeros where p is.

    Their sums over the clients are all that mean and deviation need (AHFAL paper, equation 2).
    """
    p_C = np.asarray(proportions_C, dtype=np.float64)
    entries_D = np.concatenate([[float(p_C.any())], p_C, p_C**2])
    quantised_D: NDArray[np.uint64] = np.rint(entries_D * UNITS).astype(np.uint64)
    return quantised_D


def dequantise(sum_D: NDArray[np.uint64], contributors: int) -> Sums:
    """Return what a sum of quantised vectors says.

    Parameters
    ----------
    sum_D : NDArray[np.uint64]
        The sum modulo 2^64.
    contributors : int
        Number of clients with labels that should be in it.

    Raises
    ------
    SecureAggregationFailed
        It cannot be the sum of that many vectors: a share or a vector was wrong.
    """
    num_classes = len(sum_D) // 2
    values_D = sum_D / UNITS
    total = values_D[1 : 1 + num_classes].sum()
    rounding = contributors * num_classes / UNITS
    if (
        int(sum_D[0]) != contributors * UNITS
        or abs(total - contributors) > rounding
        or values_D.max() > contributors
    ):
        raise SecureAggregationFailed(
            f"what was unmasked is no sum over {contributors} clients with labels: a client sent "
            "a share or a vector that does not fit"
        )
    return Sums(contributors, values_D[1 : 1 + num_classes], values_D[1 + num_classes :])
