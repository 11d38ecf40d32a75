"""Class-balanced selection: the highest scores of each class, within class budgets.

Shape suffixes: N samples in the pool, C classes, B selected samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.budgets import allocate, inverse_count_weights, shortfall_weights
from ahfal_app.query.core.picking import top_per_class, top_scores
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.representation import representation_ratio_budgets

#: Maps the number of samples of each class in the pool to class budgets, both (C,).
ClassBudgets = Callable[[list[int]], NDArray[np.int64]]


class ClassBalanced(ScoringStrategy):
    """A scoring strategy that takes the highest scores of each class, within AHFAL's budgets.

    Section 6.1, step 3 of the AHFAL paper; its pseudo-labels are the local model's
    predictions, so that a subclass declares `Signal.LOCAL_LOGITS`.
    """

    class Parameters(QueryStrategy.Parameters):
        """How class budgets are set."""

        balance: Literal["inverse-count", "representation-ratio", "none"] = Field(
            default="inverse-count",
            description="Class budgets: by equation 4, by appendix F, or none (ablation).",
        )
        deficits: Literal["inverse-count", "shortfall"] = Field(
            default="inverse-count",
            description="Equation 4: what a class has no samples for goes to the others by the "
            "same weights, or by how far their shares are below the clients' mean.",
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the highest scores of each pseudo-class, within the class budgets."""
        scores_N = self.scores(pool, context)
        if self.parameters.balance == "none":
            return top_scores(scores_N, pool.ids_N, context.budget)

        def budgets(capacity_C: list[int]) -> NDArray[np.int64]:
            return self._budgets(capacity_C, context)

        return selection_within(scores_N, pool, pseudo_labels(pool), context.num_classes, budgets)

    def _budgets(self, capacity_C: list[int], context: QueryContext) -> NDArray[np.int64]:
        mean_C = context.statistics.mean_C
        if self.parameters.balance == "representation-ratio":
            counts = context.class_counts_C.tolist()
            return representation_ratio_budgets(counts, mean_C, capacity_C, context.budget)
        counts_C, deficits_C = context.budget_counts_C.tolist(), None
        if self.parameters.deficits == "shortfall":
            deficits_C = shortfall_weights(counts_C, mean_C.tolist())
        weights_C = inverse_count_weights(counts_C)
        return allocate(weights_C, capacity_C, context.budget, deficits_C)


def selection_within(
    scores_N: Tensor, pool: PoolView, classes_N: Tensor, num_classes: int, budgets: ClassBudgets
) -> NDArray[np.int64]:
    """Return the highest scores of each class, within budgets that its samples allow.

    Parameters
    ----------
    scores_N : Tensor
        How much each sample is worth labelling. Shape (N,).
    pool : PoolView
        The samples.
    classes_N : Tensor
        What counts as each sample's class, int64. Shape (N,).
    num_classes : int
        Number of classes C.
    budgets : ClassBudgets
        Sets the budgets.

    Returns
    -------
    NDArray[np.int64]
        Ids in falling order of their scores. Shape (B,).
    """
    capacity_C = torch.bincount(classes_N, minlength=num_classes).tolist()
    return top_per_class(scores_N, pool.ids_N, classes_N, budgets(capacity_C))


def pseudo_labels(pool: PoolView, signal: Signal = Signal.LOCAL_LOGITS) -> Tensor:
    """Return the class that a model predicts for each sample, int64. Shape (N,)."""
    return pool.signal(signal).argmax(dim=1)
