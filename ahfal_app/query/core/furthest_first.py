"""Furthest-first traversal: greedy k-center (Gonzalez, 1985).

Shape suffixes: N samples in the pool, D width of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def furthest_first(vectors_ND: Tensor, distance_N: Tensor, count: int) -> NDArray[np.int64]:
    """Return the positions that are, one after the other, furthest from all taken before.

    Memory is linear in the pool, and time is one pass over the vectors for each position.

    Parameters
    ----------
    vectors_ND : Tensor
        float32 or float64. Shape (N, D).
    distance_N : Tensor
        Squared distances to what counts as taken at the start. Shape (N,).
    count : int
        Number of positions, at most N.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions in the order taken; among equals the lowest comes first.
    """
    nearest_N = distance_N.to(torch.float64, copy=True)
    taken = torch.empty(count, dtype=torch.int64, device=vectors_ND.device)
    for step in range(count):
        # As a tensor, so that a GPU is not waited for: argmax gives the first of equals.
        furthest_1 = nearest_N.argmax(keepdim=True)
        taken[step] = furthest_1[0]
        # Differences are taken number by number: by inner products, near vectors would cancel.
        distance_N1 = torch.cdist(
            vectors_ND, vectors_ND[furthest_1], compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest_N = torch.minimum(nearest_N, distance_N1[:, 0].double().square())
        nearest_N[furthest_1] = -torch.inf
    return taken.cpu().numpy()
