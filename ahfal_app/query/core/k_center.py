"""Greedy k-center: again and again the point that is furthest from its nearest centre.

Shape suffixes: N points, K candidates.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.picking import level, ranked
from ahfal_app.query.core.points import Points

#: Points that are kept up to date between two passes over all.
CANDIDATES = 512


def greedy_k_center(points: Points, nearest_N: Tensor, count: int) -> NDArray[np.int64]:
    """Return the picks of the greedy algorithm in order, ties to the lowest position.

    What ties is said in `picking`: distances that are equal on paper are equal here.

    Exactly what one pass over all points for each pick would give, in far fewer passes: a
    point's distance to its nearest centre only ever falls, so one that is known from an
    earlier time is an upper bound. Between two passes only the furthest points are kept up
    to date, and the furthest of these is the furthest of all as long as it is further than
    the bounds of the others.

    Parameters
    ----------
    points : Points
        The first N may be picked.
    nearest_N : Tensor
        Squared distance of each point to the nearest centre there is, float64; not changed.
        Shape (N,).
    count : int
        Number of picks, at most N.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions. Where all distances are zero, the lowest that are left.
    """
    nearest_N = nearest_N.clone()
    picks: list[int] = []
    while len(picks) < count:
        new = _picks_of_a_pass(points, nearest_N, count - len(picks))
        picks += new
        centres = torch.tensor(new, device=nearest_N.device)
        points.lower(nearest_N, centres)
        nearest_N[centres] = -torch.inf
    return np.array(picks, dtype=np.int64)


def _picks_of_a_pass(points: Points, nearest_N: Tensor, count: int) -> list[int]:
    """Return the next picks, as many as distances that are not up to date can settle."""
    falling_N = ranked(nearest_N)
    candidates_K = falling_N[:CANDIDATES].sort().values
    others_N = falling_N[CANDIDATES:]
    bound = float(nearest_N[others_N].max()) if len(others_N) else -np.inf
    between_KK = points.squared_distances(candidates_K, candidates_K).cpu().numpy()
    nearest_K = nearest_N[candidates_K].cpu().numpy()
    picks: list[int] = []
    while len(picks) < count:
        least = level(float(nearest_K.max()))
        # The first is exact. After it, a bound of the same value may have a lower position.
        if picks and not least > bound:
            break
        furthest = int((nearest_K >= least).argmax())
        picks.append(int(candidates_K[furthest]))
        nearest_K = np.minimum(nearest_K, between_KK[furthest])
        nearest_K[furthest] = -np.inf
    return picks
