"""TypiClust: typical samples of clusters that have the fewest labels.

Shape suffixes: N samples in the pool, L labelled samples, D embedding width, K clusters,
M samples of one cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from ahfal_app.query.core.base import QueryContext, ScoringStrategy
from ahfal_app.query.core.clustering import k_means
from ahfal_app.query.core.neighbourhood import Neighbourhood
from ahfal_app.query.core.one_model import EMBEDDINGS, LABELLED_EMBEDDINGS, OneModelStrategy
from ahfal_app.query.core.picking import first_highest
from ahfal_app.query.core.pool import PoolView, Signal

#: Keeps the typicality of a sample finite whose neighbours are all equal to it.
SMOOTHING = 1e-5


class Typicality(OneModelStrategy, ScoringStrategy):
    """The most typical sample of each cluster, clusters with the fewest labels first.

    The paper's TPC_RP, on embeddings:

    1. Labelled set and pool are clustered together by k-means into |L| + B clusters, at most
       `max-clusters`.
    2. The typicality of a sample is the inverse of its mean distance to its nearest
       neighbours in its cluster, at most `neighbours` of them.
    3. Clusters take turns, those with the fewest labelled samples first and among these the
       largest; each gives its most typical sample.

    What the paper leaves open is as in the authors' code: the neighbours are searched among
    the cluster's samples that have no label and have not been chosen, in clusters of fewer
    than twice `neighbours` of these among half of them; 10⁻⁵ is added to the mean distance;
    embeddings have length 1 (`normalise`); clusters of at most `min-cluster-size` samples
    are left out; the order of the clusters stays as it was at the beginning.

    Elsewhere we differ. The authors' code takes squared distances, the paper plain ones: so
    do we, by default. The paper's embeddings come from self-supervised learning, here they
    are those of one of the run's models. A cluster that has given all its samples loses its
    turn, and where all clusters have, the small ones take theirs in the same order; the code
    fails on both. A sample that is alone in its cluster has no neighbours; its typicality is 0.
    """

    name: ClassVar[str] = "typicality"
    paper: ClassVar[str] = (
        "Hacohen, Dekel and Weinshall, Active learning on a budget: opposite strategies suit "
        "high and low budgets, ICML 2022"
    )
    signals: ClassVar[frozenset[Signal]] = EMBEDDINGS | LABELLED_EMBEDDINGS
    needs_labels: ClassVar[bool] = False

    class Parameters(OneModelStrategy.Parameters):
        """Sizes, and variants."""

        max_clusters: int = Field(
            default=500, ge=1, description="Largest number of clusters, whatever the budget."
        )
        min_cluster_size: int = Field(
            default=5,
            ge=0,
            description="Clusters up to this size wait until all others have given their samples.",
        )
        neighbours: int = Field(
            default=20, ge=1, description="Most neighbours whose distance counts."
        )
        distance: Literal["euclidean", "squared"] = Field(
            default="euclidean", description="Distance as it is, or squared."
        )
        normalise: bool = Field(
            default=True, description="Whether embeddings are scaled to length 1."
        )

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the typicality of each sample within its cluster. Shape (N,)."""
        clusters = self._clusters(pool, context)
        typicality = torch.cat([cluster.typicality_M for cluster in clusters])
        members = torch.cat([cluster.members_M for cluster in clusters])
        return torch.empty_like(typicality).scatter_(0, members, typicality)

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the samples in the order of the clusters' turns."""
        clusters = sorted(self._clusters(pool, context), key=lambda c: (c.num_labelled, -c.size))
        limit = self.parameters.min_cluster_size
        large = [cluster for cluster in clusters if cluster.size > limit]
        small = [cluster for cluster in clusters if cluster.size <= limit]
        turns = itertools.chain(_in_turns(large), _in_turns(small))
        return pool.ids_N[list(itertools.islice(turns, context.budget))]

    def _clusters(self, pool: PoolView, context: QueryContext) -> list[_Cluster]:
        """Return the clusters that have samples in the pool, by number."""
        embeddings = (self.embeddings(pool), self.labelled_embeddings(pool))
        # A tensor of its own, so that it may be changed in place.
        both_ND = torch.cat([values.double() for values in embeddings])
        if self.parameters.normalise:
            normalize(both_ND, dim=1, out=both_ND)
        pool_ND, labelled_LD = both_ND[: len(pool)], both_ND[len(pool) :]
        # Scores may be asked for where nothing is bought and nothing is labelled.
        wanted = max(1, len(labelled_LD) + context.budget)
        most = min(wanted, self.parameters.max_clusters)
        numbers = k_means(both_ND, most, context.generator(self.name))
        pool_N, labelled_L = numbers[: len(pool)], numbers[len(pool) :]
        sizes_K = np.bincount(pool_N, minlength=most).tolist()
        labelled_K = np.bincount(labelled_L, minlength=most).tolist()
        by_cluster = torch.as_tensor(np.argsort(pool_N, kind="stable"), device=pool_ND.device)
        members = torch.split(by_cluster, sizes_K)
        return [
            _Cluster(pool_ND, members_M, num_labelled, self.parameters)
            for members_M, num_labelled in zip(members, labelled_K, strict=True)
            if len(members_M)
        ]


class _Cluster:
    """A cluster's samples in the pool, of which one after the other is taken.

    Parameters
    ----------
    pool_ND : Tensor
        Embeddings of the pool, float64. Shape (N, D).
    members_M : Tensor
        Positions in the pool, int64, increasing. Shape (M,).
    num_labelled : int
        Number of labelled samples that belong to the cluster, too.
    parameters : Typicality.Parameters
        Neighbours and distance.
    """

    def __init__(
        self,
        pool_ND: Tensor,
        members_M: Tensor,
        num_labelled: int,
        parameters: Typicality.Parameters,
    ) -> None:
        self.members_M = members_M
        self.num_labelled = num_labelled
        self.size = len(members_M) + num_labelled
        self.num_left = len(members_M)
        self._pool_ND = pool_ND
        self._parameters = parameters

    @cached_property
    def _neighbourhood(self) -> Neighbourhood:
        # Not before its first turn: with a small budget, most clusters have none.
        squared = self._parameters.distance == "squared"
        return Neighbourhood(self._pool_ND[self.members_M], self._parameters.neighbours, squared)

    @property
    def typicality_M(self) -> Tensor:
        """Inverse of the mean distance to the neighbours, float64; of those left, at most so."""
        return 1.0 / (self._neighbourhood.mean_distance_M + SMOOTHING)

    def take(self) -> int:
        """Take the most typical sample that is left, the lowest among equals."""
        member = self._highest()
        # It can only have fallen, so what is up to date and the highest is the highest of all.
        while self._neighbourhood.update(member):
            member = self._highest()
        self._neighbourhood.remove(member)
        self.num_left -= 1
        return int(self.members_M[member])

    def _highest(self) -> int:
        left_M = self._neighbourhood.left_M
        return first_highest(self.typicality_M.masked_fill(~left_M, -torch.inf))


def _in_turns(clusters: list[_Cluster]) -> Iterator[int]:
    """Yield one position of each cluster after the other, as long as any has samples."""
    while clusters:
        for cluster in clusters:
            yield cluster.take()
        clusters = [cluster for cluster in clusters if cluster.num_left]
