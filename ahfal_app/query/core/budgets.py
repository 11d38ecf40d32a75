"""Class budgets: how many samples of each class to take, in exact integer arithmetic.

Weights are rational numbers and are compared exactly: two classes whose shares tie on
paper must also tie here, for the lowest class to win. Shape suffix: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

#: Differences of proportions are counted in steps of one over this.
GAP_STEPS = 10**12

#: A weight; a float stands for the binary fraction that it is.
Weight = int | float | Fraction


def inverse_count_weights(counts_C: Iterable[float]) -> tuple[Fraction, ...]:
    """Return the weights of equation 4 of the AHFAL paper: 1/count, and 1 for a count of 0.

    As printed, a class without labels weighs the same as one with a single label.

    Parameters
    ----------
    counts_C : Iterable[float]
        Labelled samples of each class; no whole numbers where old labels count less.
    """
    return tuple(1 / max(_exact(count), Fraction(1)) for count in counts_C)


def shortfall_weights(counts_C: Iterable[float], mean_C: Iterable[float]) -> tuple[Fraction, ...]:
    """Return how far each class's share of the labels is below a mean: max(0, p̄_c - p_c).

    Parameters
    ----------
    counts_C : Iterable[float]
        Labelled samples of each class, as of `inverse_count_weights`; where there are none at all,
        all shares are 0.
    mean_C : Iterable[float]
        Mean proportions p̄ of the classes over clients.
    """
    counts = list(counts_C)
    # Of weighted counts the sum may be below 1.
    labelled = sum(counts) or 1
    gaps = (mean - count / labelled for count, mean in zip(counts, mean_C, strict=True))
    # Whole numbers of the grid, so that rounding parts no two classes that lack the same.
    return tuple(Fraction(max(0, round(gap * GAP_STEPS)), GAP_STEPS) for gap in gaps)


def allocate(
    weights_C: Sequence[Weight],
    capacity_C: Iterable[int],
    budget: int,
    deficit_weights_C: Sequence[Weight] | None = None,
) -> NDArray[np.int64]:
    """Split a budget in proportion to weights, where classes can take only so much.

    The whole budget is split over all classes by the largest-remainder method: each gets its
    share rounded down, and what is left goes one each to the largest remainders, among equals
    to the lowest class. What a class cannot take is split again over the classes that can take
    more, until the budget is spent or nothing is left to take (AHFAL paper, section 6.1,
    step 3).

    Parameters
    ----------
    weights_C : Sequence[Weight]
        Weights, finite and at least 0. Among classes whose weights are all 0, all count
        the same.
    capacity_C : Iterable[int]
        Most that each class can take.
    budget : int
        Number to split, at least 0.
    deficit_weights_C : Sequence[Weight], optional
        Weights for what classes could not take; the same ones if left out. Classes of weight 0
        get of it only what no other can take, in proportion to `weights_C`.

    Returns
    -------
    NDArray[np.int64]
        Class budgets that sum to min(budget, sum of capacities). Shape (C,).

    Raises
    ------
    ValueError
        There are no weights, one is negative, NaN or infinite, the budget or a capacity is
        negative, or the lengths differ.
    """
    weights = _integers(weights_C)
    later = weights if deficit_weights_C is None else _integers(deficit_weights_C)
    if len(later) != len(weights):
        raise ValueError(f"{len(weights)} weights for deficits are needed, got {len(later)}")
    spare = _checked_capacities(capacity_C, len(weights))
    remaining = min(_checked_total(budget), sum(spare))
    budgets = [0] * len(weights)
    takers, shares_by = list(range(len(weights))), weights
    while remaining:
        shares = _split([shares_by[c] for c in takers], remaining)
        for c, share in zip(takers, shares, strict=True):
            taken = min(share, spare[c])
            budgets[c] += taken
            spare[c] -= taken
            remaining -= taken
        takers = [c for c in range(len(weights)) if spare[c]]
        shares_by = later if any(later[c] for c in takers) else weights
    return np.array(budgets, dtype=np.int64)


def _split(weights: Sequence[int], total: int) -> list[int]:
    if not any(weights):
        weights = [1] * len(weights)
    whole = sum(weights)
    shares, remainders = zip(*(divmod(total * weight, whole) for weight in weights), strict=True)
    largest_first = sorted(range(len(weights)), key=lambda c: (-remainders[c], c))
    result = list(shares)
    for c in largest_first[: total - sum(shares)]:
        result[c] += 1
    return result


def _exact(count: float) -> Fraction:
    """Return a count; of weighted ones what rounding cannot part."""
    return Fraction(round(count * GAP_STEPS), GAP_STEPS)


def _integers(weights_C: Sequence[Weight]) -> list[int]:
    """Return whole numbers in exactly the proportions of the weights."""
    if not len(weights_C):
        raise ValueError("at least one class is needed")
    for weight in weights_C:
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight {weight!r}: a finite number of at least 0 is needed")
    # NumPy's integers would overflow below, and a Fraction of one keeps it as it is.
    exact = (int(weight) if isinstance(weight, Integral) else weight for weight in weights_C)
    fractions = [Fraction(weight) for weight in exact]
    common = math.lcm(*{fraction.denominator for fraction in fractions})
    return [fraction.numerator * (common // fraction.denominator) for fraction in fractions]


def _checked_total(total: int) -> int:
    if total < 0:
        raise ValueError(f"budget {total}: at least 0 is needed")
    return int(total)


def _checked_capacities(capacity_C: Iterable[int], num_classes: int) -> list[int]:
    capacities = [int(capacity) for capacity in capacity_C]
    if len(capacities) != num_classes or min(capacities) < 0:
        raise ValueError(f"{num_classes} capacities of at least 0 are needed, got {capacities}")
    return capacities
