"""How near points are to their nearest neighbours, while points are taken away.

Shape suffixes: M points, D embedding width, R rows, J neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahfal_app.query.core.points import EmbeddingPoints

#: Distances in one block of the search, 16 MiB.
BLOCK = 2**21


class Neighbourhood:
    """The mean distance of each point to its nearest neighbours among those left.

    The neighbours that count are at most `most`, and at most half as many as points are left.

    Parameters
    ----------
    embeddings_MD : Tensor
        Floating-point. Shape (M, D).
    most : int
        Most neighbours that count, at least 1.
    squared : bool
        Whether distances are squared.

    Attributes
    ----------
    left_M : Tensor
        Which points are left, bool. Shape (M,).
    mean_distance_M : Tensor
        Float64, infinite where there is no other point; meaningless for points that were
        taken away, and too small, if anything, for those of which `update` was not asked
        since. Shape (M,).
    """

    def __init__(self, embeddings_MD: Tensor, most: int, squared: bool) -> None:
        self._points = EmbeddingPoints(embeddings_MD.double())
        self._most, self._squared = most, squared
        self.left_M = torch.ones(len(embeddings_MD), dtype=torch.bool, device=embeddings_MD.device)
        self.mean_distance_M = torch.empty_like(self._points.squared_norms_N)
        self._is_stale_M = torch.zeros_like(self.left_M)
        self._search_all()

    def remove(self, point: int) -> None:
        """Take a point away."""
        self.left_M[point] = False
        if self._num_neighbours() != self._neighbours_MJ.shape[1]:
            self._search_all()
        else:
            # Of many equal points one may be everybody's neighbour, so nothing is searched yet.
            self._is_stale_M |= (self._neighbours_MJ == point).any(dim=1)

    def update(self, point: int) -> bool:
        """Search a point's neighbours anew if one was taken away; return whether it was."""
        was_stale = bool(self._is_stale_M[point])
        if was_stale:
            self._search(torch.tensor([point], device=self.left_M.device))
        return was_stale

    def _num_neighbours(self) -> int:
        return min(self._most, int(self.left_M.sum()) // 2)

    def _search_all(self) -> None:
        size = (len(self.left_M), self._num_neighbours())
        self._neighbours_MJ = torch.zeros(size, dtype=torch.int64, device=self.left_M.device)
        self._search(torch.arange(len(self.left_M), device=self.left_M.device))

    def _search(self, rows: Tensor) -> None:
        self._is_stale_M[rows] = False
        num_neighbours = self._neighbours_MJ.shape[1]
        if not num_neighbours:
            self.mean_distance_M[rows] = torch.inf
            return
        for rows_R in torch.split(rows, max(1, BLOCK // len(self.left_M))):
            distances_RM = self._points.squared_distances(rows_R, slice(None))
            distances_RM[:, ~self.left_M] = torch.inf
            distances_RM.scatter_(1, rows_R[:, None], torch.inf)
            nearest = distances_RM.topk(num_neighbours, dim=1, largest=False)
            distances_RJ = nearest.values if self._squared else nearest.values.sqrt()
            self.mean_distance_M[rows_R] = distances_RJ.mean(dim=1)
            self._neighbours_MJ[rows_R] = nearest.indices
