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

#: A weight; a float stands for the binary fraction that it is.
Weight = int | float | Fraction


def inverse_count_weights(counts_C: Iterable[int]) -> tuple[Fraction, ...]:
    """Return the weights of equation 4 of the AHFAL paper: 1/count, and 1 for a count of 0.

    As printed, a class without labels weighs the same as one with a single label.

    Parameters
    ----------
    counts_C : Iterable[int]
        Labelled samples of each class.
    """
    return tuple(Fraction(1, max(int(count), 1)) for count in counts_C)


def largest_remainder(weights_C: Sequence[Weight], total: int) -> NDArray[np.int64]:
    """Split a whole number in proportion to weights, by the largest-remainder method.

    Each class gets its share rounded down; what is left goes one each to the largest
    remainders, among equals to the lowest class.

    Parameters
    ----------
    weights_C : Sequence[Weight]
        Weights, finite and at least 0. If all are 0, all count the same.
    total : int
        Number to split, at least 0.

    Returns
    -------
    NDArray[np.int64]
        Shares that sum to `total`. Shape (C,).

    Raises
    ------
    ValueError
        There are no weights, one is negative, NaN or infinite, or the total is negative.
    """
    return np.array(_split(_integers(weights_C), _checked_total(total)), dtype=np.int64)


def allocate(
    weights_C: Sequence[Weight], capacity_C: Iterable[int], budget: int
) -> NDArray[np.int64]:
    """Split a budget in proportion to weights, where classes can take only so much.

    The whole budget is split over all classes by `largest_remainder`; what a class cannot
    take is split again, with the same weights, over the classes that can take more, until
    the budget is spent or nothing is left to take (AHFAL paper, section 6.1, step 3).

    Parameters
    ----------
    weights_C : Sequence[Weight]
        Weights, finite and at least 0. Among classes whose weights are all 0, all count
        the same.
    capacity_C : Iterable[int]
        Most that each class can take.
    budget : int
        Number to split, at least 0.

    Returns
    -------
    NDArray[np.int64]
        Class budgets that sum to min(budget, sum of capacities). Shape (C,).

    Raises
    ------
    ValueError
        As for `largest_remainder`, or a capacity is negative, or the lengths differ.
    """
    weights = _integers(weights_C)
    spare = _checked_capacities(capacity_C, len(weights))
    remaining = min(_checked_total(budget), sum(spare))
    budgets = [0] * len(weights)
    open_classes = list(range(len(weights)))
    while remaining:
        shares = _split([weights[c] for c in open_classes], remaining)
        for c, share in zip(open_classes, shares, strict=True):
            taken = min(share, spare[c])
            budgets[c] += taken
            spare[c] -= taken
            remaining -= taken
        open_classes = [c for c in open_classes if spare[c]]
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
