"""Class-balanced selection: the highest scores of each class, within class budgets.

Shape suffixes: N samples in the pool, C classes, B selected samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.budgets import allocate, inverse_count_weights
from ahfal_app.query.core.picking import top_per_class, top_scores
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.representation import representation_ratio_budgets

#: Names of the ways to set class budgets, for the settings of strategies.
Balance = Literal["inverse-count", "representation-ratio", "none"]

#: Maps the number of samples of each class in the pool to class budgets, both (C,).
ClassBudgets = Callable[[list[int]], NDArray[np.int64]]


def balanced_selection(
    scores_N: Tensor, pool: PoolView, context: QueryContext, balance: Balance
) -> NDArray[np.int64]:
    """Return the highest scores of each pseudo-class, within AHFAL's class budgets.

    Section 6.1, step 3 of the AHFAL paper; its pseudo-labels are the local model's
    predictions. Equation 4 sets the budgets, or appendix F, or (`none`) nothing does.

    Parameters
    ----------
    scores_N : Tensor
        How much each sample is worth labelling. Shape (N,).
    pool : PoolView
        Gives the local model's logits.
    context : QueryContext
        Budget, class counts and statistics.
    balance : str
        How class budgets are set.

    Returns
    -------
    NDArray[np.int64]
        Ids in falling order of their scores. Shape (B,).
    """
    if balance == "none":
        return top_scores(scores_N, pool.ids_N, context.budget)
    counts_C = context.class_counts_C.tolist()

    def budgets(capacity_C: list[int]) -> NDArray[np.int64]:
        if balance == "representation-ratio":
            target_C = context.statistics.mean_C
            return representation_ratio_budgets(counts_C, target_C, capacity_C, context.budget)
        return allocate(inverse_count_weights(counts_C), capacity_C, context.budget)

    return selection_within(scores_N, pool, pseudo_labels(pool), context.num_classes, budgets)


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
