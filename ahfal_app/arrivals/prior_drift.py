"""The class mix of what arrives changes over the cycles: prior drift, or label shift.

Shape suffixes: N samples of a client, C classes, T cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ahfal_app.arrivals.core.amounts import Amounts
from ahfal_app.arrivals.core.base import NEVER, ArrivalOrder, Stock
from ahfal_app.arrivals.core.paths import BY_LENGTH, changed
from ahfal_app.query.core.budgets import GAP_STEPS, allocate
from ahfal_app.seeds import numpy_generator

#: Keeps a class that a walk has lost from being lost for good.
_LEAST = 1e-3

#: The period that means something for `recurring` alone.
_PERIOD = 4


class PriorDrift(ArrivalOrder):
    """The class mix of what arrives moves from one random mix to another, as far as there is stock.

    Each client has mixes of its own.
    """

    name: ClassVar[str] = "prior-drift"

    class Parameters(ArrivalOrder.Parameters):
        """Between which mixes, and how."""

        path: Literal["linear", "sudden", "recurring", "walk"] = Field(
            default="linear",
            description="From one mix to another steadily, all at once in the middle, or to and "
            "fro; or a random walk.",
        )
        alpha: float = Field(
            default=0.3, gt=0, description="Concentration of the Dirichlet draws of the mixes."
        )
        concentration: float = Field(
            default=20.0,
            gt=0,
            description="Of a walk's next mix about the one before: large is slow.",
        )
        period: int = Field(default=_PERIOD, ge=2, description="Cycles until `recurring` is back.")

    parameters: Parameters

    @property
    def is_by_length(self) -> bool:
        """Whether what has arrived depends on how many cycles there will be."""
        return self.parameters.path in BY_LENGTH

    def arrival_cycles(self, stock: Stock, amounts: Amounts) -> NDArray[np.int64]:
        """Return the cycles in which each class's samples come, in the client's keyed order."""
        return by_mix(stock, stock.cumulative(amounts), self.wanted_mix(stock))

    def wanted_mix(self, stock: Stock) -> NDArray[np.float64]:
        """Return the class mix that each cycle's arrivals are to have. Shape (T, C)."""
        how = self.parameters
        first_C = self._drawn(stock, 0, np.full(stock.num_classes, how.alpha))
        if how.path == "walk":
            return self._walk(stock, first_C)
        last_C = self._drawn(stock, 1, np.full(stock.num_classes, how.alpha))
        changed_T1 = changed(how.path, stock.num_cycles, how.period)[:, None]
        return (1 - changed_T1) * first_C + changed_T1 * last_C

    def _walk(self, stock: Stock, first_C: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return q(t) ~ Dir(κ q(t - 1) + 10^-3), from q(0) on."""
        mix_TC = np.empty((stock.num_cycles, stock.num_classes))
        mix_TC[0] = first_C
        for cycle in range(1, stock.num_cycles):
            about_C = self.parameters.concentration * mix_TC[cycle - 1] + _LEAST
            mix_TC[cycle] = self._drawn(stock, 2 + cycle, about_C)
        return mix_TC

    @staticmethod
    def _drawn(stock: Stock, number: int, about_C: NDArray[np.float64]) -> NDArray[np.float64]:
        generator = numpy_generator(stock.seed, "arrivals.prior", stock.client, number)
        return generator.dirichlet(about_C)


def by_mix(stock: Stock, by_T: NDArray[np.int64], mix_TC: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the cycle in which each sample arrives. Shape (N,).

    Parameters
    ----------
    stock : Stock
        The client's samples.
    by_T : NDArray[np.int64]
        How many have arrived by each cycle.
    mix_TC : NDArray[np.float64]
        The class mix that each cycle's arrivals are to have.
    """
    left_C = np.bincount(stock.classes_N, minlength=stock.num_classes)
    new_TC = np.zeros((len(by_T), stock.num_classes), np.int64)
    for cycle, new in enumerate(np.diff(by_T, prepend=0).tolist()):
        new_TC[cycle] = class_counts(new, mix_TC[cycle].tolist(), left_C.tolist())
        left_C = left_C - new_TC[cycle]
    found_N = np.full(len(stock.classes_N), NEVER, np.int64)
    cycles_T = np.arange(len(by_T))
    for label in range(stock.num_classes):
        places = stock.order_N[stock.classes_N[stock.order_N] == label]
        cycles = np.repeat(cycles_T, new_TC[:, label])
        found_N[places[: len(cycles)]] = cycles
    return found_N


def class_counts(total: int, mix_C: Sequence[float], stock_C: Sequence[int]) -> NDArray[np.int64]:
    """Return how many samples of each class arrive: largest remainder, as far as there is stock.

    What a class lacks is split again by the mix over those that have more, and what all classes of
    the mix lack by stock over the others. Ties go to the lowest class.

    Parameters
    ----------
    total : int
        Samples that arrive.
    mix_C : Sequence[float]
        The class mix that is wanted.
    stock_C : Sequence[int]
        Samples of each class that have not arrived.

    Returns
    -------
    NDArray[np.int64]
        Counts that sum to min(total, all stock). Shape (C,).
    """
    # On a grid, so that two classes whose shares tie on paper tie here, too.
    mix = [Fraction(round(share * GAP_STEPS), GAP_STEPS) for share in mix_C]
    within = [left if share else 0 for share, left in zip(mix, stock_C, strict=True)]
    taken_C = allocate(mix, within, total)
    rest = total - int(taken_C.sum())
    if rest:
        others = [left - taken for left, taken in zip(stock_C, taken_C.tolist(), strict=True)]
        taken_C = taken_C + allocate(others, others, rest)
    return taken_C
