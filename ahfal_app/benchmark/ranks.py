"""Several methods on several data sets: mean ranks, and which of them can be told apart.

After J. Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006), and,
for pairs, A. Benavoli, G. Corani and F. Mangili, Should we really use post-hoc tests based on
mean-ranks?, JMLR 17 (2016): whether two methods differ by mean ranks hangs on which others take
part; by Wilcoxon's test of the two it does not.

Shapes: M methods, B blocks (what all methods were run on).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

#: Probability of finding a difference where there is none.
LEVEL = 0.05


@dataclass(frozen=True)
class Friedman:
    """Friedman's test of whether all methods are equal, with Iman and Davenport's F.

    `chi_square` has `df` degrees of freedom; `f`, which is less conservative, `df` and `df_error`,
    and `p` is its p-value.
    """

    chi_square: float
    f: float
    df: int
    df_error: int
    p: float


def ranks(values_MB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks (M, B) of methods in each block: 1 is the highest value, equals share theirs."""
    return np.asarray(stats.rankdata(-values_MB, axis=0), np.float64)


def friedman(ranks_MB: NDArray[np.float64]) -> Friedman | None:
    """Test whether methods differ at all, by their ranks (Demšar, section 3.2.2).

    Without correction for ties, as published there; equals make it conservative.

    Parameters
    ----------
    ranks_MB : NDArray[np.float64]
        From `ranks`.

    Returns
    -------
    Friedman | None
        None for fewer than 2 methods or blocks.
    """
    methods, blocks = ranks_MB.shape
    if methods < 2 or blocks < 2:
        return None
    mean_M = ranks_MB.mean(axis=1)
    middle = methods * (methods + 1) ** 2 / 4
    factor = 12 * blocks / (methods * (methods + 1))
    chi_square = float(factor * ((mean_M**2).sum() - middle))
    left = blocks * (methods - 1) - chi_square
    df, df_error = methods - 1, (methods - 1) * (blocks - 1)
    # All blocks agree in the whole order: no chance at all.
    f = math.inf if left <= 1e-9 else (blocks - 1) * chi_square / left
    p = 0.0 if math.isinf(f) else float(stats.f.sf(f, df, df_error))
    return Friedman(chi_square, f, df, df_error, p)


def critical_difference(methods: int, blocks: int, level: float = LEVEL) -> float:
    """Return by how much two mean ranks must differ (Nemenyi; Demšar, section 3.2.2).

    q √(k (k + 1) / 6 N), with q of the Studentized range for k methods and infinitely many degrees
    of freedom, divided by √2.

    Parameters
    ----------
    methods, blocks : int
        k, at least 2, and N.
    level : float
        Probability that any two of equal methods are told apart.
    """
    q = stats.studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def groups(mean_ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return which neighbours in the order of their mean ranks cannot be told apart.

    Parameters
    ----------
    mean_ranks : Sequence[float]
        In ascending order.
    difference : float
        From `critical_difference`.

    Returns
    -------
    list[tuple[int, int]]
        First and last place of each group of at least two that is part of no larger one.
    """
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(mean_ranks):
        last = max(place for place, other in enumerate(mean_ranks) if other - rank < difference)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def signed_rank(differences_B: Sequence[float]) -> float | None:
    """Return the p-value of Wilcoxon's signed-rank test, two-sided.

    Blocks of no difference are ranked with the others, and their ranks are left out (Pratt).

    Parameters
    ----------
    differences_B : Sequence[float]
        Of two methods, block by block.

    Returns
    -------
    float | None
        None for fewer than 2 blocks; 1 where all are equal.
    """
    values_B = np.asarray(differences_B, np.float64)
    if len(values_B) < 2:
        return None
    if not values_B.any():
        return 1.0
    return float(stats.wilcoxon(values_B, zero_method="pratt").pvalue)
