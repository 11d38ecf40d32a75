"""Bounds of squared distances, cheap to have and kept where there is room.

Shape suffixes: N candidates, R reference points, K rows looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ahfal_app.query.core.points import ROWS, Points, row_blocks

#: Most bounds that are kept, 128 MiB of them: all between 5,792 points.
KEPT = 2**25


class Nearness:
    """What no squared distance from a candidate to a reference point is below.

    Parameters
    ----------
    points : Points
        All points, the candidates first.
    size : int
        Number of candidates N.
    references_R : Tensor
        Positions of the reference points, int64. Shape (R,).
    """

    def __init__(self, points: Points, size: int, references_R: Tensor) -> None:
        self._points, self._size, self._references_R = points, size, references_R
        self._kept_NR: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of candidates with the bounds of their distances, and keep these if few."""
        if self._size * len(self._references_R) > KEPT:
            for rows in row_blocks(self._size, ROWS // 4):
                yield rows, self._points.distance_bounds(rows, self.references)
            return
        if self._kept_NR is None:
            self._kept_NR = self._all()
        for rows in row_blocks(self._size, ROWS // 4):
            yield rows, self._kept_NR[rows]

    def of(self, rows_K: Tensor) -> Tensor:
        """Return the bounds of some candidates' distances, float32 or float64. Shape (K, R).

        Parameters
        ----------
        rows_K : Tensor
            Positions of candidates, int64.
        """
        if self._kept_NR is not None:
            return self._kept_NR[rows_K]
        return self._points.distance_bounds(rows_K, self.references)

    @property
    def references(self) -> Tensor | slice:
        """The reference points' positions; as a slice, which copies nothing, if they are all."""
        return slice(0, len(self._references_R)) if self._are_first else self._references_R

    @cached_property
    def _are_first(self) -> bool:
        """Whether the reference points are the first points, in order."""
        first_R = torch.arange(len(self._references_R), device=self._references_R.device)
        return torch.equal(self._references_R, first_R)

    def _all(self) -> Tensor:
        size, number = self._size, len(self._references_R)
        # In the type that the bounds come in: rounded, they might be none.
        kind = self._points.distance_bounds(slice(0, 0), slice(0, 0))
        bounds_NR = kind.new_empty(size, number)
        for rows in row_blocks(size):
            if not self._are_first or number < size:
                bounds_NR[rows] = self._points.distance_bounds(rows, self._references_R)
                continue
            # Distances are symmetric: what is left of the diagonal is known already.
            columns = slice(rows.start, number)
            bounds_NR[rows, columns] = self._points.distance_bounds(rows, columns)
            bounds_NR[rows.stop : size, rows] = bounds_NR[rows, rows.stop : size].T
        return bounds_NR
