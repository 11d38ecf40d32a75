"""The tests of a cycle's last rounds: how far a metric swings from one round to the next.

A cycle's figure is that of its last round's model. Where classes are spread unevenly over the
clients, the round before could have given another one; `evaluate-last` has these tested, too.

Shapes: T cycles, R a cycle's last rounds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ahfal_app.results.kept import ACCURACY, value_of
from ahfal_app.results.reading import Run
from ahfal_app.results.records import CycleRecord, Record


@dataclass(frozen=True)
class LastRounds:
    """A metric in the tests of a cycle's last rounds (R), at least one; the cycle's end is last."""

    values_R: tuple[float, ...]

    @property
    def final(self) -> float:
        """Of the last round: what the cycle's figure is."""
        return self.values_R[-1]

    @property
    def mean(self) -> float:
        """Over the rounds."""
        return statistics.fmean(self.values_R)

    @property
    def low(self) -> float:
        """The lowest."""
        return min(self.values_R)

    @property
    def high(self) -> float:
        """The highest."""
        return max(self.values_R)

    @property
    def swing(self) -> float:
        """How far the highest is from the lowest."""
        return self.high - self.low

    @property
    def rise(self) -> float:
        """How far the last is above the first: near the swing where a model still gets better."""
        return self.values_R[-1] - self.values_R[0]


def last_rounds_of(run: Run, cycle: CycleRecord) -> list[Record]:
    """Return the records of a cycle's last rounds, as its `evaluate-last` has them tested.

    Returns
    -------
    list[Record]
        R records of tests in the order of the rounds; the cycle's own is the last.
    """
    end = run.settings.rounds
    wanted = range(end - run.settings.last_rounds + 1, end)
    between = [
        record
        for record in run.metrics.rounds
        if record.cycle == cycle.cycle
        and record.round in wanted
        and record.test_accuracy is not None
    ]
    return [*sorted(between, key=lambda record: record.round), cycle]


def last_accuracies(run: Run, cycle: CycleRecord) -> LastRounds | None:
    """Return the accuracies in a cycle's last rounds, as shares; None for its end alone."""
    found = [value_of(record, ACCURACY) for record in last_rounds_of(run, cycle)]
    known = tuple(value for value in found if value is not None)
    return LastRounds(known) if len(known) > 1 else None


def last_rounds_per_cycle(run: Run) -> dict[str, list[list[float | None]]]:
    """Return what `summary.json` says of the last rounds.

    Returns
    -------
    dict[str, list[list[float | None]]]
        Of each metric, by name, the values (T, R) of each cycle in the order of the rounds, None
        where one is not defined; empty where the ends of cycles alone are tested.
    """
    if run.settings.last_rounds < 2:
        return {}
    records_TR = [last_rounds_of(run, cycle) for cycle in run.metrics.cycles]
    names = {name for records in records_TR for record in records for name in record.metrics}
    return {
        name: [[value_of(record, name) for record in records] for records in records_TR]
        for name in sorted(names | {ACCURACY})
    }
