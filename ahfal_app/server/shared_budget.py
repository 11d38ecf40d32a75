"""One budget for all clients: how many labels each of them gets, decided once for each cycle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from ahfal_app.config import Settings
from ahfal_app.errors import ResumeError
from ahfal_app.query.core.budgets import allocate
from ahfal_app.results.records import Grant, GrantsRecord
from ahfal_app.storage.files import write_json

#: In the file of the plan, beside the cycles: what each cycle's labels were split by, and how many
#: they are where clients are asked.
_WEIGHTS = "weights"
_LABELS = "labels"


@dataclass(frozen=True)
class Parts:
    """How labels are split over clients, whatever these have left of earlier ones.

    Attributes
    ----------
    labels : Mapping[int, int]
        Of each client.
    most : Mapping[int, int]
        The most that each can take.
    weights : Mapping[int, float]
        What it goes by, for people.
    """

    labels: Mapping[int, int]
    most: Mapping[int, int]
    weights: Mapping[int, float]


#: Called with labels to be split; asks clients, and returns their parts.
Ask = Callable[[int], Parts]


@dataclass
class _Plan:
    """What is decided: totals granted by cycle, what each was split by, and labels asked about."""

    granted: dict[int, dict[int, int]] = field(default_factory=dict)
    weights: dict[int, dict[int, float]] = field(default_factory=dict)
    labels: dict[int, int] = field(default_factory=dict)

    def before(self, cycle: int) -> dict[int, int]:
        """Return what was granted by the cycle before, or the last one that has a plan."""
        earlier = [known for known in self.granted if known < cycle]
        return self.granted[max(earlier)] if earlier else {}


class SharedBudget:
    """The plan of `budget=global`: labels granted to each client by each cycle, in total.

    A cycle's plan is written down before the first client hears of it, and never made anew, so
    that a run that goes on after a crash grants what it has granted before.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    path : Path
        The file that keeps the plan; it need not be there.

    Raises
    ------
    ResumeError
        The file cannot be read.
    """

    def __init__(self, settings: Settings, path: Path) -> None:
        self._settings = settings
        self._path = path
        self._plan = _read(path) if path.exists() else _Plan()

    def granted(
        self,
        cycle: int,
        sizes: Mapping[int, int],
        used: Mapping[int, int] | None = None,
        ask: Ask | None = None,
    ) -> dict[int, int]:
        """Return how many labels each client has been granted by a cycle, all together.

        No client's labels ever sink, and all of them together are at most those that are due.

        Parameters
        ----------
        cycle : int
            The cycle that labels are bought for.
        sizes : Mapping[int, int]
            Samples of each client that is there; read where the cycle has no plan yet.
        used : Mapping[int, int], optional
            Of what each was granted before, what it has asked for; all of it if left out.
        ask : Ask, optional
            Asks clients, where the settings say so; left out while there is no model to ask about.
        """
        if cycle not in self._plan.granted:
            before, settings = self._plan.before(cycle), self._settings
            if settings.budget_split == "share" or (settings.asks_for_split and ask is None):
                self._plan.granted[cycle] = split(settings, cycle, sizes, before)
                self._plan.weights[cycle] = {client: float(sizes[client]) for client in sizes}
            else:
                self._split(cycle, sizes, before if used is None else used, ask)
            self._write()
        return self._plan.granted[cycle]

    def told(self, cycle: int, site: Callable[[int], str]) -> GrantsRecord:
        """Return what a cycle's plan says of each client, for people.

        Parameters
        ----------
        cycle : int
            The cycle that labels are bought for.
        site : Callable[[int], str]
            Returns the name that a client's site was registered under, or nothing.
        """
        granted, before = self._plan.granted[cycle], self._plan.before(cycle)
        weights = self._plan.weights.get(cycle, {})
        added = sum(granted.values()) - sum(before.values())
        return GrantsRecord(
            split=self._settings.budget_split,
            left=max(0, self._plan.labels.get(cycle, added) - added),
            clients=tuple(
                Grant(
                    client=client,
                    site=site(client),
                    before=before.get(client, 0),
                    added=granted[client] - before.get(client, 0),
                    weight=weights.get(client),
                )
                for client in sorted(granted)
            ),
        )

    def _split(
        self, cycle: int, sizes: Mapping[int, int], used: Mapping[int, int], ask: Ask | None
    ) -> None:
        before = self._plan.before(cycle)
        new = _new_labels(self._settings, cycle, sizes, before)
        free = {c: max(0, before.get(c, 0) - used.get(c, 0)) for c in sizes}
        room = {c: max(0, sizes[c] - before.get(c, 0) + free[c]) for c in sizes}
        if self._settings.asks_for_split and ask is not None:
            parts = self._asked(cycle, new, room, ask)
        else:
            parts = alike(new, room, before)
        added = less_free(parts, free)
        self._plan.granted[cycle] = {**before, **{c: before.get(c, 0) + added[c] for c in added}}
        self._plan.weights[cycle] = dict(parts.weights)

    def _asked(self, cycle: int, new: int, room: Mapping[int, int], ask: Ask) -> Parts:
        """Have clients asked about so many labels, or as many as before the server has ended."""
        labels = self._plan.labels.setdefault(cycle, new)
        if not labels:
            nothing = dict.fromkeys(room, 0)
            return Parts(nothing, nothing, dict.fromkeys(room, 0.0))
        # Folders may grow while nobody is there, and the same steps must be about the same number.
        self._write()
        return ask(labels)

    def _write(self) -> None:
        plan: dict[str, object] = {str(c): labels for c, labels in self._plan.granted.items()}
        more = {_WEIGHTS: self._plan.weights, _LABELS: self._plan.labels}
        write_json(self._path, plan | {key: value for key, value in more.items() if value})


def split(
    settings: Settings, cycle: int, sizes: Mapping[int, int], before: Mapping[int, int]
) -> dict[int, int]:
    """Return the labels that each client is granted by a cycle, in total, by its share.

    What a cycle adds is split by largest remainder in proportion to what each client lacks of
    its exact share, which is in proportion to its samples; so all of them together are exactly
    those that are due. A client that comes later has its share of what is bought from then on.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    cycle : int
        The cycle that labels are bought for.
    sizes : Mapping[int, int]
        Samples of each client.
    before : Mapping[int, int]
        What each was granted before; clients that are gone keep it. Of a number of labels theirs
        are a part; of a share of the samples, which are those of the clients that are there, not.
    """
    clients, samples = sorted(sizes), sum(sizes.values())
    due, new = settings.labels_due(cycle, samples), _new_labels(settings, cycle, sizes, before)
    had = {client: before.get(client, 0) for client in clients}
    lacking = [max(Fraction(0), Fraction(due * sizes[c], samples) - had[c]) for c in clients]
    spare = [max(0, sizes[client] - had[client]) for client in clients]
    added = allocate(lacking, spare, new).tolist()
    return {**before, **{c: had[c] + more for c, more in zip(clients, added, strict=True)}}


def alike(labels: int, room: Mapping[int, int], before: Mapping[int, int]) -> Parts:
    """Split labels into equal parts; who can take only less gets that, and the others the rest.

    Of what is left over after that, who had fewest before gets one first.

    Parameters
    ----------
    labels : int
        How many there are.
    room : Mapping[int, int]
        The most that each client can take.
    before : Mapping[int, int]
        What each was granted before.
    """
    parts, left, others = dict[int, int](), labels, sorted(room, key=lambda c: (-room[c], c))
    while others and room[others[-1]] * len(others) <= left:
        client = others.pop()
        parts[client] = room[client]
        left -= room[client]
    if others:
        others.sort(key=lambda client: (before.get(client, 0), client))
        share = allocate([1] * len(others), [room[client] for client in others], left).tolist()
        parts |= dict(zip(others, share, strict=True))
    return Parts(parts, room, dict.fromkeys(sorted(room), 1.0))


def less_free(parts: Parts, free: Mapping[int, int]) -> dict[int, int]:
    """Return what each client is granted anew where some have not used all that they had.

    Who has labels left gets so many fewer, and these are split once more in the same way.

    Parameters
    ----------
    parts : Parts
        How labels are split.
    free : Mapping[int, int]
        What each client has left.
    """
    clients = sorted(parts.labels)
    added = {c: max(0, parts.labels[c] - free.get(c, 0)) for c in clients}
    spare = [max(0, parts.most[c] - max(parts.labels[c], free.get(c, 0))) for c in clients]
    left = sum(parts.labels.values()) - sum(added.values())
    more = allocate([parts.weights[c] for c in clients], spare, left).tolist()
    return {c: added[c] + again for c, again in zip(clients, more, strict=True)}


def _new_labels(
    settings: Settings, cycle: int, sizes: Mapping[int, int], before: Mapping[int, int]
) -> int:
    """Return how many labels a cycle adds to those of all clients."""
    due = settings.labels_due(cycle, sum(sizes.values()))
    counted = before if settings.counts_labels else {c: before.get(c, 0) for c in sizes}
    return max(0, due - sum(counted.values()))


def _read(path: Path) -> _Plan:
    try:
        found = json.loads(path.read_text())
        # A run of an earlier version has neither.
        weights, labels = found.pop(_WEIGHTS, {}), found.pop(_LABELS, {})
        return _Plan(
            {
                int(cycle): {int(client): int(labels) for client, labels in granted.items()}
                for cycle, granted in found.items()
            },
            {
                int(cycle): {int(client): float(weight) for client, weight in each.items()}
                for cycle, each in weights.items()
            },
            {int(cycle): int(number) for cycle, number in labels.items()},
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ResumeError(f"{path}: cannot be read: {error}") from error
