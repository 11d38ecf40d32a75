"""What a client trains on in each cycle: once that is fixed, nothing changes it."""

from __future__ import annotations

from dataclasses import dataclass

from ahfal_app.client.local_training import LabelledSets
from ahfal_app.client.purchasing import Purchasing
from ahfal_app.labels.store import LabelStore

#: A client, and the file of its database as path and number.
_Place = tuple[int, str, int]

# What clients of this process are trained on, by run and cycle, and by client.
_frozen: dict[tuple[str, int], dict[_Place | None, LabelledSets]] = {}


@dataclass(frozen=True, eq=False)
class TrainingSets:
    """A client's labelled sets, by cycle.

    Attributes
    ----------
    run : str
        The run's identity.
    purchasing : Purchasing
        Where its labels come from.
    """

    run: str
    purchasing: Purchasing

    def of_cycle(self, cycle: int) -> LabelledSets:
        """Return what a cycle is trained on.

        A simulated client's is read once a cycle: opening its database takes as long as a small
        training. At a site images may come and go.
        """
        known = _frozen.get((self.run, cycle), {}).get(self._key())
        if known is not None:
            return known
        with self.purchasing.labels() as store:
            return self._fixed(store, cycle)

    def fix_early(self, store: LabelStore, cycle: int) -> None:
        """Fix what a simulated client's cycle is trained on as it joins, if no label is to come.

        Its database is open now, and would be opened for that alone as its training begins.
        """
        settings = self.purchasing.settings
        if self.purchasing.loaded.site is not None or not settings.buys_on_joining:
            return
        # Without a purchase its first labels come next. After the run's last cycle nothing is
        # trained, unless it is given more: then labels that come until then count.
        is_due = store.last_cycle() >= 0 and cycle < settings.num_cycles
        if is_due and not store.ledger().reserved:
            self._fixed(store, cycle)

    def _fixed(self, store: LabelStore, cycle: int) -> LabelledSets:
        store.freeze(cycle)
        open_N = self.purchasing.arriving.open(store, cycle)
        sets = LabelledSets.of(store, through_cycle=cycle, open_N=open_N)
        key, now = self._key(), (self.run, cycle)
        if key is not None:
            # Few are older, whatever the number of clients.
            for old in [each for each in list(_frozen) if each != now]:
                _frozen.pop(old, None)
            _frozen.setdefault(now, {})[key] = sets
        return sets

    def _key(self) -> _Place | None:
        """Return which client's database it is, or None where it is to be read each time."""
        if self.purchasing.loaded.site is not None:
            return None
        place = self.purchasing.state.labels_on_disk()
        return (self.purchasing.client, *place) if place is not None else None
