"""Centroids: the samples nearest to the centres of as many clusters as labels are bought.

Shape suffixes: N samples in the pool, D embedding width.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.clustering import representatives
from ahfal_app.query.core.one_model import EMBEDDINGS, OneModelStrategy
from ahfal_app.query.core.points import directions
from ahfal_app.query.core.pool import PoolView, Signal


class Centroids(OneModelStrategy):
    """The sample nearest to the centre of each of as many clusters as labels are to be bought.

    K-means on the pool's embeddings, scaled to length 1; samples of large clusters come first.
    It was published to choose the first labels, before `drop-query`, and does not look at
    those that there are. Where a cluster is empty, the sample furthest from those taken fills
    in, which the paper leaves open.
    """

    name: ClassVar[str] = "centroids"
    paper: ClassVar[str] = (
        "Gupte, Aklilu, Nirschl and Yeung-Levy, Revisiting active learning in the era of vision "
        "foundation models, TMLR 2024"
    )
    signals: ClassVar[frozenset[Signal]] = EMBEDDINGS
    needs_labels: ClassVar[bool] = False

    class Parameters(OneModelStrategy.Parameters):
        """The embeddings."""

        normalise: bool = Field(
            default=True, description="Whether embeddings are scaled to length 1."
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the sample nearest to each cluster's centre."""
        points_ND = self.embeddings(pool).double()
        if self.parameters.normalise:
            points_ND = directions(points_ND)
        generator = context.generator(self.name)
        return pool.ids_N[representatives(points_ND, context.budget, generator)]
