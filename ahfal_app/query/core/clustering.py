"""K-means clusters of embeddings by Lloyd's algorithm; many clusters of many points on batches.

Shape suffixes: N points, D embedding width, K clusters.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch import Tensor

from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.lloyd import lloyd_clusters
from ahfal_app.query.core.picking import ranked
from ahfal_app.query.core.points import EmbeddingPoints, row_blocks

#: Up to so many clusters are few.
FEW_CLUSTERS = 50

#: Starts of which the best counts, with few clusters and with many.
FEW_STARTS, MANY_STARTS = 10, 3

#: Points in a batch.
BATCH = 5000

#: Up to so many points all take part in each step, even with many clusters: a batch is hardly
#: smaller, and steps that move no more than some centres take less time than drawing batches.
FULL_POINTS = 2 * BATCH

#: Points for each cluster that the seeding with batches looks at.
SEEDING_POINTS = 3


def k_means(
    embeddings_ND: Tensor, num_clusters: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return each point's cluster, numbered from 0; some may have no points.

    Parameters
    ----------
    embeddings_ND : Tensor
        Finite, at least one row. Shape (N, D).
    num_clusters : int
        Number of clusters, at least 1; there are fewer where fewer points are distinct.
    generator : np.random.Generator
        What the seed is drawn from.

    Returns
    -------
    NDArray[np.int64]
        Shape (N,). Equal for equal embeddings and an equal generator: with batches one thread is
        used, as more add up in an order of their own.
    """
    if num_clusters <= FEW_CLUSTERS:
        return lloyd(embeddings_ND, num_clusters, FEW_STARTS, generator)
    if len(embeddings_ND) <= FULL_POINTS:
        return lloyd(embeddings_ND, num_clusters, MANY_STARTS, generator)
    points_ND = _scaled(embeddings_ND)
    num_clusters = min(num_clusters, _num_distinct(points_ND))
    # The default seeding looks at three batches, which takes longer than all the rest.
    model = MiniBatchKMeans(
        num_clusters,
        batch_size=BATCH,
        init_size=SEEDING_POINTS * num_clusters,
        n_init=MANY_STARTS,
        random_state=int(generator.integers(2**31)),
    )
    return _fitted(model, points_ND)


def lloyd(
    embeddings_ND: Tensor, num_clusters: int, starts: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return each point's cluster by Lloyd's algorithm on all points, seeded by k-means++.

    An iteration takes time N D K for K clusters; memory is linear in N.

    Parameters
    ----------
    embeddings_ND : Tensor
        Finite, at least one row. Shape (N, D).
    num_clusters : int
        Number of clusters, at least 1; there are fewer where fewer points are distinct.
    starts : int
        Runs of which the one with the smallest distances counts.
    generator : np.random.Generator
        What the seed is drawn from.

    Returns
    -------
    NDArray[np.int64]
        Shape (N,). Equal for equal embeddings and an equal generator, as of `k_means`.
    """
    points_ND = _scaled(embeddings_ND)
    num_clusters = min(num_clusters, _num_distinct(points_ND))
    clusters_N = lloyd_clusters(
        torch.from_numpy(points_ND).to(embeddings_ND.device), num_clusters, starts, generator
    )
    return clusters_N.cpu().numpy()


def weighted_centres(
    points_ND: NDArray[np.float64],
    weights_N: NDArray[np.float64],
    num_clusters: int,
    iterations: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the centres of clusters of points that stand for several each.

    Parameters
    ----------
    points_ND : NDArray[np.float64]
        Finite; there may be none. Shape (N, D).
    weights_N : NDArray[np.float64]
        How many each stands for, above 0. Shape (N,).
    num_clusters : int
        Number of clusters K; where there are no more distinct points, all of these are centres.
    iterations : int
        Most steps of Lloyd's algorithm, after a start by k-means++.
    generator : np.random.Generator
        What the seed is drawn from.

    Returns
    -------
    NDArray[np.float64]
        Shape (K, D), or fewer.
    """
    distinct_ND = np.unique(points_ND, axis=0)
    if len(distinct_ND) <= num_clusters:
        return distinct_ND
    seed = int(generator.integers(2**31))
    model = KMeans(num_clusters, n_init=1, max_iter=iterations, random_state=seed)
    _use_one_blas_thread()
    with _libraries().limit(limits=1, user_api="openmp"):
        model.fit(points_ND, sample_weight=weights_N)
    return np.asarray(model.cluster_centers_, dtype=np.float64)


def representatives(
    points_ND: Tensor, count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the point nearest to the mean of each of so many clusters, the largest first.

    Where there are fewer clusters, because fewer points are distinct or a cluster was left empty,
    those that are the furthest from all chosen follow.

    Parameters
    ----------
    points_ND : Tensor
        Finite. Shape (N, D).
    count : int
        Number of points, at most N.
    generator : np.random.Generator
        What the seed of k-means is drawn from.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions, ties to the lowest. Shape (count,).
    """
    clusters_N = torch.from_numpy(k_means(points_ND, count, generator)).to(points_ND.device)
    sizes_K = torch.bincount(clusters_N)
    points_ND = points_ND.double()
    sums_KD = points_ND.new_zeros(len(sizes_K), points_ND.shape[1])
    sums_KD.index_add_(0, clusters_N, points_ND)
    centres_KD = sums_KD / sizes_K.clamp(min=1)[:, None]
    squared_N = (points_ND - centres_KD[clusters_N]).square().sum(dim=1)
    order_N = ranked(-squared_N)
    first_K = torch.full_like(sizes_K, len(points_ND))
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    first_K.scatter_reduce_(0, clusters_N, rank_N, "amin")
    largest_K = torch.argsort(-sizes_K, stable=True)
    chosen = order_N[first_K[largest_K[sizes_K[largest_K] > 0]]]
    if len(chosen) == count:
        return chosen.cpu().numpy()
    points = EmbeddingPoints(points_ND)
    nearest_N = torch.full_like(squared_N, torch.inf)
    points.lower(nearest_N, chosen)
    nearest_N[chosen] = -torch.inf
    filled = greedy_k_center(points, nearest_N, count - len(chosen))
    return np.concatenate([chosen.cpu().numpy(), filled])


def _fitted(model: MiniBatchKMeans, points_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    _use_one_blas_thread()
    # OpenMP's limit is this thread's own, so that it can be set for this call.
    with _libraries().limit(limits=1, user_api="openmp"):
        clusters_N: NDArray[np.int64] = model.fit_predict(points_ND).astype(np.int64)
    return clusters_N


@functools.cache
def _use_one_blas_thread() -> None:
    """Have NumPy and SciPy multiply matrices on one thread from now on, in this process.

    This limit holds for all threads. Set and reset around each call, clients that are served
    at the same time would undo each other's; and two threads of a busy machine wait for each
    other longer than they work.
    """
    threadpool_limits(1, user_api="blas")


@functools.cache
def _libraries() -> ThreadpoolController:
    """Find the libraries with threads once: it takes longer than a small clustering."""
    return ThreadpoolController()


def _scaled(embeddings_ND: Tensor) -> NDArray[np.float32]:
    """Return float32 points about the origin and within the unit cube.

    Clusters do not depend on place and scale, but float32 squares of large numbers overflow.
    """
    mean_D = embeddings_ND.mean(dim=0, dtype=torch.float64)
    low_D, high_D = embeddings_ND.aminmax(dim=0)
    scale = torch.maximum(high_D - mean_D, mean_D - low_D).max()
    divisor = scale if scale > 0 else 1.0
    points_ND = torch.empty_like(embeddings_ND, dtype=torch.float32)
    for rows in row_blocks(len(embeddings_ND)):
        points_ND[rows] = (embeddings_ND[rows].double() - mean_D) / divisor
    # Adding zero turns -0 into 0, which has other bytes.
    scaled_ND: NDArray[np.float32] = points_ND.add_(0.0).cpu().numpy()
    return scaled_ND


def _num_distinct(points_ND: NDArray[np.float32]) -> int:
    row_bytes = np.dtype((np.void, points_ND.itemsize * points_ND.shape[1]))
    return len(np.unique(np.ascontiguousarray(points_ND).view(row_bytes)))
