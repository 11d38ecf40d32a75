"""Greedy coverage: again and again the point that covers most of what is not covered yet.

Shape suffixes: N candidates, P points, R reference points, L chosen before, K rows looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.nearness import Nearness
from ahfal_app.query.core.picking import SAME, level
from ahfal_app.query.core.points import Points, row_blocks

#: Rows whose gains are computed together, and reference points of one block: 16 MiB a matrix.
ROWS, REFERENCES = 512, 4096

#: Most numbers of what rows cover that are kept until a pick is settled: 4 MiB.
KEPT = 2**19

#: Rows that are looked at first after a pick; the number doubles until the pick is settled.
FIRST_ROWS = 16

#: Candidates whose gains are computed at first of those that no bound rules out; it doubles, too.
FIRST_EXACT = 4

#: Maps squared distances to how much a point covers another, in [0, 1]; it never rises.
Kernel = Callable[[Tensor], Tensor]


def gaussian(bandwidth: float) -> Kernel:
    """Return exp(-d²/h²), without a factor of 2."""
    return lambda squared: torch.exp(-squared / bandwidth**2)


def laplace(bandwidth: float) -> Kernel:
    """Return exp(-d/h)."""
    return lambda squared: torch.exp(-squared.sqrt() / bandwidth)


def student(bandwidth: float) -> Kernel:
    """Return (1 + 2 d²/h²)^(-3/4): Student's t with half a degree of freedom."""
    return lambda squared: (1 + 2 * squared / bandwidth**2) ** -0.75


def top_hat(radius: float) -> Kernel:
    """Return 1 for points nearer than a radius, and 0 for others: d < δ, not d <= δ."""
    return lambda squared: (squared < radius**2).to(squared.dtype)


@dataclass(frozen=True, eq=False)
class Coverage:
    """What is to be covered, and by what.

    A point z covers a reference point n by k(z, n), and a set by the largest of its points'.
    The gain of a point x is Σ_n u_n max(0, k(x, n) - m_n), where m_n is how much of n is
    covered.

    Attributes
    ----------
    points : Points
        All points, by their squared distances.
    kernel : Kernel
        The kernel k.
    references_R : Tensor
        Positions of the reference points, int64. Shape (R,).
    weights_R : Tensor
        Their weights u, float64, at least 0. Shape (R,).
    """

    points: Points
    kernel: Kernel
    references_R: Tensor
    weights_R: Tensor

    def covered_by(self, chosen_L: Tensor) -> Tensor:
        """Return how much of each reference point a set covers, float64. Shape (R,)."""
        if not len(chosen_L):
            return torch.zeros_like(self.weights_R)
        nearest_R = torch.full_like(self.weights_R, torch.inf)
        for chosen in torch.split(chosen_L, ROWS):
            for columns, references in self._columns():
                distances = self.points.squared_distances(chosen, references)
                nearest_R[columns] = torch.minimum(nearest_R[columns], distances.amin(dim=0))
        return self.kernel(nearest_R)

    def gains(self, rows_K: Tensor, covered_R: Tensor) -> Tensor:
        """Return the gain of each row where so much is covered, float64. Shape (K,)."""
        gains_K = self.weights_R.new_zeros(len(rows_K))
        for block in row_blocks(len(rows_K), ROWS):
            for columns, references in self._columns():
                covering = self.kernel(self.points.squared_distances(rows_K[block], references))
                gains_K[block] += self.gains_by(covering, covered_R, columns)
        return gains_K

    def covering(self, rows_K: Tensor, columns_C: Tensor | None = None) -> Tensor:
        """Return how much each row covers of each reference point, float64. Shape (K, R).

        Parameters
        ----------
        rows_K : Tensor
            Positions of points, int64.
        columns_C : Tensor, optional
            Which reference points count, int64; of others it is 0.
        """
        if columns_C is not None:
            covering_KR = self.weights_R.new_zeros(len(rows_K), len(self.references_R))
            squared_KC = self.points.squared_distances(rows_K, self.references_R[columns_C])
            covering_KR[:, columns_C] = self.kernel(squared_KC)
            return covering_KR
        blocks = [
            self.kernel(self.points.squared_distances(rows_K, references))
            for _, references in self._columns()
        ]
        return torch.cat(blocks, dim=1)

    def not_covered(self, bounds_KR: Tensor, covered_R: Tensor) -> Tensor | None:
        """Return reference points that some row may cover more than they are; None for many.

        Parameters
        ----------
        bounds_KR, covered_R : Tensor
            As of `gain_bounds`.

        Returns
        -------
        Tensor | None
            Their positions among the reference points, int64. Shape (C,).
        """
        may_gain_R = (self.kernel(bounds_KR.double()) > covered_R).any(dim=0)
        columns_C = may_gain_R.nonzero()[:, 0]
        return columns_C if len(columns_C) <= len(covered_R) // 2 else None

    def gains_by(
        self, covering_KR: Tensor, covered_R: Tensor, columns: slice = slice(None)
    ) -> Tensor:
        """Return the gain of points that cover so much where so much is covered. Shape (K,).

        Parameters
        ----------
        covering_KR : Tensor
            What `covering` returns, of the columns alone.
        covered_R : Tensor
            How much of each reference point is covered, float64.
        columns : slice
            Reference points that count.
        """
        new_KR = covering_KR - covered_R[columns]
        # What differs by rounding alone is covered.
        new_KR.masked_fill_(new_KR <= covering_KR * SAME, 0.0)
        return new_KR @ self.weights_R[columns]

    def gain_bounds(self, bounds_KR: Tensor, covered_R: Tensor) -> Tensor:
        """Return what no gain is above where so much is covered, float64. Shape (K,).

        Parameters
        ----------
        bounds_KR : Tensor
            What no squared distance to a reference point is below, for the points in question.
        covered_R : Tensor
            How much of each reference point is covered, float64.
        """
        new = self.kernel(bounds_KR.double()).sub_(covered_R).clamp_(min=0)
        return new @ self.weights_R

    def nearness(self, size: int) -> Nearness:
        """Return bounds of the first points' distances to the reference points."""
        return Nearness(self.points, size, self.references_R)

    def _columns(self) -> Iterator[tuple[slice, Tensor | slice]]:
        """Yield blocks of reference points, and these points' positions."""
        references = self.nearness(0).references
        for columns in row_blocks(len(self.references_R), REFERENCES):
            yield columns, columns if isinstance(references, slice) else references[columns]


def greedy_coverage(
    coverage: Coverage, size: int, chosen_L: Tensor, count: int, again: bool = True
) -> NDArray[np.int64]:
    """Return the picks of the greedy algorithm in order, ties to the lowest position.

    Exactly what computing all gains for each pick would give, in far fewer: what is covered
    only grows, so that a gain only falls, and one that is known from an earlier time is an
    upper bound (Minoux's lazy greedy algorithm). The first bounds take time N R; memory is
    linear in N + R, besides distances of which a bounded number is kept.

    Where no candidate has a gain any more, all that the reference points are covered is
    forgotten, and those that are not chosen cover them a second time. Where there is no gain
    even then, the lowest positions follow.

    Parameters
    ----------
    coverage : Coverage
        What is to be covered.
    size : int
        N: the first N points may be picked.
    chosen_L : Tensor
        Positions of points that cover from the beginning, int64. Shape (L,).
    count : int
        Number of picks, at most N.
    again : bool
        Whether reference points are covered a second time; otherwise the lowest positions follow
        at once.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions. Shape (count,).
    """
    search = Search(coverage, size, coverage.covered_by(chosen_L))
    return greedy_from(search, count, again)


def greedy_from(
    search: Search, count: int, again: bool = True, taken: Sequence[int] = ()
) -> NDArray[np.int64]:
    """Return more picks as of `greedy_coverage`, from where a search is.

    Parameters
    ----------
    search : Search
        What is covered so far; it goes on from there.
    count : int
        Number of picks, at most as many as there are candidates that are not taken.
    again : bool
        As of `greedy_coverage`.
    taken : Sequence[int]
        Candidates that the search has taken before.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions, none of them taken before. Shape (count,).
    """
    picks: list[int] = []
    is_fresh = False
    while len(picks) < count:
        pick = search.best()
        if pick is None:
            if is_fresh or not again:
                break
            search = search.again([*taken, *picks])
            is_fresh = True
            continue
        search.take(pick)
        picks.append(pick)
        is_fresh = False
    left = np.setdiff1d(np.arange(search.size), [*taken, *picks])[: count - len(picks)]
    return np.concatenate([np.array(picks, dtype=np.int64), left])


class Search:
    """Candidates with upper bounds of their gains, in one layer of coverage.

    Bounds from distances in single precision rule out nearly all candidates; the gains of those
    that they do not are computed in double precision, so that these alone decide.

    Parameters
    ----------
    coverage : Coverage
        What is to be covered.
    size : int
        N: the first N points are the candidates.
    covered_R : Tensor
        How much of each reference point is covered, float64. Shape (R,).
    taken : Sequence[int]
        Candidates that are not picked.
    bounds_N : Tensor, optional
        Upper bounds of the gains, as they were when less was covered; -inf of those that are not
        picked. Shape (N,).
    nearness : Nearness, optional
        Bounds of the candidates' distances, where they are known from another search.

    Attributes
    ----------
    covered_R, bounds_N : Tensor
        As they are now.
    """

    def __init__(
        self,
        coverage: Coverage,
        size: int,
        covered_R: Tensor,
        taken: Sequence[int] = (),
        bounds_N: Tensor | None = None,
        nearness: Nearness | None = None,
    ) -> None:
        self.coverage, self.size, self.covered_R = coverage, size, covered_R
        self._nearness = nearness or coverage.nearness(size)
        # Which bounds are of what is covered now, and which of them are the gains themselves.
        self._is_current_N = torch.full((size,), bounds_N is None, device=covered_R.device)
        self.bounds_N = self._bounds() if bounds_N is None else bounds_N.clone()
        left_out = torch.tensor(list(taken), dtype=torch.int64, device=covered_R.device)
        self.bounds_N[left_out] = -torch.inf
        # A gain is at least 0.
        self._is_fresh_N = self.bounds_N <= 0
        # What was computed last, as the pick is nearly always among it.
        self._covering: tuple[Tensor, Tensor] | None = None

    def again(self, taken: Sequence[int]) -> Search:
        """Return a search for what covers most if nothing is covered, without those taken."""
        nothing_R = torch.zeros_like(self.covered_R)
        return Search(self.coverage, self.size, nothing_R, taken, nearness=self._nearness)

    def best(self) -> int | None:
        """Return the lowest position with the largest gain, or None where there is no gain."""
        position = self.foremost(lambda gains_N: gains_N) if self.size else 0
        return position if self.size and float(self.bounds_N[position]) > 0 else None

    def least(self) -> float:
        """Return the smallest gain, -inf where a candidate was left out; there is a candidate."""
        self._compute((~self._is_fresh_N).nonzero()[:, 0])
        return float(self.bounds_N.min())

    def foremost(self, worth: Callable[[Tensor], Tensor]) -> int:
        """Return the lowest position of the candidate that is worth most; there is one.

        Parameters
        ----------
        worth : Callable[[Tensor], Tensor]
            Maps gains of all candidates, or upper bounds of them, to what these are worth, which
            falls for none of them as its gain rises; -inf stays -inf. Shape (N,).
        """
        number, exact = FIRST_ROWS, FIRST_EXACT
        positions_N = torch.arange(self.size, device=self.bounds_N.device)
        while True:
            worth_N = worth(self.bounds_N)
            fresh_N = worth_N.masked_fill(~self._is_fresh_N, -torch.inf)
            highest = float(fresh_N.max())
            first = int((fresh_N >= level(highest)).int().argmax())
            # One that is level at most and comes later changes nothing.
            may_be_first_N = (worth_N >= level(highest)) & (positions_N < first)
            is_stale_N = ((worth_N > highest) | may_be_first_N) & ~self._is_fresh_N
            stale_K = is_stale_N.nonzero()[:, 0]
            if not len(stale_K):
                return first
            old_K = stale_K[~self._is_current_N[stale_K]]
            current_K = stale_K[self._is_current_N[stale_K]]
            if len(current_K) and (
                not len(old_K) or worth_N[current_K].max() >= worth_N[old_K].max()
            ):
                self._compute(current_K[_highest(worth_N[current_K], exact)])
                exact = min(2 * exact, ROWS)
            else:
                self._bound(old_K[_highest(worth_N[old_K], number)])
                number = min(2 * number, ROWS)

    def _bounds(self) -> Tensor:
        bounds_N = self.covered_R.new_empty(self.size)
        for rows, distances in self._nearness.blocks():
            bounds_N[rows] = self.coverage.gain_bounds(distances, self.covered_R)
        return bounds_N

    def _bound(self, rows_K: Tensor) -> None:
        """Bring candidates' bounds to what is covered now."""
        new_K = self.coverage.gain_bounds(self._nearness.of(rows_K), self.covered_R)
        self.bounds_N[rows_K] = torch.minimum(self.bounds_N[rows_K], new_K)
        self._is_current_N[rows_K] = True
        self._is_fresh_N[rows_K] |= self.bounds_N[rows_K] <= 0

    def _compute(self, rows_K: Tensor) -> None:
        """Make candidates' bounds their gains."""
        if 0 < len(rows_K) * len(self.covered_R) <= KEPT:
            columns_C = self.coverage.not_covered(self._nearness.of(rows_K), self.covered_R)
            covering_KR = self.coverage.covering(rows_K, columns_C)
            self._covering = rows_K, covering_KR
            self.bounds_N[rows_K] = self.coverage.gains_by(covering_KR, self.covered_R)
        elif len(rows_K):
            self.bounds_N[rows_K] = self.coverage.gains(rows_K, self.covered_R)
        self._is_fresh_N[rows_K] = True

    def take(self, pick: int) -> None:
        """Have a candidate cover what it does."""
        # Without a gain it covers nothing that is not covered.
        if float(self.bounds_N[pick]) > 0:
            self.cover(self._covered_by(pick))
        self.leave_out(pick)

    def _covered_by(self, pick: int) -> Tensor:
        if self._covering is not None:
            rows_K, covering_KR = self._covering
            found = (rows_K == pick).nonzero()
            if len(found):
                return covering_KR[int(found[0, 0])]
        return self.coverage.covered_by(torch.tensor([pick], device=self.covered_R.device))

    def cover(self, covered_R: Tensor) -> None:
        """Have reference points covered by something, by so much at least."""
        self.covered_R = torch.maximum(self.covered_R, covered_R)
        # A gain that has fallen to 0 stays there.
        self._is_fresh_N = self.bounds_N <= 0
        self._is_current_N = self._is_fresh_N.clone()

    def leave_out(self, pick: int) -> None:
        """Pick a candidate no more."""
        self.bounds_N[pick] = -torch.inf


def _highest(values_K: Tensor, count: int) -> Tensor:
    """Return the positions of the highest values, of equal ones the first, in some order."""
    if len(values_K) <= count:
        return torch.arange(len(values_K), device=values_K.device)
    least = values_K.topk(count).values[-1]
    above = (values_K > least).nonzero()[:, 0]
    equal = (values_K == least).nonzero()[:, 0]
    return torch.cat([above, equal[: count - len(above)]])
