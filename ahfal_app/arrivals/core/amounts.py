"""How many of a client's samples have arrived by each cycle.

Shape suffix: T cycles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import Settings, exact_fraction
from ahfal_app.seeds import numpy_generator


@dataclass(frozen=True)
class Amounts:
    """How many samples arrive.

    Attributes
    ----------
    kind : str
        `share`: shares of a client's samples; `count`: numbers.
    start, rate : Fraction
        What is there at cycle 0, and what comes with each later one.
    replacement : bool
        Whether each cycle's arrivals are drawn with replacement, so that several draws may be of
        one sample.
    """

    kind: Literal["share", "count"]
    start: Fraction
    rate: Fraction
    replacement: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Amounts:
        """Return what a run's settings say; they must not be `arrivals=all`."""
        return cls(
            "count" if settings.arrivals == "count" else "share",
            exact_fraction(settings.arrival_start),
            exact_fraction(settings.arrival_rate),
            settings.arrival_replacement,
        )

    def by(self, cycle: int, num_samples: int) -> int:
        """Return how many of so many samples have arrived by a cycle, without replacement.

        `share`: min(n, ⌈(start + t · rate) n⌉); `count`: min(n, start + t · rate).
        """
        amount = self.start + cycle * self.rate
        if self.kind == "share":
            amount *= num_samples
        return min(num_samples, math.ceil(amount))

    def cumulative(
        self, num_samples: int, num_cycles: int, seed: int, client: int
    ) -> NDArray[np.int64]:
        """Return how many samples have arrived by each cycle, int64 (T,); it never falls.

        With replacement, as many different ones as that many uniform draws of what had not arrived
        give: which ones they are is the business of an order that is uniform itself.

        Parameters
        ----------
        num_samples, num_cycles : int
            Samples of the client, and T.
        seed, client : int
            Key of the draws.
        """
        if not self.replacement:
            return np.array([self.by(t, num_samples) for t in range(num_cycles)], np.int64)
        arrived, by_T = 0, np.zeros(num_cycles, np.int64)
        for cycle in range(num_cycles):
            left = num_samples - arrived
            draws = int(self.rate if cycle else self.start)
            if left and draws:
                generator = numpy_generator(seed, "arrivals.draws", client, cycle)
                arrived += len(np.unique(generator.integers(0, left, draws)))
            by_T[cycle] = arrived
        return by_T
