"""The contract of an order of arrival.

Shape suffixes: N samples of a client, C classes, T cycles, M samples of one class or group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ahfal_app.arrivals.core.amounts import Amounts
from ahfal_app.parameters import Parameters as NoParameters
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import ARRIVAL_ORDERS
from ahfal_app.seeds import numpy_generator

#: The arrival cycle of what does not arrive within the run.
NEVER = -1


@dataclass(frozen=True, eq=False)
class Stock:
    """What a client has in all, of which samples arrive.

    Attributes
    ----------
    seed, client : int
        Key of everything random.
    classes_N : NDArray[np.int64]
        True class of each sample: arrivals are simulated, and this is what is simulated with.
    num_classes, num_cycles : int
        C and T.
    """

    seed: int
    client: int
    classes_N: NDArray[np.int64]
    num_classes: int
    num_cycles: int

    @cached_property
    def order_N(self) -> NDArray[np.int64]:
        """Places of all samples in the client's keyed random order, int64 (N,)."""
        generator = numpy_generator(self.seed, "arrivals.order", self.client)
        return generator.permutation(len(self.classes_N))

    def cumulative(self, amounts: Amounts) -> NDArray[np.int64]:
        """Return how many of its samples have arrived by each cycle, int64 (T,)."""
        return amounts.cumulative(len(self.classes_N), self.num_cycles, self.seed, self.client)


class ArrivalOrder(ABC):
    """Says in which cycle each sample of a client arrives.

    A pure function of what it is given. The first line of a subclass's docstring describes it in
    tables.

    Parameters
    ----------
    parameters : Parameters, optional
        The order's parameters; all defaults if left out.
    """

    name: ClassVar[str]
    """Name in settings: the module's name with hyphens."""
    paper: ClassVar[str] = ""
    """Citation of what defines the order; empty where it needs none."""
    is_uniform: ClassVar[bool] = False
    """Whether any sample may come as well as any other: what `arrival-replacement` and
    `arrival-exhausted=recycle` need."""
    sets_shares: ClassVar[bool] = False
    """Whether with `arrivals=share` it says itself how much arrives."""
    leaves_over: ClassVar[bool] = False
    """Whether samples may never arrive, however much does."""

    class Parameters(NoParameters):
        """Parameters of the order; each has a default and a description."""

    parameters: Parameters

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = self.Parameters() if parameters is None else parameters

    @property
    def is_by_length(self) -> bool:
        """Whether what has arrived depends on how many cycles there will be."""
        return False

    def problems(self, num_classes: int, num_cycles: int) -> list[str]:
        """Return why it cannot be with so many classes and cycles, one line each."""
        return []

    @abstractmethod
    def arrival_cycles(self, stock: Stock, amounts: Amounts) -> NDArray[np.int64]:
        """Return the cycle in which each sample arrives, `NEVER` where it does not. Shape (N,).

        Parameters
        ----------
        stock : Stock
            The client's samples.
        amounts : Amounts
            How many arrive.
        """

    def wanted_mix(self, stock: Stock) -> NDArray[np.float64] | None:
        """Return the class mix that each cycle's arrivals are to have; None where none is wanted.

        Shape (T, C).
        """
        return None

    def tasks(self, seed: int, num_classes: int) -> NDArray[np.int64] | None:
        """Return the task of each class, int64 (C,); None where clients have none in common."""
        return None


def in_batches(by_T: NDArray[np.int64], order_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cycle in which each place of an order arrives.

    Parameters
    ----------
    by_T : NDArray[np.int64]
        How many have arrived by each cycle.
    order_M : NDArray[np.int64]
        Numbers from 0 to M - 1 in the order in which they arrive.

    Returns
    -------
    NDArray[np.int64]
        By number; `NEVER` for what comes after the last cycle. Shape (M,).
    """
    cycles_M = np.searchsorted(by_T, np.arange(len(order_M)), side="right")
    found_M = np.empty(len(order_M), np.int64)
    found_M[order_M] = np.where(cycles_M < len(by_T), cycles_M, NEVER)
    return found_M


def make_order(name: str, parameters: Mapping[str, Scalar]) -> ArrivalOrder:
    """Return the order of that name.

    Raises
    ------
    UnknownComponent
        There is none.
    pydantic.ValidationError
        It cannot take these parameters; settings are checked before.
    """
    order: type[ArrivalOrder] = ARRIVAL_ORDERS.component(name)
    return order(order.Parameters.model_validate(dict(parameters)))
