"""A share of a count, with its interval of 95 %: Wilson, JASA 1927."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

#: Of each interval.
LEVEL = 0.95

#: The quantile of the normal distribution that belongs to it.
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A share of `count` of `of`, with Wilson's interval of 95 %."""

    count: int
    of: int

    @property
    def share(self) -> float | None:
        """The share; None of nothing."""
        return self.count / self.of if self.of else None

    @property
    def bounds(self) -> Bounds | None:
        """Lower and upper bound (Wilson, 1927); None of nothing."""
        return wilson(self.count, self.of)


def wilson(count: int, of: int) -> Bounds | None:
    """Return Wilson's interval of a share; None of nothing."""
    return wilson_at(count, of, Z) if of else None


def wilson_at(count: int, of: int, z: float) -> Bounds:
    """Return Wilson's interval at a quantile z of the normal distribution, of at least one."""
    share, spread = count / of, z**2 / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    # At the ends it is 0 or 1 to the last digit.
    low = 0.0 if count == 0 else max(0.0, middle - half)
    high = 1.0 if count == of else min(1.0, middle + half)
    return low, high
