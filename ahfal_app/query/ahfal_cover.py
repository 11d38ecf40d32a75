"""AHFAL whose picks of a class lie apart: the highest scores first, then k-center among them.

Shape suffixes: N samples in the pool, L labelled samples, C classes, D embedding width, K
candidates of a class, A anchors, B selected samples.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.ahfal import Ahfal
from ahfal_app.query.core.balance import pseudo_labels
from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.picking import falling
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.core.pool import PoolView, Signal


class AhfalCover(Ahfal):
    """AHFAL's uncertain samples of each class, and of these such as lie far apart.

    Ours, not the paper's. Scores and class budgets b_c are AHFAL's. Of each class the 4 b_c
    highest scores are candidates (`candidates-per-label`), and b_c of them are taken by greedy
    k-center on the local model's embeddings: again and again the candidate that is furthest from
    what is taken and from the client's labelled samples of that class. Where there are none, the
    highest score is taken first. With `candidates-per-label=1` the same samples are selected as by
    `ahfal`. With `balance=none` all samples are of one class, and all labelled ones are anchors.
    """

    name: ClassVar[str] = "ahfal-cover"
    paper: ClassVar[str] = (
        "ours, after Federated active learning via class-adaptive local-global balancing (AHFAL), "
        "under double-blind review, and Sener and Savarese, Active learning for convolutional "
        "neural networks: a core-set approach, ICLR 2018"
    )
    signals: ClassVar[frozenset[Signal]] = Ahfal.signals | {
        Signal.LOCAL_EMBEDDINGS,
        Signal.LABELLED_LOCAL_EMBEDDINGS,
    }

    class Parameters(Ahfal.Parameters):
        """AHFAL's, and how many samples there are to choose from."""

        candidates_per_label: float = Field(
            default=4.0, ge=1, le=1e6, description="Candidates for each label of a class's budget."
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the classes' picks in turns: the first of each class, the second, and so on."""
        scores_N = self.scores(pool, context)
        classes_N, labels_L = pseudo_labels(pool), torch.from_numpy(context.labels_L)
        num_classes = context.num_classes
        if self.parameters.balance == "none":
            classes_N, labels_L = torch.zeros_like(classes_N), torch.zeros_like(labels_L)
            num_classes = 1
        capacity_C = torch.bincount(classes_N, minlength=num_classes).tolist()
        budgets_C = [min(context.budget, len(pool))]
        if self.parameters.balance != "none":
            budgets_C = self._budgets(capacity_C, context).tolist()
        order_N = falling(scores_N)
        taken: list[tuple[int, int, int]] = []
        for c, budget in enumerate(budgets_C):
            if budget:
                number = math.ceil(self.parameters.candidates_per_label * budget)
                candidates_K = order_N[classes_N[order_N] == c][:number]
                picks_B = _apart(pool, candidates_K, (labels_L == c).nonzero()[:, 0], budget)
                taken += [(turn, c, position) for turn, position in enumerate(picks_B.tolist())]
        return pool.ids_N[np.array([position for _, _, position in sorted(taken)], np.int64)]


def _apart(
    pool: PoolView, candidates_K: Tensor, anchors_A: Tensor, count: int
) -> NDArray[np.int64]:
    """Return positions of candidates that lie apart, in the order in which they were taken.

    Parameters
    ----------
    pool : PoolView
        The samples.
    candidates_K : Tensor
        Positions by falling score, int64. Shape (K,).
    anchors_A : Tensor
        Positions of labelled samples that count as taken, int64. Shape (A,).
    count : int
        B: how many, at most K.
    """
    if count >= len(candidates_K):
        return candidates_K.cpu().numpy()
    own_KD = pool.signal(Signal.LOCAL_EMBEDDINGS)[candidates_K]
    anchors_AD = pool.signal(Signal.LABELLED_LOCAL_EMBEDDINGS)[anchors_A.to(own_KD.device)]
    points = EmbeddingPoints(torch.cat([own_KD, anchors_AD.to(own_KD)]))
    size = len(candidates_K)
    # Nothing is near yet; the largest number leaves room for what is to be the furthest.
    nearest_K = torch.full_like(points.squared_norms_N[:size], torch.finfo(torch.float64).max)
    if len(anchors_A):
        points.lower(nearest_K, torch.arange(size, len(points), device=nearest_K.device))
    else:
        nearest_K[0] = torch.inf
    return candidates_K.cpu().numpy()[greedy_k_center(points, nearest_K, count)]
