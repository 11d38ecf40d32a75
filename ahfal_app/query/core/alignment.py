"""Aligning a strategy's selection to a class distribution: the experiment of Figure 4.

Each client is told a class distribution and spends its budget on what it lacks towards it;
within a class the strategy's own scores decide. The paper says no more than this of the
experiment; budgets here are what a class lacks after the purchase, shared out by the largest
remainder.

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.balance import pseudo_labels, selection_within
from ahfal_app.query.core.base import (
    QueryContext,
    ScoringStrategy,
    TrainingContext,
    TrainingLoss,
)
from ahfal_app.query.core.budgets import allocate
from ahfal_app.query.core.pool import PoolView, Signal


class Aligned(ScoringStrategy):
    """A scoring strategy whose selection follows class budgets towards a target.

    Parameters
    ----------
    strategy : ScoringStrategy
        Ranks the samples of each class.
    target_C : Sequence[float]
        Class distribution to come close to; its scale does not matter. Shape (C,).
    classes_N : NDArray[np.int64], optional
        What counts as the class of each sample of the pool; the local model's predictions if
        left out. Shape (N,).
    """

    paper = "Figure 4 of the AHFAL paper"

    def __init__(
        self,
        strategy: ScoringStrategy,
        target_C: Sequence[float],
        classes_N: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(strategy.parameters)
        self._strategy = strategy
        self._target_C = target_C
        self._classes_N = classes_N
        # Of the instance, since they follow from the strategy that is aligned.
        self.name = f"{strategy.name} (aligned)"  # type: ignore[misc]
        self.signals = strategy.signals | {Signal.LOCAL_LOGITS}  # type: ignore[misc]

    @property
    def has_training_loss(self) -> bool:
        """Whether the aligned strategy trains with a loss of its own."""
        return self._strategy.has_training_loss

    def training_loss(self, context: TrainingContext) -> TrainingLoss | None:
        """Return the aligned strategy's loss."""
        return self._strategy.training_loss(context)

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the aligned strategy's scores. Shape (N,)."""
        return self._strategy.scores(pool, context)

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the highest scores of each class, within budgets towards the target."""
        scores_N = self.scores(pool, context)
        if self._classes_N is None:
            classes_N = pseudo_labels(pool)
        else:
            classes_N = torch.from_numpy(self._classes_N).to(scores_N.device)
        counts_C = context.class_counts_C.tolist()

        def budgets(capacity_C: list[int]) -> NDArray[np.int64]:
            return alignment_budgets(counts_C, self._target_C, capacity_C, context.budget)

        return selection_within(scores_N, pool, classes_N, context.num_classes, budgets)


def alignment_budgets(
    counts_C: Iterable[int], target_C: Sequence[float], capacity_C: Iterable[int], budget: int
) -> NDArray[np.int64]:
    """Split a budget in proportion to what each class lacks towards a target.

    A class lacks its target share of the client's labels after the purchase, less those that
    it has. What a class cannot take goes to the others that lack samples, in the same
    proportion; what none of these can take is split by the target.

    Parameters
    ----------
    counts_C : Iterable[int]
        Labelled samples of each class.
    target_C : Sequence[float]
        Target distribution, at least 0, not all 0. Shape (C,).
    capacity_C : Iterable[int]
        Samples of each class in the pool.
    budget : int
        Labels to buy, at least 0.

    Returns
    -------
    NDArray[np.int64]
        Class budgets that sum to min(budget, sum of capacities). Shape (C,).

    Raises
    ------
    ValueError
        As for `budgets.allocate`, or the target is all 0.
    """
    target = [Fraction(share) for share in target_C]
    counts, capacity = list(counts_C), np.array(list(capacity_C), dtype=np.int64)
    if not sum(target) > 0:
        raise ValueError(f"target {list(target_C)}: at least one class must have a share")
    scale = Fraction(sum(counts) + budget) / sum(target)
    lacking_C = [
        max(share * scale - count, Fraction(0)) for share, count in zip(target, counts, strict=True)
    ]
    reachable_C = np.where([lack > 0 for lack in lacking_C], capacity, 0)
    first_C = allocate(lacking_C, reachable_C.tolist(), budget)
    rest = budget - int(first_C.sum())
    return first_C + allocate(target, (capacity - first_C).tolist(), rest)
