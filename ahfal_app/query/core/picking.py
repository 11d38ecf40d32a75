"""From scores to ids: the highest scores, over all samples or within class budgets.

Numbers that are equal on paper differ here in their last digits, by the order in which a sum was
taken, and so by machine and by place in a batch. What ranks them must not: whatever agrees to
within `SAME` counts as equal, and the lowest id decides.

Shape suffixes: N samples in the pool, C classes, B selected samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ahfal_app.errors import NonFiniteSignal

#: Neighbours in order whose difference is at most this share of the larger are equal. It is far
#: above what float64 rounds away, and far below what float32 outputs of a network can tell.
SAME = 2.0**-32


def falling(scores_N: Tensor) -> Tensor:
    """Return positions by falling score, among equals the lowest first. Shape (N,).

    Raises
    ------
    NonFiniteSignal
        Scores are NaN or infinite.
    """
    bad_rows = int((~torch.isfinite(scores_N)).sum())
    if bad_rows:
        raise NonFiniteSignal(f"{bad_rows} of {len(scores_N)} scores are NaN or infinite")
    return ranked(scores_N)


def ranked(values_N: Tensor) -> Tensor:
    """Return positions by falling value, among equals the lowest first; not for NaN. Shape (N,)."""
    values_N, order_N = torch.sort(values_N, descending=True, stable=True)
    above, below = values_N[:-1], values_N[1:]
    close = above - below <= SAME * torch.maximum(above.abs(), below.abs())
    # Where the upper one is infinite, so is the margin.
    close &= torch.isfinite(above) & torch.isfinite(below) & (above != below)
    if not close.any():
        return order_N
    starts = (~close & (above != below)).long()
    group_N = torch.cat([starts.new_zeros(1), starts.cumsum(dim=0)])
    return order_N[(group_N * len(order_N) + order_N).argsort()]


def level(highest: float) -> float:
    """Return the least value that counts as equal to the highest."""
    return highest - SAME * abs(highest) if math.isfinite(highest) else highest


def first_highest(values_N: Tensor) -> int:
    """Return the lowest position of a value that counts as equal to the highest; N > 0."""
    return int((values_N >= level(float(values_N.max()))).int().argmax())


def top_scores(scores_N: Tensor, ids_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the ids with the highest scores, ordered by (-score, id).

    Parameters
    ----------
    scores_N : Tensor
        Finite scores; higher is more worth labelling. Shape (N,).
    ids_N : NDArray[np.int64]
        Strictly increasing ids. Shape (N,).
    count : int
        Number of ids to return; all where the pool has no more.

    Raises
    ------
    NonFiniteSignal
        Scores are NaN or infinite.
    """
    return _named(ids_N, falling(scores_N)[:count])


def top_per_class(
    scores_N: Tensor, ids_N: NDArray[np.int64], classes_N: Tensor, budgets_C: ArrayLike
) -> NDArray[np.int64]:
    """Return for each class the ids with its highest scores, all ordered by (-score, id).

    Parameters
    ----------
    scores_N : Tensor
        Finite scores; higher is more worth labelling. Shape (N,).
    ids_N : NDArray[np.int64]
        Strictly increasing ids. Shape (N,).
    classes_N : Tensor
        Each sample's class, int64 in 0..C-1. Shape (N,).
    budgets_C : ArrayLike
        Number of ids to return of each class; all of a class that has no more. Shape (C,).

    Raises
    ------
    NonFiniteSignal
        Scores are NaN or infinite.
    """
    order_N = falling(scores_N)
    classes_N = classes_N[order_N]
    # A stable sort by class keeps the order by score within each class.
    by_class_N = torch.argsort(classes_N, stable=True)
    budgets = torch.as_tensor(np.asarray(budgets_C, dtype=np.int64), device=classes_N.device)
    sizes_C = torch.bincount(classes_N, minlength=len(budgets))
    starts_C = sizes_C.cumsum(0) - sizes_C
    grouped_N = classes_N[by_class_N]
    ranks_N = torch.arange(len(grouped_N), device=grouped_N.device) - starts_C[grouped_N]
    taken_B = by_class_N[ranks_N < budgets[grouped_N]].sort().values
    return _named(ids_N, order_N[taken_B])


def _named(ids_N: NDArray[np.int64], positions_B: Tensor) -> NDArray[np.int64]:
    ids_B: NDArray[np.int64] = ids_N[positions_B.cpu().numpy()]
    return ids_B
