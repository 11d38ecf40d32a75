"""Lloyd's algorithm from several seedings at once, each by greedy k-means++.

Ten starts one after the other read all points ten times in each step; side by side their
products with the points are one, which is where the time goes.

Shape suffixes: N points, D width, K clusters, S starts, A starts that have not converged,
T candidates for a seed, M memberships that change.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ahfal_app.query.core.points import row_blocks

#: Most steps, and the squared movement of all centres that ends them, as a share of the points'
#: mean variance: those of scikit-learn, as the authors whose methods cluster have used it.
MAX_STEPS, TOLERANCE = 300, 1e-4

#: Sums of distances that differ by a smaller share are the same.
_SAME = 1e-6

#: Distances and rows that are held at a time.
_DISTANCES, _ROWS = 2**21, 1024

#: Most distances that are kept from one step to the next: 128 MiB.
_KEPT = 2**25


def lloyd_clusters(
    points_ND: Tensor, num_clusters: int, starts: int, generator: np.random.Generator
) -> Tensor:
    """Return each point's cluster in the start with the smallest squared distances to the means.

    A step takes time N D K for each start, later ones less; memory is linear in N. A cluster that
    is left empty begins again with the point that is the furthest from its centre.

    Parameters
    ----------
    points_ND : Tensor
        About the origin and of a size of about 1, float32. Shape (N, D).
    num_clusters : int
        K, at least 1 and at most the number of distinct points.
    starts : int
        S, at least 1.
    generator : np.random.Generator
        What seeds are drawn from.

    Returns
    -------
    Tensor
        int64, shape (N,).
    """
    seeds_SK = seeds(points_ND, num_clusters, starts, generator)
    return best_clusters(points_ND, points_ND[seeds_SK])


def seeds(
    points_ND: Tensor, num_clusters: int, starts: int, generator: np.random.Generator
) -> Tensor:
    """Return positions that are drawn with probability proportional to their squared distances.

    Greedy k-means++ (Arthur and Vassilvitskii, 2007): of 2 + log K candidates for each seed,
    the one that leaves the smallest sum of squared distances to the nearest seed is taken.

    Parameters
    ----------
    points_ND, num_clusters, starts, generator
        As of `lloyd_clusters`.

    Returns
    -------
    Tensor
        int64, shape (S, K).
    """
    size, device = len(points_ND), points_ND.device
    trials = 2 + int(math.log(num_clusters))
    each_S = torch.arange(starts, device=device)
    pairwise = _PairwiseDistances(points_ND, starts * trials * num_clusters)
    first_S = torch.from_numpy(generator.integers(size, size=starts)).to(device)
    nearest_SN = pairwise.of(first_S)
    seeds_SK = torch.empty(starts, num_clusters, dtype=torch.int64, device=device)
    seeds_SK[:, 0] = first_S
    for k in range(1, num_clusters):
        drawn_ST = torch.from_numpy(generator.random((starts, trials))).to(device)
        summed_SN = nearest_SN.cumsum(dim=1, dtype=torch.float64)
        candidates_ST = torch.searchsorted(summed_SN, drawn_ST * summed_SN[:, -1:], right=True)
        candidates_ST.clamp_(max=size - 1)
        left_STN = pairwise.of(candidates_ST.flatten()).view(starts, trials, size)
        torch.minimum(left_STN, nearest_SN[:, None], out=left_STN)
        best_S = _first_smallest(left_STN.sum(dim=2, dtype=torch.float64))
        nearest_SN = left_STN[each_S, best_S]
        seeds_SK[:, k] = candidates_ST[each_S, best_S]
    return seeds_SK


def _first_smallest(sums_ST: Tensor) -> Tensor:
    """Return the first candidate of each start whose sum is the smallest, up to rounding.

    Two points that are each other's nearest often leave the same: rounding is not to decide.
    """
    smallest_S1 = sums_ST.min(dim=1, keepdim=True).values
    return (sums_ST <= smallest_S1 * (1 + _SAME)).int().argmax(dim=1)


class _PairwiseDistances:
    """Squared distances between points: all of them at once where more are going to be asked.

    Parameters
    ----------
    points_ND : Tensor
        As of `lloyd_clusters`.
    asked : int
        Points of which the distances are going to be asked, counting repetitions.
    """

    def __init__(self, points_ND: Tensor, asked: int) -> None:
        self._points_ND = points_ND
        self._norms_N = points_ND.square().sum(dim=1)
        size = len(points_ND)
        self._all_NN = self._all() if asked > size and size**2 <= _KEPT else None

    def of(self, chosen_M: Tensor) -> Tensor:
        """Return the distances of some points to all, float32, 0 to themselves. Shape (M, N)."""
        if self._all_NN is not None:
            return self._all_NN[chosen_M]
        each_M = torch.arange(len(chosen_M), device=chosen_M.device)
        squared_MN = self._squared(chosen_M, slice(None))
        squared_MN[each_M, chosen_M] = 0
        return squared_MN

    def _squared(self, rows: Tensor | slice, columns: slice) -> Tensor:
        norms_N, points_ND = self._norms_N, self._points_ND
        squared = torch.addmm(norms_N[columns], points_ND[rows], points_ND[columns].T, alpha=-2)
        return squared.add_(norms_N[rows][:, None]).clamp_(min=0)

    def _all(self) -> Tensor:
        size = len(self._points_ND)
        squared_NN = self._points_ND.new_empty(size, size)
        for rows in row_blocks(size):
            # Distances are symmetric: what is left of the diagonal is known already.
            squared_NN[rows, rows.start :] = self._squared(rows, slice(rows.start, size))
            squared_NN[rows.stop :, rows] = squared_NN[rows, rows.stop :].T
        squared_NN.fill_diagonal_(0)
        return squared_NN


def best_clusters(points_ND: Tensor, centres_SKD: Tensor) -> Tensor:
    """Return each point's cluster in the best of several starts, of which the centres are given.

    Parameters
    ----------
    points_ND : Tensor
        As of `lloyd_clusters`.
    centres_SKD : Tensor
        float32. Shape (S, K, D).

    Returns
    -------
    Tensor
        int64, shape (N,).
    """
    tolerance = TOLERANCE * float(points_ND.double().var(dim=0, correction=0).mean())
    clusterings = _Clusterings(points_ND, centres_SKD.shape[1], len(centres_SKD))
    active_A = torch.arange(len(centres_SKD), device=points_ND.device)
    # Centres that hardly move are left where they are, and their points are assigned once more.
    last_A = torch.zeros_like(active_A, dtype=torch.bool)
    centres_AKD = centres_SKD
    for step in range(MAX_STEPS + 1):
        changed_A = clusterings.assign(active_A, centres_AKD)
        going_A = changed_A & ~last_A & (step < MAX_STEPS)
        active_A = active_A[going_A]
        if not len(active_A):
            break
        means_AKD = clusterings.means(active_A)
        moved_A = (means_AKD - centres_AKD[going_A]).double().square().sum(dim=(1, 2))
        last_A = moved_A <= tolerance
        centres_AKD = means_AKD
    return clusterings.labels_SN[clusterings.explained_S().argmax()]


class _Clusterings:
    """Which cluster each point belongs to in each start, and the sums of the clusters' points.

    Parameters
    ----------
    points_ND : Tensor
        As of `lloyd_clusters`.
    num_clusters, starts : int
        K and S.
    """

    def __init__(self, points_ND: Tensor, num_clusters: int, starts: int) -> None:
        size, width = points_ND.shape
        self.labels_SN = points_ND.new_full((starts, size), -1, dtype=torch.int64)
        self._points_ND = points_ND
        self._sums_SKD = points_ND.new_zeros(starts, num_clusters, width, dtype=torch.float64)
        self._counts_SK = points_ND.new_zeros(starts, num_clusters, dtype=torch.int64)
        self._kept: _KeptDistances | None = None
        if starts * num_clusters * size <= _KEPT:
            self._kept = _KeptDistances(points_ND, num_clusters, starts)

    def assign(self, active_A: Tensor, centres_AKD: Tensor) -> Tensor:
        """Assign all points to their nearest centres; return whether any changed. Shape (A,)."""
        if self._kept is not None:
            labels_AN, distances_AN = self._kept.nearest(active_A, centres_AKD)
        else:
            labels_AN, distances_AN = self._nearest(centres_AKD)
        changed_A = self._move(active_A, labels_AN)
        self._fill(active_A, distances_AN)
        return changed_A

    def _nearest(self, centres_AKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return each point's nearest centre, and the distance as `_distances` has it. (A, N)."""
        starts, clusters, width = centres_AKD.shape
        size = len(self._points_ND)
        labels_AN = self.labels_SN.new_empty(starts, size)
        distances_AN = centres_AKD.new_empty(starts, size)
        flat_KD = centres_AKD.view(-1, width)
        at_once = max(1, _DISTANCES // len(flat_KD))
        for start in range(0, size, at_once):
            rows = slice(start, start + at_once)
            squared_KM = _distances(flat_KD, self._points_ND[rows])
            nearest = squared_KM.view(starts, clusters, -1).min(dim=1)
            labels_AN[:, rows] = nearest.indices
            distances_AN[:, rows] = nearest.values
        return labels_AN, distances_AN

    def means(self, active_A: Tensor) -> Tensor:
        """Return the means of the clusters, float32. Shape (A, K, D)."""
        means_AKD = self._sums_SKD[active_A] / self._counts_SK[active_A, :, None]
        return means_AKD.to(self._points_ND.dtype)

    def explained_S(self) -> Tensor:
        """Return the sum of squared distances that each start takes off, float64. Shape (S,)."""
        return (self._sums_SKD.square().sum(dim=2) / self._counts_SK).sum(dim=1)

    def _move(self, active_A: Tensor, labels_AN: Tensor) -> Tensor:
        old_AN = self.labels_SN[active_A]
        changed_AN = labels_AN != old_AN
        which_M, points_M = changed_AN.nonzero(as_tuple=True)
        self.labels_SN[active_A] = labels_AN
        clusters = self._counts_SK.shape[1]
        first_M = active_A[which_M] * clusters
        into_M, from_M = labels_AN[which_M, points_M], old_AN[which_M, points_M]
        self._add(first_M + into_M, points_M, 1)
        left_M = from_M >= 0
        self._add((first_M + from_M)[left_M], points_M[left_M], -1)
        return changed_AN.any(dim=1)

    def _add(self, clusters_M: Tensor, points_M: Tensor, sign: int) -> None:
        """Add points to clusters of all starts, or take them off."""
        counts, sums = self._counts_SK.view(-1), self._sums_SKD.view(-1, self._points_ND.shape[1])
        counts.index_add_(0, clusters_M, torch.full_like(clusters_M, sign))
        blocks = zip(torch.split(clusters_M, _ROWS), torch.split(points_M, _ROWS), strict=True)
        for into, points in blocks:
            sums.index_add_(0, into, self._points_ND[points].double(), alpha=sign)

    def _fill(self, active_A: Tensor, distances_AN: Tensor) -> None:
        """Give each empty cluster the point that is the furthest from its centre."""
        for a, k in (self._counts_SK[active_A] == 0).nonzero().tolist():
            s = int(active_A[a])
            labels_N = self.labels_SN[s]
            squared_N = distances_AN[a] + self._points_ND.square().sum(dim=1)
            # The only point of a cluster would leave another empty one.
            squared_N[self._counts_SK[s][labels_N] == 1] = -torch.inf
            labels_N = labels_N.clone()
            labels_N[squared_N.argmax()] = k
            self._move(active_A[a : a + 1], labels_N[None])


class _KeptDistances:
    """Distances of all points to all centres, of which those to centres that move are replaced.

    After the first steps most clusters have the points that they had, and so the same mean.

    Parameters
    ----------
    points_ND : Tensor
        As of `lloyd_clusters`.
    num_clusters, starts : int
        K and S.
    """

    def __init__(self, points_ND: Tensor, num_clusters: int, starts: int) -> None:
        size, width = points_ND.shape
        self._points_ND = points_ND
        self._centres_SKD = points_ND.new_full((starts, num_clusters, width), torch.nan)
        self._squared_SKN = points_ND.new_empty(starts, num_clusters, size)

    def nearest(self, active_A: Tensor, centres_AKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return each point's nearest centre, and the distance as `_distances` has it. (A, N)."""
        which_M, clusters_M = (
            (centres_AKD != self._centres_SKD[active_A]).any(dim=2).nonzero(as_tuple=True)
        )
        self._centres_SKD[active_A] = centres_AKD
        at_once = max(1, _DISTANCES // len(self._points_ND))
        blocks = zip(torch.split(which_M, at_once), torch.split(clusters_M, at_once), strict=True)
        for which, clusters in blocks:
            squared = _distances(centres_AKD[which, clusters], self._points_ND)
            self._squared_SKN[active_A[which], clusters] = squared
        nearest = [self._squared_SKN[s].min(dim=0) for s in active_A.tolist()]
        labels_AN = torch.stack([each.indices for each in nearest])
        return labels_AN, torch.stack([each.values for each in nearest])


def _distances(centres_KD: Tensor, points_ND: Tensor) -> Tensor:
    """Return squared distances without the points' own norms, which decide nothing. (K, N)."""
    norms_K1 = centres_KD.square().sum(dim=1, keepdim=True)
    return torch.addmm(norms_K1, centres_KD, points_ND.T, alpha=-2)
