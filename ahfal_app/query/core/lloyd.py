"""K-means to convergence on all points, by scikit-learn.

Shape suffixes: N points, D embedding width.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor


def lloyd(
    points_ND: Tensor, num_clusters: int, starts: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return each point's cluster by Lloyd's algorithm, seeded by k-means++.

    An iteration takes time N D K for K clusters, in one thread; memory is linear in N.

    Parameters
    ----------
    points_ND : Tensor
        Finite float64, at least one row. Shape (N, D).
    num_clusters : int
        Number of clusters; there are fewer where fewer points are distinct.
    starts : int
        Runs of which the one with the smallest distances counts.
    generator : np.random.Generator
        What the seed is drawn from.

    Returns
    -------
    NDArray[np.int64]
        Numbers of clusters. Shape (N,).
    """
    scaled_ND = _scaled(points_ND)
    _use_one_blas_thread()
    model = KMeans(
        min(num_clusters, _num_distinct(scaled_ND)),
        n_init=starts,
        random_state=int(generator.integers(2**31)),
        # Elkan's variant keeps a bound for each point and cluster.
        algorithm="lloyd",
        copy_x=False,
    )
    # More threads add up in an order of their own. OpenMP's limit is this thread's alone.
    with threadpool_limits(1, user_api="openmp"):
        clusters_N: NDArray[np.int64] = model.fit_predict(scaled_ND).astype(np.int64)
    return clusters_N


@functools.cache
def _use_one_blas_thread() -> None:
    """Keep the linear algebra of NumPy to one thread from here on.

    Its limit is the process's: to lift it again would race with other clients' clustering,
    and their seeds would depend on how many threads multiplied their matrices.
    """
    threadpool_limits(1, user_api="blas")


def _scaled(points_ND: Tensor) -> NDArray[np.float32]:
    """Return float32 points around the origin and within the unit cube.

    Clusters do not depend on place and scale, but float32 squares of large numbers overflow,
    and those of small ones vanish.
    """
    centred_ND = points_ND - points_ND.mean(dim=0)
    largest = centred_ND.abs().max()
    scaled_ND = centred_ND / torch.where(largest > 0, largest, 1.0)
    # Adding 0 turns -0 into 0, so that equal points have equal bits.
    points: NDArray[np.float32] = (scaled_ND.float() + 0.0).cpu().numpy()
    return points


def _num_distinct(points_ND: NDArray[np.float32]) -> int:
    row_bytes = np.dtype((np.void, points_ND.itemsize * points_ND.shape[1]))
    return len(np.unique(np.ascontiguousarray(points_ND).view(row_bytes)))
