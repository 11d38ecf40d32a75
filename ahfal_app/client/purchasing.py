"""A client's purchases: its label store as a cycle finds it, what is asked for, what came of it.

Shape suffix: A samples of an audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.client.annotation import Annotation
from ahfal_app.client.arriving import Arriving
from ahfal_app.client.auditing import Auditing
from ahfal_app.client.selection import Selected, Selection
from ahfal_app.client.state import ClientState
from ahfal_app.client.testing import Testing
from ahfal_app.config import Settings
from ahfal_app.errors import StoreError
from ahfal_app.labels.store import LabelStore
from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.training.resources import Resources


@dataclass(frozen=True, eq=False)
class Purchasing:
    """What a client does with its label store when it buys.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    client : int
        The client's partition, from 0.
    state : ClientState
        Where the store is.
    loaded : Resources
        The client's data.
    testing : Testing
        What holds labels out for testing as they come.
    arriving : Arriving
        Which samples are there by now.
    auditing : Auditing
        What is asked for at random.
    selection : Selection
        What else is asked for.
    annotation : Annotation
        Who is asked.
    """

    settings: Settings
    client: int
    state: ClientState
    loaded: Resources
    testing: Testing
    arriving: Arriving
    auditing: Auditing
    selection: Selection
    annotation: Annotation

    @contextmanager
    def labels(self) -> Iterator[LabelStore]:
        """Open the client's labels."""
        rows_N, grows = self.loaded.client_rows(self.client), self.loaded.site is not None
        with self.state.labels(rows_N, self.loaded.num_classes, grows) as store:
            self.testing.hold_out(store)
            yield store

    def describe(self, store: LabelStore) -> None:
        """Tell the store what things are called, and which labels are there already."""
        self.annotation.describe(store)
        self.testing.hold_out(store)

    def ask(self, store: LabelStore) -> None:
        """Ask for what was bought, and take in the answers that have come."""
        self.annotation.ask(store)
        self.testing.hold_out(store)

    def show(self, store: LabelStore, cycle: int) -> None:
        """Have a store show as its pool what may be asked for in a cycle's purchase."""
        self.arriving.note(store, cycle)
        store.open_only(self.arriving.open(store, cycle))

    def open(self, store: LabelStore, cycle: int, granted: int | None) -> NDArray[np.int64]:
        """Show the pool of a cycle's purchase, and draw what of it is asked for at random.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        cycle : int
            The cycle that labels are bought for.
        granted : int | None
            How many labels the server grants in total; None: as many as the settings say.

        Returns
        -------
        NDArray[np.int64]
            What is drawn, which is set aside while the rest is chosen; the same each time, since it
            is drawn by key of the same pool. Shape (A,).
        """
        self.show(store, cycle)
        return self.selection.audited(store, cycle, granted, cycle)

    def is_made(self, store: LabelStore, cycle: int) -> bool:
        """Whether the purchase for a cycle is written down already."""
        return store.request(self.annotation.request_id(cycle)) is not None

    def make(
        self,
        store: LabelStore,
        cycle: int,
        selected: Selected,
        audit_A: NDArray[np.int64],
        predicted_A: NDArray[np.int64] | None,
    ) -> None:
        """Write down what is bought for a cycle; parameters as of `Annotation.reserve`."""
        self.selection.record_asked(cycle, selected, audit_A)
        self.annotation.reserve(store, cycle, selected, audit_A, predicted_A)

    def make_first(self, store: LabelStore, granted: int | None, cycle: int) -> None:
        """Buy the first labels, once; one that comes late sees what has come by the cycle."""
        if self.is_made(store, 0):
            return
        store.open_only(self.arriving.open(store, cycle))
        audit_A = self.selection.audited(store, 0, granted, cycle)
        with store.set_aside(audit_A):
            selected = self.selection.first(store, granted, cycle)
        self.make(store, 0, selected, audit_A, None)

    def answer(
        self, store: LabelStore, cycle: int, fine_tuned: bool = False, seconds: float = 0.0
    ) -> QueryAnswer:
        """Return what the server is told of the purchase for a cycle.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        cycle : int
            The cycle that labels were bought for.
        fine_tuned : bool
            Whether the local model had to be made of the global one.
        seconds : float
            What it took.
        """
        request = store.request(self.annotation.request_id(cycle))
        longest = store.longest_waiting()
        return QueryAnswer(
            selected=(len(request.samples) if request is not None else 0)
            + len(self.auditing.asked(store, cycle)),
            labelled=len(store.labelled().samples_N),
            held_out=len(store.held_out().samples_N),
            pending=store.ledger().reserved,
            ledger=store.ledger(),
            fine_tuned=fine_tuned,
            seconds=seconds,
            longest=longest.images,
            longest_seconds=longest.seconds,
            arrivals=self.arriving.figures(store, cycle),
            audit=self.auditing.figures(store, cycle) if self.settings.tells_audit else None,
        )


def check_nothing_lost(store: LabelStore, cycle: int) -> None:
    """Refuse to buy with a store that was lost: what it held would be asked for once more.

    Raises
    ------
    StoreError
        It holds less than what was bought up to a cycle.
    """
    if store.last_cycle() < cycle:
        raise StoreError(
            f"label store: it holds {_purchases(store.last_cycle())}, and this client has bought "
            f"labels for cycle {cycle}; bring its folder back, from the backup of state-dir at a "
            "site, before people are asked for the same labels again"
        )


def _purchases(last_cycle: int) -> str:
    return f"what was bought up to cycle {last_cycle}" if last_cycle >= 0 else "no purchase"
