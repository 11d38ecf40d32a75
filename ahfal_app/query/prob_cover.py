"""ProbCover: samples whose neighbourhoods hold most samples that no other's does.

Shape suffixes: N points, P points that a radius is estimated from, K rows, D embedding width.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.clustering import lloyd
from ahfal_app.query.core.coverage import Kernel, top_hat
from ahfal_app.query.core.covering import GreedyCovering
from ahfal_app.query.core.points import ROWS, EmbeddingPoints, row_blocks

#: Radii that are tried: .05, .1, ..., 1.
RADII = tuple(step / 20 for step in range(1, 21))

#: Most points that a radius is estimated from.
_PURITY_POINTS = 10_000

#: Starts of their clustering.
_STARTS = 1


class ProbCover(GreedyCovering):
    """Samples within whose radius lie most samples that are not covered yet.

    A sample covers all that are nearer than δ, itself among them. Again and again the sample is
    taken that covers most of what is not covered; the labelled samples cover from the beginning.

    The radius is estimated as in the paper: k-means with as many clusters as classes, and of
    the radii .05, .1, ..., 1 the last before less than `purity` of the samples have only samples of
    their own cluster around them; the smallest where none is pure. It is estimated anew at each
    selection and client, as the embeddings are those of a model that is trained; published
    fixed radii belong to the embeddings that they were made for, and `radius` sets one.

    Where all is covered, the published code returns one sample again and again. Here all is
    covered a second time. Its graph also has no edges from the last samples, the remainder of
    500; here there is no graph. An embedding of zeros stays zero, at distance 1 from all
    others.
    """

    name: ClassVar[str] = "prob-cover"
    paper: ClassVar[str] = (
        "Yehuda, Dekel, Hacohen and Weinshall, Active learning through a covering lens, NeurIPS "
        "2022"
    )

    class Parameters(GreedyCovering.Parameters):
        """The radius."""

        radius: float = Field(
            default=0, ge=0, description="Distance below which a sample is covered; 0: estimated."
        )
        purity: float = Field(
            default=0.95,
            gt=0,
            le=1,
            description="Share of the samples around which an estimated radius must be pure.",
        )

    parameters: Parameters

    def kernel(self, points_ND: Tensor, size: int, context: QueryContext) -> Kernel:
        """Return the top-hat kernel of the radius."""
        if self.parameters.radius:
            return top_hat(self.parameters.radius)
        generator = context.generator(f"{self.name}.purity")
        purity = self.parameters.purity
        return top_hat(estimated_radius(points_ND, context.num_classes, purity, generator))


def estimated_radius(
    points_ND: Tensor, num_classes: int, purity: float, generator: np.random.Generator
) -> float:
    """Return the radius at which balls are pure in as many clusters as there are classes.

    Parameters
    ----------
    points_ND : Tensor
        At least one. Of more than 10,000 points so many are drawn. Shape (N, D).
    num_classes : int
        Number of classes.
    purity : float
        As of `pure_radius`.
    generator : np.random.Generator
        What points and the seed of k-means are drawn from.
    """
    if len(points_ND) > _PURITY_POINTS:
        drawn = np.sort(generator.choice(len(points_ND), _PURITY_POINTS, replace=False))
        points_ND = points_ND[torch.from_numpy(drawn).to(points_ND.device)]
    clusters_P = lloyd(points_ND, num_classes, _STARTS, generator)
    return pure_radius(points_ND, torch.from_numpy(clusters_P), purity)


def pure_radius(points_PD: Tensor, clusters_P: Tensor, purity: float) -> float:
    """Return the largest radius of `RADII` at which balls are pure, or the smallest of them.

    Parameters
    ----------
    points_PD : Tensor
        Shape (P, D).
    clusters_P : Tensor
        Each point's cluster, int64. Shape (P,).
    purity : float
        Least share of points whose open ball holds only points of their own cluster.

    Returns
    -------
    float
        The last radius before the first that is not pure.
    """
    points = EmbeddingPoints(points_PD)
    clusters_P = clusters_P.to(points_PD.device)
    least_P, stranger_P = _nearest_strangers(points, clusters_P)
    squared_P = torch.full_like(points.squared_norms_N, torch.inf)
    has_P = (stranger_P >= 0).nonzero()[:, 0]
    for some in torch.split(has_P, ROWS):
        squared_P[some] = points.pair_distances(some, stranger_P[some])
    # What lies on the same side of every radius as its bound need not be known better.
    between_P = torch.zeros_like(has_P, dtype=torch.bool)
    for radius in RADII:
        between_P |= (least_P[has_P] < radius**2) & (squared_P[has_P] >= radius**2)
    for some in torch.split(has_P[between_P], ROWS):
        for columns in row_blocks(len(points)):
            squared_KK = points.squared_distances(some, columns)
            squared_KK[clusters_P[some][:, None] == clusters_P[columns]] = torch.inf
            squared_P[some] = torch.minimum(squared_P[some], squared_KK.amin(dim=1))
    pure = [r for r in RADII if int((squared_P >= r * r).sum()) / len(points) >= purity]
    return max(pure, default=RADII[0])


def _nearest_strangers(points: EmbeddingPoints, clusters_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return what no squared distance to another cluster is below, and about the nearest there.

    Returns
    -------
    Tensor
        Float64, infinite where there is but one cluster. Shape (P,).
    Tensor
        The point of another cluster that has this bound, or -1. Shape (P,).
    """
    least_P = torch.full_like(points.squared_norms_N, torch.inf)
    nearest_P = torch.full_like(clusters_P, -1, dtype=torch.int64)

    def lower(rows: slice, columns: slice, bounds_KK: Tensor) -> None:
        found = bounds_KK.min(dim=1)
        is_lower = found.values < least_P[rows]
        least_P[rows] = torch.where(is_lower, found.values.double(), least_P[rows])
        nearest_P[rows] = torch.where(is_lower, found.indices + columns.start, nearest_P[rows])

    for rows in row_blocks(len(points)):
        for columns in row_blocks(rows.stop):
            # Distances are symmetric: each block tells of its rows and of its columns.
            bounds_KK = points.distance_bounds(rows, columns)
            bounds_KK[clusters_P[rows][:, None] == clusters_P[columns]] = torch.inf
            lower(rows, columns, bounds_KK)
            lower(columns, rows, bounds_KK.T)
    return least_P, nearest_P
