"""Which samples a client may ask for by now, and how many have come and gone.

In simulation that follows from the settings; at a site samples are there when their files are, and
the run's label store keeps when they were first seen.

Shape suffix: N samples of the client.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.arrivals import NEVER_ASKED, ClientArrivals
from ahfal_app.arrivals.core.schedule import is_open
from ahfal_app.config import Settings
from ahfal_app.labels.store import LabelStore
from ahfal_app.ledger import ArrivalFigures
from ahfal_app.training.resources import Resources

#: In place of the cycle in which a sample was asked for, where that was in none.
NOT_ASKED = -1


@dataclass(frozen=True, eq=False)
class Arriving:
    """A client's arrivals.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    client : int
        The client's partition.
    loaded : Resources
        The client's data.
    """

    settings: Settings
    client: int
    loaded: Resources

    def note(self, store: LabelStore, cycle: int) -> None:
        """Keep which of a site's samples are there for a cycle's purchase."""
        if self.loaded.site is not None:
            store.note_arrivals(cycle)

    def open(self, store: LabelStore, cycle: int) -> NDArray[np.int64] | None:
        """Return what may be asked for before a cycle, increasing; None: all that is there."""
        if not (self.settings.simulates_arrivals or self.settings.pool_memory):
            return None
        arrival_N = self._last_arrival(store, cycle)
        ids_N = self.loaded.client_rows(self.client)
        return ids_N[is_open(arrival_N, cycle, self.settings.pool_memory)]

    def new(self, store: LabelStore, cycle: int) -> NDArray[np.int64]:
        """Return what came for a cycle's purchase, int64, increasing."""
        ids_N = self.loaded.client_rows(self.client)
        new_M: NDArray[np.int64] = ids_N[self._last_arrival(store, cycle) == cycle]
        return new_M

    def count(self, cycle: int) -> int:
        """Return how many samples budgets are shares of, by a cycle."""
        arrivals = self._simulated
        if arrivals is None:
            return len(self.loaded.client_rows(self.client))
        return arrivals.arrived(cycle)

    def figures(self, store: LabelStore, cycle: int) -> ArrivalFigures | None:
        """Return how many samples have come and gone by a cycle; None where nobody asks."""
        if not self.settings.tells_arrivals:
            return None
        ids_N = self.loaded.client_rows(self.client)
        arrival_N = self._last_arrival(store, cycle)
        # As it was then, if a later purchase was interrupted and is about to be repeated.
        later_N = store.asked(ids_N, NOT_ASKED) > cycle
        is_left_N = np.isin(ids_N, store.unasked(), assume_unique=True) | later_N
        is_open_N = is_open(arrival_N, cycle, self.settings.pool_memory)
        is_left_N &= arrival_N >= 0
        arrivals = self._simulated
        return ArrivalFigures(
            arrived=store.num_arrived() if arrivals is None else arrivals.arrived(cycle),
            new=int(np.count_nonzero(arrival_N == cycle)),
            open=int(np.count_nonzero(is_left_N & is_open_N)),
            expired=int(np.count_nonzero(is_left_N & ~is_open_N)),
            skipped=store.skipped(cycle),
        )

    @property
    def _simulated(self) -> ClientArrivals | None:
        arrivals = self.loaded.arrivals(self.settings)
        return None if arrivals is None else arrivals.clients[self.client]

    def _last_arrival(self, store: LabelStore, cycle: int) -> NDArray[np.int64]:
        """Return the cycle for which each sample came last; -1 where it has not. Shape (N,)."""
        arrivals = self._simulated
        if arrivals is None:
            return store.arrival_cycles()
        # What was asked for matters only where it decides what comes again.
        asked_N = store.asked(arrivals.rows_N, NEVER_ASKED) if arrivals.wanted else None
        return arrivals.last_arrival(cycle, asked_N)
