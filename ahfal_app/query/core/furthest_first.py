"""Furthest-first traversal: greedy k-center (Gonzalez, 1985).

Shape suffixes: N samples in the pool, R of them at a time, D width of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Rows whose differences are held at a time: few enough for a processor's cache.
_ROWS = 256


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
    slices = [slice(start, start + _ROWS) for start in range(0, len(vectors_ND), _ROWS)]
    for step in range(count):
        # As a tensor, so that a GPU is not waited for: argmax gives the first of equals.
        furthest_1 = nearest_N.argmax(keepdim=True)
        taken[step] = furthest_1[0]
        vector_1D = vectors_ND[furthest_1]
        for rows in slices:
            # Number by number: by inner products, vectors that are near would cancel.
            squares_RD = (vectors_ND[rows] - vector_1D).square_()
            distance_R = squares_RD.sum(dim=1, dtype=torch.float64)
            nearest_N[rows] = torch.minimum(nearest_N[rows], distance_R)
        nearest_N[furthest_1] = -torch.inf
    return taken.cpu().numpy()
