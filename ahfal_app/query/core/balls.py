"""Balls of different radii around labelled points: what they cover, and how pure they are.

Shape suffixes: P points, R reference points, L centres, K centres looked at together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ahfal_app.query.core.coverage import REFERENCES, ROWS
from ahfal_app.query.core.points import Points

#: Distances of one block of centres to all reference points: 16 MiB.
_BLOCK = 2**21


@dataclass(frozen=True, eq=False)
class Balls:
    """Open balls around some points, and the reference points that may lie in them.

    Attributes
    ----------
    points : Points
        All points, by their squared distances.
    centres_L : Tensor
        Positions of the centres, int64. Shape (L,).
    references_R : Tensor
        Positions of the reference points, int64. Shape (R,).
    """

    points: Points
    centres_L: Tensor
    references_R: Tensor

    def covered(self, radii_L: Tensor) -> Tensor:
        """Return which reference points lie in any ball, bool. Shape (R,).

        Parameters
        ----------
        radii_L : Tensor
            Float64. Shape (L,).
        """
        covered_R = torch.zeros_like(self.references_R, dtype=torch.bool)
        for rows in torch.split(self._rows(), ROWS):
            centres, squared_K1 = self.centres_L[rows], radii_L[rows].square()[:, None]
            for start in range(0, len(covered_R), REFERENCES):
                columns = slice(start, start + REFERENCES)
                distances = self.points.squared_distances(centres, self.references_R[columns])
                covered_R[columns] |= (distances < squared_K1).any(dim=0)
        return covered_R

    def pure_radii(
        self,
        labels_L: Tensor,
        classes_R: Tensor,
        least_purity: float,
        largest: float,
        resolution: float,
    ) -> Tensor:
        """Return about the largest radius at which each ball is pure, float64. Shape (L,).

        Parameters
        ----------
        labels_L, classes_R : Tensor
            Classes of the centres and of the reference points, int64.
        least_purity, largest, resolution : float
            As of `bisected`.
        """
        radii_L = torch.zeros_like(self.centres_L, dtype=torch.float64)
        number = max(1, _BLOCK // max(1, len(self.references_R)))
        for rows in torch.split(self._rows(), number):
            distances_KR = self.points.squared_distances(self.centres_L[rows], self.references_R)
            is_same_KR = labels_L[rows][:, None] == classes_R

            def purity(
                radii_K: Tensor, distances: Tensor = distances_KR, is_same: Tensor = is_same_KR
            ) -> Tensor:
                return ball_purity(distances, is_same, radii_K)

            found_K = bisected(purity, len(rows), least_purity, largest, resolution)
            radii_L[rows] = found_K.to(radii_L.device)
        return radii_L

    def _rows(self) -> Tensor:
        return torch.arange(len(self.centres_L), device=self.centres_L.device)


def ball_purity(distances_KR: Tensor, is_same_KR: Tensor, radii_K: Tensor) -> Tensor:
    """Return what share of the points in each ball is of its centre's class. Shape (K,).

    Parameters
    ----------
    distances_KR : Tensor
        Squared. Shape (K, R).
    is_same_KR : Tensor
        Whether a point is of the centre's class, bool. Shape (K, R).
    radii_K : Tensor
        Float64. Shape (K,).

    Returns
    -------
    Tensor
        Float64; 1 where nothing is in a ball, as there is nothing of another class.
    """
    is_inside_KR = distances_KR < radii_K.square()[:, None].to(distances_KR.device)
    inside_K = is_inside_KR.sum(dim=1)
    same_K = (is_inside_KR & is_same_KR).sum(dim=1)
    return torch.where(inside_K > 0, same_K / inside_K.clamp(min=1).double(), 1.0).cpu()


def bisected(
    purity: Callable[[Tensor], Tensor],
    count: int,
    least_purity: float,
    largest: float,
    resolution: float,
) -> Tensor:
    """Return for several balls about the largest radius at which they are pure, by bisection.

    The search halves [0, `largest`] until the rest is at most `resolution` wide, and takes its
    middle. Where a ball is exactly as pure as it must be and the next one is not, it takes the
    radius of the former, as the published code of DCoM does.

    Parameters
    ----------
    purity : Callable[[Tensor], Tensor]
        Maps radii to purities, float64. Shapes (K,).
    count : int
        Number of balls K.
    least_purity : float
        Purity that a ball must have.
    largest, resolution : float
        Largest radius, and the width at which the search ends.

    Returns
    -------
    Tensor
        Float64. Shape (count,).
    """
    low_K = torch.zeros(count, dtype=torch.float64)
    high_K = torch.full_like(low_K, largest)
    middle_K, last_K, last_purity_K = high_K / 2, high_K / 2, low_K
    is_done_K = torch.zeros_like(low_K, dtype=torch.bool)
    width = largest
    while width > resolution:
        purity_K = purity(middle_K)
        is_pure_K = purity_K >= least_purity
        exact_K = (last_K < middle_K) & (last_purity_K == least_purity) & ~is_pure_K & ~is_done_K
        is_done_K |= exact_K
        low_K = torch.where(is_pure_K, middle_K, low_K)
        high_K = torch.where(is_pure_K, high_K, middle_K)
        settled_K = torch.where(exact_K, last_K, middle_K)
        last_K, last_purity_K = middle_K, purity_K
        middle_K = torch.where(is_done_K, settled_K, (low_K + high_K) / 2)
        width /= 2
    return middle_K
