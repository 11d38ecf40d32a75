"""Strategies that cover the client's samples, those with a label and those without.

Shape suffixes: N samples in the pool, L labelled samples, R reference points, D embedding width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coverage import Coverage, Kernel, greedy_coverage
from ahfal_app.query.core.one_model import EMBEDDINGS, LABELLED_EMBEDDINGS, OneModelStrategy
from ahfal_app.query.core.points import EmbeddingPoints, directions
from ahfal_app.query.core.pool import PoolView, Signal


class CoveringStrategy(OneModelStrategy):
    """Samples that cover the client's samples, those with a label and those without.

    All of the pool may be chosen; what is covered are at most `reference-points` of the client's
    samples, drawn at random.
    """

    signals: ClassVar[frozenset[Signal]] = EMBEDDINGS | LABELLED_EMBEDDINGS

    class Parameters(OneModelStrategy.Parameters):
        """What is covered, and what comes when it is."""

        normalise: bool = Field(
            default=True, description="Whether embeddings are scaled to length 1."
        )
        reference_points: int = Field(
            default=10_000,
            ge=0,
            description="Most samples, drawn at random, that are to be covered; 0: all.",
        )
        exhausted: Literal["again", "id"] = Field(
            default="again",
            description="When all is covered: cover it a second time, or take the smallest ids.",
        )

    parameters: Parameters

    def points(self, pool: PoolView) -> Tensor:
        """Return embeddings of the pool, then of the labelled set, float64. Shape (N + L, D)."""
        both_ND = torch.cat([self.embeddings(pool), self.labelled_embeddings(pool)]).double()
        return directions(both_ND) if self.parameters.normalise else both_ND

    def references(self, number: int, context: QueryContext) -> Tensor:
        """Return the positions of what is to be covered, of so many points, int64. Shape (R,)."""
        most = self.parameters.reference_points
        if most == 0 or number <= most:
            return torch.arange(number)
        generator = context.generator(f"{self.name}.reference")
        return torch.from_numpy(np.sort(generator.choice(number, most, replace=False)))


class GreedyCovering(CoveringStrategy):
    """Samples by greedy coverage of the client's samples, which the labelled ones cover already.

    A subclass says by which kernel, and how much each sample counts.
    """

    needs_labels: ClassVar[bool] = False

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return samples in the order in which they covered most."""
        points_ND = self.points(pool)
        references_R = self.references(len(points_ND), context).to(points_ND.device)
        coverage = Coverage(
            EmbeddingPoints(points_ND),
            self.kernel(points_ND, len(pool), context),
            references_R,
            self.weights(pool, references_R, context),
        )
        labelled_L = torch.arange(len(pool), len(points_ND), device=points_ND.device)
        again = self.parameters.exhausted == "again"
        picks_B = greedy_coverage(coverage, len(pool), labelled_L, context.budget, again)
        return pool.ids_N[picks_B]

    @abstractmethod
    def kernel(self, points_ND: Tensor, size: int, context: QueryContext) -> Kernel:
        """Return the kernel; the first `size` of the points are the pool's."""

    def weights(self, pool: PoolView, references_R: Tensor, context: QueryContext) -> Tensor:
        """Return how much each reference point counts, float64. Shape (R,)."""
        return torch.ones_like(references_R, dtype=torch.float64)
