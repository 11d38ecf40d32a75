"""Core-Set: samples that leave no other far from a labelled one.

Shape suffixes: N samples in the pool, L labelled samples, D embedding width.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.one_model import EMBEDDINGS, LABELLED_EMBEDDINGS, OneModelStrategy
from ahfal_app.query.core.picking import first_highest
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.core.pool import PoolView, Signal


class CoreSet(OneModelStrategy):
    """Samples by greedy k-center on one model's embeddings, from the labelled set.

    Algorithm 1 of the paper: again and again the sample that is furthest, in Euclidean
    distance, from the labelled samples and those already chosen. The paper's robust variant
    (algorithm 2) improves this cover by mixed-integer programs, with a few samples left
    uncovered; comparisons in the literature use the greedy one, and so do we.

    The paper does not say how to begin without a labelled sample. Then the first choice is
    the sample nearest to the mean of the pool, from which the others are least far.
    Where only duplicates of chosen samples are left, those with the smallest ids are taken.
    """

    name: ClassVar[str] = "core-set"
    paper: ClassVar[str] = (
        "Sener and Savarese, Active learning for convolutional neural networks: a core-set "
        "approach, ICLR 2018"
    )
    signals: ClassVar[frozenset[Signal]] = EMBEDDINGS | LABELLED_EMBEDDINGS
    needs_labels: ClassVar[bool] = False

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the samples in the order in which they were the furthest."""
        embeddings_ND, labelled_LD = self.embeddings(pool), self.labelled_embeddings(pool)
        points = EmbeddingPoints(torch.cat([embeddings_ND, labelled_LD.to(embeddings_ND)]))
        # Nothing is near yet; the largest number leaves room for what is to be the furthest.
        nothing_near = torch.finfo(torch.float64).max
        nearest_N = torch.full_like(points.squared_norms_N[: len(pool)], nothing_near)
        if len(labelled_LD):
            points.lower(nearest_N, torch.arange(len(pool), len(points), device=nearest_N.device))
        else:
            nearest_N[_most_central(embeddings_ND)] = torch.inf
        return pool.ids_N[greedy_k_center(points, nearest_N, context.budget)]


def _most_central(embeddings_ND: Tensor) -> int:
    mean_D = embeddings_ND.mean(dim=0, dtype=torch.float64)
    return first_highest(-torch.linalg.vector_norm(embeddings_ND - mean_D, dim=1))
