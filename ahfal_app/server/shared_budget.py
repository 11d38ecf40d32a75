"""One budget for all clients: how many labels each of them gets, decided once for each cycle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from ahfal_app.config import Settings
from ahfal_app.errors import ResumeError
from ahfal_app.query.core.budgets import allocate
from ahfal_app.storage.files import write_json


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
        self._plan = _read(path) if path.exists() else {}

    def granted(self, cycle: int, sizes: Mapping[int, int]) -> dict[int, int]:
        """Return how many labels each client has been granted by a cycle, all together.

        What a cycle adds is split by largest remainder in proportion to what each client lacks of
        its exact share, which is in proportion to its samples; so no client's labels ever sink,
        and all of them together are exactly those that are due. A client that comes later has
        its share of what is bought from then on.

        Parameters
        ----------
        cycle : int
            The cycle that labels are bought for.
        sizes : Mapping[int, int]
            Samples of each client that is there; read where the cycle has no plan yet.
        """
        if cycle not in self._plan:
            earlier = [known for known in self._plan if known < cycle]
            before = self._plan[max(earlier)] if earlier else {}
            self._plan[cycle] = split(self._settings, cycle, sizes, before)
            write_json(self._path, self._plan)
        return self._plan[cycle]


def split(
    settings: Settings, cycle: int, sizes: Mapping[int, int], before: Mapping[int, int]
) -> dict[int, int]:
    """Return the labels that each client is granted by a cycle, in total.

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
    due = settings.labels_due(cycle, samples)
    counted = before if settings.counts_labels else {c: before.get(c, 0) for c in clients}
    new = max(0, due - sum(counted.values()))
    had = {client: before.get(client, 0) for client in clients}
    lacking = [max(Fraction(0), Fraction(due * sizes[c], samples) - had[c]) for c in clients]
    spare = [max(0, sizes[client] - had[client]) for client in clients]
    added = allocate(lacking, spare, new).tolist()
    return {**before, **{c: had[c] + more for c, more in zip(clients, added, strict=True)}}


def _read(path: Path) -> dict[int, dict[int, int]]:
    try:
        found = json.loads(path.read_text())
        return {
            int(cycle): {int(client): int(labels) for client, labels in granted.items()}
            for cycle, granted in found.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ResumeError(f"{path}: cannot be read: {error}") from error
