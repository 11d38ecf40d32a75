"""Totals over samples as integers in parts, of 64 bits each: for numbers of any usual scale.

Numbers are up to 1.1e12; what deviates by less than about 1e-14 counts as constant.

A total of the numbers, or of their squares, is an integer of up to 206 bits. It travels in parts
of 48 bits, least significant first; the last part has the sign and the rest. Parts are added up
each for itself, as a secure sum does, and put together afterwards.

Shapes: D numbers, P parts of a total, E = 1 + 7 D entries: the number of samples, then 3 D parts of
the totals, then 4 D parts of the totals of squares; part by part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Largest number that can be summed, about 1.1e12.
LARGEST = 2.0**40

#: Samples of all sites with which no last part overflows: a total of squares is then below
#: 2^80 · 2^30 in units of 2^-96, so below 2^206, of which 144 bits are in the other parts.
MOST_SAMPLES = 2**30 - 1

#: Bits behind the point: a total is rounded by at most 2^-65 at each site, one of squares by 2^-97.
_BITS, _SQUARE_BITS = 64, 96

_PART_BITS = 48
_PARTS, _SQUARE_PARTS = 3, 4

#: Of a total that is added up in double precision, this share may be wrong.
_ROUNDING = 2**-30

# Python's integers, which have no end.
_Integers = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Totals:
    """Totals over samples.

    Attributes
    ----------
    count : int
        Number of samples.
    sums_D : NDArray[np.object_]
        Sum of each number, in units of 2^-64; integers of Python.
    squares_D : NDArray[np.object_]
        Sum of its square, in units of 2^-128.
    """

    count: int
    sums_D: _Integers
    squares_D: _Integers

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance of each number, both of shape (D,).

        The difference of squares is exact. What the rounding of a constant number may have left
        of it is no variance.
        """
        mean_D = _floats(self.sums_D, self.count * 2**_BITS)
        variance_D = _floats(self._spread_D, self.count**2 * 2 ** (2 * _BITS))
        least_D = np.abs(mean_D) * 2.0 ** (2 - _BITS) + 2.0 ** (2 - _SQUARE_BITS)
        return mean_D, np.where(variance_D > least_D, variance_D, 0.0)

    def check(self, lowest: float, highest: float, sites: int) -> None:
        """Check that numbers from `lowest` to `highest` can have these totals.

        Parameters
        ----------
        lowest, highest : float
            The least and the largest that a number can be.
        sites : int
            How many sites have rounded.

        Raises
        ------
        ValueError
            They cannot.
        """
        sum_D = _floats(self.sums_D, 2**_BITS)
        square_D = _floats(self.squares_D, 2 ** (2 * _BITS))
        # A unit for the rounding of each site, and the share of a sum in double precision.
        slack_D = sites * 2.0**-_BITS + _ROUNDING * np.abs(sum_D)
        furthest = max(abs(lowest), abs(highest)) ** 2 * self.count * (1 + _ROUNDING)
        fits = (sum_D >= lowest * self.count - slack_D) & (sum_D <= highest * self.count + slack_D)
        fits &= (square_D >= 0) & (square_D <= furthest + sites * 2.0**-_BITS)
        # By Cauchy and Schwarz the sum's square is at most the count times the sum of squares.
        spread_D = _floats(self._spread_D, 2 ** (2 * _BITS))
        rounding_D = 2 * np.abs(sum_D) * slack_D + slack_D**2
        # Squares of tiny numbers are rounded away before the sum of the numbers is.
        rounding_D += self.count * sites * 2.0**-_SQUARE_BITS
        fits &= spread_D >= -(_ROUNDING * sum_D**2 + rounding_D)
        if not fits.all():
            raise ValueError("moments: sums that no samples have")

    @property
    def _spread_D(self) -> _Integers:
        """The variance times the square of the count, in units of 2^-128."""
        spread_D: _Integers = self.count * self.squares_D - self.sums_D * self.sums_D
        return spread_D


def size_of(numbers: int) -> int:
    """Return the number of entries E for samples of so many numbers."""
    return 1 + (_PARTS + _SQUARE_PARTS) * numbers


def split(
    count: int, sums_D: NDArray[np.float64], squares_D: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return totals in parts, int64 (E,)."""
    parts = (_parts(sums_D, _BITS, _PARTS), _parts(squares_D, _SQUARE_BITS, _SQUARE_PARTS))
    return np.concatenate([np.array([count]), *(each.ravel() for each in parts)])


def joined(entries_E: NDArray[np.int64], sites: int) -> Totals:
    """Return the totals that parts, added up over so many sites, stand for.

    Raises
    ------
    ValueError
        A part is none.
    """
    numbers = (len(entries_E) - 1) // (_PARTS + _SQUARE_PARTS)
    middle = 1 + _PARTS * numbers
    squares_D = _whole(entries_E[middle:].reshape(_SQUARE_PARTS, numbers), sites)
    return Totals(
        int(entries_E[0]),
        _whole(entries_E[1:middle].reshape(_PARTS, numbers), sites),
        squares_D * 2 ** (2 * _BITS - _SQUARE_BITS),
    )


def _parts(values_D: NDArray[np.float64], bits: int, parts: int) -> NDArray[np.int64]:
    """Return each value in units of 2^-bits in parts of 48 bits, int64 (P, D).

    Of a double 53 bits count: what is done to it here, but for the rounding, loses none of them.
    """
    left_D = np.rint(np.ldexp(values_D, bits))
    found = []
    for _ in range(parts - 1):
        low_D = np.mod(left_D, 2.0**_PART_BITS)
        found.append(low_D)
        left_D = np.ldexp(left_D - low_D, -_PART_BITS)
    return np.stack([*found, left_D]).astype(np.int64)


def _whole(parts_PD: NDArray[np.int64], sites: int) -> _Integers:
    below = parts_PD[:-1]
    if (below < 0).any() or (below >= sites * 2**_PART_BITS).any():
        raise ValueError("moments: parts that no sum has")
    weights_P1 = [[2 ** (_PART_BITS * place)] for place in range(len(parts_PD))]
    whole: _Integers = (parts_PD.astype(object) * np.array(weights_P1, object)).sum(axis=0)
    return whole


def _floats(integers_D: _Integers, divisor: int) -> NDArray[np.float64]:
    """Return the nearest doubles of integers, divided."""
    quotients: Any = integers_D / divisor
    return np.asarray(quotients, np.float64)
