"""Points of a pool, and their squared distances in blocks of bounded size.

Shape suffixes: N points, C classes, D embedding width, R rows, K centres, P pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

#: Rows and centres of one block of distances, which takes 8 MiB for each of its matrices.
ROWS, CENTRES = 1024, 1024

#: Numbers of each point that are converted at a time.
COLUMNS = 512

#: Squared distances up to this share of the squared norms are computed again from differences:
#: in the sum of norms and inner products all but a fraction of their digits cancels.
NEAR = 2.0**-16

#: Numbers of the pairs that are computed again at a time.
PAIRED = 2**20

#: What rounding to single precision changes a number by at most, as a share of it, and how often
#: a squared distance is rounded besides once for each number of a point, with some to spare.
_HALF_DIGIT, _ROUNDINGS = 2.0**-24, 16

#: Squared norms whose products single precision holds with room to spare.
_SINGLE = (2.0**-60, 2.0**60)


class Points(ABC):
    """Points that are known by their inner products.

    Parameters
    ----------
    squared_norms_N : Tensor
        Squared length of each point, float64. Shape (N,).
    """

    def __init__(self, squared_norms_N: Tensor) -> None:
        self.squared_norms_N = squared_norms_N

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.squared_norms_N)

    @abstractmethod
    def inner_products(self, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
        """Return the inner product of each row with each centre, float64. Shape (R, K)."""

    def squared_distances(self, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
        """Return the squared distance of each row to each centre, float64. Shape (R, K).

        As |x - y|² = |x|² + |y|² - 2 x·y by one matrix product; where that cancels, pair by
        pair. So it is 0 for equal points alone, and keeps its digits however near they are.

        Parameters
        ----------
        rows_R, centres_K : Tensor | slice
            Positions of points, int64.
        """
        rows_R1 = self.squared_norms_N[rows_R][:, None]
        norms_RK = rows_R1 + self.squared_norms_N[centres_K]
        distances_RK = self.inner_products(rows_R, centres_K).mul_(-2).add_(norms_RK)
        near = (distances_RK <= norms_RK.mul_(NEAR)).nonzero(as_tuple=True)
        positions_N = torch.arange(len(self), device=distances_RK.device)
        distances_RK[near] = self._paired(
            positions_N[rows_R][near[0]], positions_N[centres_K][near[1]]
        )
        return distances_RK

    def distance_bounds(self, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
        """Return what no squared distance is below, as near as is cheap to have. Shape (R, K).

        Parameters
        ----------
        rows_R, centres_K : Tensor | slice
            Positions of points, int64.
        """
        return self.squared_distances(rows_R, centres_K)

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers that a point is kept as."""

    @abstractmethod
    def pair_distances(self, first_P: Tensor, second_P: Tensor) -> Tensor:
        """Return the squared distance of each pair from differences, float64. Shape (P,)."""

    def _positions(self, rows_R: Tensor | slice) -> Tensor:
        if isinstance(rows_R, Tensor):
            return rows_R
        return torch.arange(len(self), device=self.squared_norms_N.device)[rows_R]

    def _paired(self, first_P: Tensor, second_P: Tensor) -> Tensor:
        pairs = zip(
            *(torch.split(of_P, self._at_once) for of_P in (first_P, second_P)), strict=True
        )
        return torch.cat([self.pair_distances(*pair) for pair in pairs])

    @property
    def _at_once(self) -> int:
        """How many pairs are computed again at a time."""
        return max(1, PAIRED // max(1, self.width))

    def lower(self, nearest_N: Tensor, centres_K: Tensor) -> None:
        """Take more centres into each point's squared distance to its nearest centre.

        Parameters
        ----------
        nearest_N : Tensor
            Squared distances of the first N points, float64; lowered in place.
        centres_K : Tensor
            Positions of the centres that are new, int64.
        """
        for centres in torch.split(centres_K, CENTRES):
            for rows in row_blocks(len(nearest_N)):
                distances = self.squared_distances(rows, centres).amin(dim=1)
                nearest_N[rows] = torch.minimum(nearest_N[rows], distances)


class EmbeddingPoints(Points):
    """Rows of a matrix.

    Parameters
    ----------
    embeddings_ND : Tensor
        Floating-point. Shape (N, D).
    """

    def __init__(self, embeddings_ND: Tensor) -> None:
        super().__init__(_squared_norms(embeddings_ND))
        self._embeddings_ND = embeddings_ND

    @property
    def embeddings_ND(self) -> Tensor:
        """The matrix."""
        return self._embeddings_ND

    def inner_products(self, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
        """Return the inner product of each row with each centre, float64. Shape (R, K)."""
        return _inner_products(self._embeddings_ND, rows_R, centres_K)

    def distance_bounds(self, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
        """Return what no squared distance is below. Shape (R, K).

        In single precision, which takes half the time, less what its rounding amounts to: the
        inner product of D numbers is off by at most (D + 2) 2⁻²⁴ |x| |y|, and |x| |y| is at most
        half the sum of the squared norms. Where the device may round products further, or the
        numbers are very large or small, the distances themselves are returned, float64.
        """
        single = self._in_single_precision
        if single is None:
            return self.squared_distances(rows_R, centres_K)
        values_ND, norms_N = single
        # Not by one call, which might round at each of the D steps what the norms make larger.
        bounds_RK = values_ND[rows_R] @ values_ND[centres_K].T
        bounds_RK.mul_(-2).add_(norms_N[rows_R][:, None]).add_(norms_N[centres_K])
        return bounds_RK.clamp_(min=0)

    def squared_distances_to(self, others_PD: Tensor) -> Tensor:
        """Return the squared distance of points that are no rows to each row, as of rows.

        Parameters
        ----------
        others_PD : Tensor
            Other points, float64.

        Returns
        -------
        Tensor
            float64. Shape (P, N).
        """
        distances_PN = others_PD.new_empty(len(others_PD), len(self))
        norms_P1 = others_PD.square().sum(dim=1, keepdim=True)
        for rows in row_blocks(len(self)):
            values_RD = self._embeddings_ND[rows].double()
            norms_PR = norms_P1 + self.squared_norms_N[rows]
            block_PR = (others_PD @ values_RD.T).mul_(-2).add_(norms_PR)
            near = (block_PR <= norms_PR.mul_(NEAR)).nonzero(as_tuple=True)
            for first, second in zip(*(torch.split(n, self._at_once) for n in near), strict=True):
                apart_KD = others_PD[first] - values_RD[second]
                block_PR[first, second] = apart_KD.square_().sum(dim=1)
            distances_PN[:, rows] = block_PR
        return distances_PN

    @cached_property
    def _in_single_precision(self) -> tuple[Tensor, Tensor] | None:
        """The rows, and their squared norms less what rounding amounts to, float32."""
        norms_N = self.squared_norms_N
        largest = float(norms_N.max()) if len(norms_N) else 0.0
        if not _SINGLE[0] <= largest <= _SINGLE[1] or not _is_single_kept(norms_N.device):
            return None
        # A share of the largest stands for what is too small for single precision.
        share = (self.width + _ROUNDINGS) * _HALF_DIGIT
        less_N = norms_N * (1 - share) - largest * _SINGLE[0]
        return self._embeddings_ND.float(), less_N.float()

    @property
    def width(self) -> int:
        """Numbers that a point is kept as."""
        return self._embeddings_ND.shape[1]

    def pair_distances(self, first_P: Tensor, second_P: Tensor) -> Tensor:
        """Return the squared distance of each pair from differences, float64. Shape (P,)."""
        values_ND = self._embeddings_ND
        return (values_ND[first_P].double() - values_ND[second_P].double()).square().sum(dim=1)


class OuterProductPoints(Points):
    """Outer products a ⊗ b of the rows of two matrices, which are never formed.

    The inner product of a ⊗ b and a' ⊗ b' is (a·a')(b·b'), so memory is linear in C + D
    instead of C D.

    Parameters
    ----------
    left_NC, right_ND : Tensor
        Floating-point. Shapes (N, C) and (N, D).
    """

    def __init__(self, left_NC: Tensor, right_ND: Tensor) -> None:
        super().__init__(_squared_norms(left_NC) * _squared_norms(right_ND))
        self._left_NC, self._right_ND = left_NC, right_ND

    def inner_products(self, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
        """Return the inner product of each row with each centre, float64. Shape (R, K)."""
        left_RK = _inner_products(self._left_NC, rows_R, centres_K)
        return left_RK.mul_(_inner_products(self._right_ND, rows_R, centres_K))

    @property
    def width(self) -> int:
        """Numbers that a point is kept as."""
        return self._left_NC.shape[1] + self._right_ND.shape[1]

    def pair_distances(self, first_P: Tensor, second_P: Tensor) -> Tensor:
        """Return the squared distance of each pair from differences, float64. Shape (P,).

        With means m, n and half differences d, e of the factors, a ⊗ b - a' ⊗ b' is
        2 (m ⊗ e + d ⊗ n). Split into their parts along the means, d = α m + d' and
        e = β n + e', the two give three orthogonal terms: |m|² |e'|², |n|² |d'|² and
        (α + β)² |m|² |n|². None of them is a difference of larger numbers.
        """
        left_P, along_left_P, across_left_P = _parts(self._left_NC, first_P, second_P)
        right_P, along_right_P, across_right_P = _parts(self._right_ND, first_P, second_P)
        along_P = (along_left_P + along_right_P).square() * left_P * right_P
        return 4 * (along_P + left_P * across_right_P + right_P * across_left_P)


def row_blocks(size: int, rows: int = ROWS) -> Iterator[slice]:
    """Yield slices of at most so many rows that cover the positions below a size."""
    for start in range(0, size, rows):
        yield slice(start, min(start + rows, size))


def directions(values_ND: Tensor) -> Tensor:
    """Return rows of length 1, or 0 where they were 0, float64. Shape (N, D)."""
    directions_ND = values_ND.double()
    norms_N1 = torch.linalg.vector_norm(directions_ND, dim=1, keepdim=True)
    return directions_ND / torch.where(norms_N1 > 0, norms_N1, 1.0)


def _inner_products(values_ND: Tensor, rows_R: Tensor | slice, centres_K: Tensor | slice) -> Tensor:
    # Converted block by block: a copy of everything in float64 would double the memory.
    products_RK: Tensor | None = None
    for columns_Nd in torch.split(values_ND, COLUMNS, dim=1):
        rows_Rd, centres_Kd = columns_Nd[rows_R].double(), columns_Nd[centres_K].double()
        if products_RK is None:
            products_RK = rows_Rd @ centres_Kd.T
        else:
            products_RK.addmm_(rows_Rd, centres_Kd.T)
    if products_RK is None:
        raise ValueError("points need at least one number each")
    return products_RK


def _is_single_kept(device: torch.device) -> bool:
    """Return whether matrix products keep single precision, which torch may give up for speed."""
    if device.type == "cuda":
        return not torch.backends.cuda.matmul.allow_tf32
    return torch.get_float32_matmul_precision() == "highest"


def _parts(values_ND: Tensor, first_P: Tensor, second_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return |m|², α and |d'|² of each pair: the mean m, half the difference d = α m + d'."""
    first_PD, second_PD = values_ND[first_P].double(), values_ND[second_P].double()
    mean_PD, half_PD = (first_PD + second_PD) / 2, (first_PD - second_PD) / 2
    squared_P = mean_PD.square().sum(dim=1)
    along_P = (mean_PD * half_PD).sum(dim=1) / torch.where(squared_P > 0, squared_P, 1.0)
    across_P = (half_PD - along_P[:, None] * mean_PD).square().sum(dim=1)
    return squared_P, along_P, across_P


def _squared_norms(values_ND: Tensor) -> Tensor:
    norms_N = values_ND.new_zeros(len(values_ND), dtype=torch.float64)
    for rows in row_blocks(len(values_ND)):
        for columns in torch.split(values_ND[rows], COLUMNS, dim=1):
            norms_N[rows] += columns.double().square().sum(dim=1)
    return norms_N
