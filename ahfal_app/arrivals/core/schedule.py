"""When each sample of each client is there to be asked for.

Shape suffix: N samples of a client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ahfal_app.arrivals.core.amounts import Amounts
from ahfal_app.arrivals.core.base import NEVER, ArrivalOrder, Stock, make_order
from ahfal_app.config import Settings
from ahfal_app.seeds import numpy_generator

#: In place of the cycle in which a sample was asked for.
NEVER_ASKED = np.iinfo(np.int64).max


def is_open(arrival_N: NDArray[np.int64], cycle: int, memory: int) -> NDArray[np.bool_]:
    """Return which samples may be asked for before a cycle. Shape (N,).

    Parameters
    ----------
    arrival_N : NDArray[np.int64]
        The cycle in which each has arrived; negative where it has not.
    cycle : int
        The cycle that labels are bought for.
    memory : int
        Cycles for which a sample may be asked for; 0: for ever.
    """
    has_come_N = (arrival_N >= 0) & (arrival_N <= cycle)
    return has_come_N & (arrival_N > cycle - memory) if memory else has_come_N


@dataclass(frozen=True, eq=False)
class ClientArrivals:
    """One client's arrivals.

    Attributes
    ----------
    stock : Stock
        Its samples.
    rows_N : NDArray[np.int64]
        Their ids, increasing.
    cycle_N : NDArray[np.int64]
        The cycle in which each arrives first; -1: never.
    memory : int
        Cycles for which a sample may be asked for; 0: for ever.
    wanted : Amounts | None
        How many arrive in each cycle where samples that nobody asked for come again; None: none do.
    """

    stock: Stock
    rows_N: NDArray[np.int64]
    cycle_N: NDArray[np.int64]
    memory: int
    wanted: Amounts | None = None

    def last_arrival(
        self, cycle: int, asked_N: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return when each sample arrived last by a cycle; -1 where it has not. Shape (N,).

        Parameters
        ----------
        cycle : int
            The cycle that labels are bought for.
        asked_N : NDArray[np.int64] | None
            The cycle before which each was asked for, `NEVER_ASKED` where it was not; needed where
            samples come again alone.
        """
        last_N = np.where(self.cycle_N <= cycle, self.cycle_N, NEVER)
        if self.wanted is None:
            return last_N
        if asked_N is None:
            raise ValueError("where samples come again, what was asked for must be known")
        return self._with_recycled(last_N, cycle, asked_N)

    def new(self, cycle: int, asked_N: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the ids that arrive for a cycle, increasing."""
        new_M: NDArray[np.int64] = self.rows_N[self.last_arrival(cycle, asked_N) == cycle]
        return new_M

    def open(self, cycle: int, asked_N: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the ids that may be asked for before a cycle, asked for or not, increasing."""
        return self.rows_N[is_open(self.last_arrival(cycle, asked_N), cycle, self.memory)]

    def arrived(self, cycle: int) -> int:
        """Return how many different samples have arrived by a cycle."""
        return int(np.count_nonzero((self.cycle_N >= 0) & (self.cycle_N <= cycle)))

    def _with_recycled(
        self, last_N: NDArray[np.int64], cycle: int, asked_N: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Let what nobody asked for, and is gone, come again where too little arrives.

        A pass over them has a keyed order of its own; a further one begins when it is used up.
        """
        wanted, stock = self.wanted, self.stock
        if wanted is None:
            return last_N
        by_cycle = np.bincount(self.cycle_N[self.cycle_N >= 0], minlength=cycle + 1)
        # Only what had come by then is known in each of the cycles gone through.
        last_N, queue, passes = last_N.copy(), np.zeros(0, np.int64), 1
        for now in range(cycle + 1):
            short = int(wanted.rate if now else wanted.start) - int(by_cycle[now])
            while short > 0:
                if not len(queue):
                    gone_N = (last_N >= 0) & (last_N <= now - self.memory) & (asked_N >= now)
                    places = np.flatnonzero(gone_N)
                    key = (stock.client, passes)
                    generator = numpy_generator(stock.seed, "arrivals.order", *key)
                    queue, passes = generator.permutation(places), passes + 1
                if not len(queue):
                    break
                taken, queue = queue[:short], queue[short:]
                last_N[taken] = now
                short -= len(taken)
        return last_N


@dataclass(frozen=True, eq=False)
class Arrivals:
    """The arrivals of all clients of a run.

    Attributes
    ----------
    order : ArrivalOrder
        In which order samples arrive.
    clients : tuple[ClientArrivals, ...]
        By client.
    """

    order: ArrivalOrder
    clients: tuple[ClientArrivals, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of when each sample of each client arrives first."""
        digest = hashlib.sha256(np.array([len(c.rows_N) for c in self.clients], "<i8").tobytes())
        for client in self.clients:
            digest.update(client.cycle_N.astype("<i8").tobytes())
        return digest.hexdigest()


def make_arrivals(
    settings: Settings,
    indices: Sequence[NDArray[np.int64]],
    labels_N: NDArray[np.int64],
    num_classes: int,
) -> Arrivals:
    """Return when the samples of a partition arrive, as the settings say.

    Parameters
    ----------
    settings : Settings
        Read are `seed`, the number of cycles, and what is said of arrivals; not `arrivals=all`.
    indices : Sequence[NDArray[np.int64]]
        Rows of each client, strictly increasing.
    labels_N : NDArray[np.int64]
        Classes of all rows.
    num_classes : int
        Number of classes.
    """
    order = make_order(settings.arrival_order, settings.parameters_of("arrival-order"))
    amounts = Amounts.of(settings)
    again = amounts if settings.arrival_exhausted == "recycle" else None
    clients = []
    for client, rows_N in enumerate(indices):
        classes_N = np.asarray(labels_N[rows_N], np.int64)
        stock = Stock(settings.seed, client, classes_N, num_classes, settings.num_cycles)
        cycle_N = order.arrival_cycles(stock, amounts)
        cycle_N.setflags(write=False)
        clients.append(ClientArrivals(stock, rows_N, cycle_N, settings.pool_memory, again))
    return Arrivals(order, tuple(clients))
