"""Class budgets by representation ratio: appendix F of the AHFAL paper.

Shape suffix: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahfal_app.class_statistics import class_proportions

#: Most labels that a class without any gets ahead of the others.
FIRST_LABELS = 5

#: Tenths of the remaining budget for a class whose ratio is below the limit, in order.
TIERS = ((0.5, 5), (0.8, 3))

#: Tenths of the remaining budget for a class above all limits.
LAST_TIER = 2

#: A remainder up to this is handed out in single labels, lowest ratio first.
SMALL_REMAINDER = 3

#: Keeps the inverse ratio of a barely represented class finite.
SMOOTHING = 0.01

#: Inverse ratio of a class without labels, as `1 / SMOOTHING`.
UNSEEN_WEIGHT = 100.0

#: Differences below this are rounding errors of the target's floats, not labels or tiers.
TOLERANCE = 1e-9


def representation_ratio_budgets(
    counts_C: Iterable[int], target_C: ArrayLike, capacity_C: Iterable[int], budget: int
) -> NDArray[np.int64]:
    """Split a budget so that the labelled set comes close to a target distribution.

    The paper's appendix F gives this in words: most of the budget to the most
    under-represented classes, a moderate share to the next, the remainder to the others.
    A class's representation ratio is its share of the client's labels over its target
    proportion. Only classes with samples in the pool take part. In order:

    1. Where some of them have no label yet, each of these gets up to 5, and the rest is
       split by the inverse ratio. Otherwise each class gets what it lacks to its target.
    2. If that is more than the budget, the budget is handed out by rising ratio instead:
       half of what remains below a ratio of 0.5, 30 % below 0.8, else 20 %.
    3. If it is less, single labels go round by rising ratio after the purchase.
    4. What exceeds a class's capacity goes to the lowest ratios that have samples left.

    Parameters
    ----------
    counts_C : Iterable[int]
        Labelled samples of each class.
    target_C : ArrayLike
        Target proportions. Shape (C,).
    capacity_C : Iterable[int]
        Samples of each class in the pool.
    budget : int
        Number to split, at least 0.

    Returns
    -------
    NDArray[np.int64]
        Class budgets that sum to min(budget, sum of capacities). Shape (C,).

    Raises
    ------
    ValueError
        Lengths differ, or a number is negative, NaN or infinite.
    """
    problem = _Problem(
        np.array(list(counts_C), dtype=np.int64),
        np.asarray(target_C, dtype=np.float64),
        np.array(list(capacity_C), dtype=np.int64),
        budget,
    )
    wanted_C = problem.wanted()
    if wanted_C.sum() > problem.budget:
        wanted_C = problem.tiers()
    problem.go_round(wanted_C)
    return problem.within_capacity(wanted_C)


class _Problem:
    """One client's budget problem; each method is one step of the procedure."""

    def __init__(
        self,
        counts_C: NDArray[np.int64],
        target_C: NDArray[np.float64],
        capacity_C: NDArray[np.int64],
        budget: int,
    ) -> None:
        if not len(counts_C) == len(target_C) == len(capacity_C):
            raise ValueError("counts, target and capacities must have one number for each class")
        if not np.isfinite(target_C).all() or (target_C < 0).any():
            raise ValueError("target proportions must be finite and at least 0")
        if budget < 0 or (capacity_C < 0).any():
            raise ValueError("the budget and all capacities must be at least 0")
        self.counts_C, self.target_C, self.capacity_C = counts_C, target_C, capacity_C
        self.budget = min(budget, int(capacity_C.sum()))
        self.ratio_C = self._over_target(class_proportions(counts_C))
        self.available = np.flatnonzero(capacity_C)
        self.by_ratio = self._rising(self.ratio_C)

    def wanted(self) -> NDArray[np.int64]:
        """Return what each class should get at first, whatever the capacities."""
        missing = self.available[self.counts_C[self.available] == 0]
        wanted_C = np.zeros_like(self.counts_C)
        if 0 < len(missing) <= self.budget:
            wanted_C[missing] = min(FIRST_LABELS, self.budget // len(missing))
            return wanted_C + self._by_inverse_ratio(self.budget - int(wanted_C.sum()))
        size_after = int(self.counts_C.sum()) + self.budget
        lacking_C = np.ceil(self.target_C * size_after - self.counts_C - TOLERANCE)
        wanted_C[self.available] = np.maximum(lacking_C, 0).astype(np.int64)[self.available]
        return wanted_C

    def _by_inverse_ratio(self, total: int) -> NDArray[np.int64]:
        ratio_C = self.ratio_C
        inverse_C = np.where(ratio_C > 0, 1.0 / (ratio_C + SMOOTHING), UNSEEN_WEIGHT)
        inverse_C[self.capacity_C == 0] = 0.0
        whole = inverse_C.sum()
        if whole == 0.0:
            return np.zeros_like(self.counts_C)
        shares_C: NDArray[np.int64] = np.floor(total * inverse_C / whole).astype(np.int64)
        return shares_C

    def tiers(self) -> NDArray[np.int64]:
        """Return shares of what remains, class by class from the lowest ratio."""
        budgets_C = np.zeros_like(self.counts_C)
        remaining = self.budget
        for c in self.by_ratio:
            if remaining <= SMALL_REMAINDER:
                break
            below = (tenths for limit, tenths in TIERS if self.ratio_C[c] < limit - TOLERANCE)
            # Whole numbers, as a rounding error before rounding up would cost a label.
            budgets_C[c] = -(-remaining * next(below, LAST_TIER) // 10)
            remaining -= int(budgets_C[c])
        if remaining <= SMALL_REMAINDER:
            budgets_C[self.by_ratio[:remaining]] += 1
        return budgets_C

    def go_round(self, budgets_C: NDArray[np.int64]) -> None:
        """Hand out single labels until the budget is spent, whatever the capacities."""
        while (remaining := self.budget - int(budgets_C.sum())) > 0:
            projected_C = self._over_target((self.counts_C + budgets_C).astype(np.float64))
            budgets_C[self._rising(projected_C)[:remaining]] += 1

    def within_capacity(self, budgets_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """Move what classes cannot take to those of the lowest ratios that still can."""
        capped_C = np.minimum(budgets_C, self.capacity_C)
        remaining = self.budget - int(capped_C.sum())
        for c in self.by_ratio:
            taken = min(remaining, int(self.capacity_C[c] - capped_C[c]))
            capped_C[c] += taken
            remaining -= taken
        return capped_C

    def _over_target(self, values_C: NDArray[np.float64]) -> NDArray[np.float64]:
        """Divide by the target; a class that the target lacks is represented enough."""
        no_limit_C = np.full_like(values_C, math.inf)
        return np.divide(values_C, self.target_C, out=no_limit_C, where=self.target_C > 0)

    def _rising(self, ratio_C: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the available classes by rising ratio, among equals the lowest first."""
        rounded = np.round(ratio_C[self.available], 9)
        return self.available[np.argsort(rounded, kind="stable")]
