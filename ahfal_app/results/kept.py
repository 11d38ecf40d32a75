"""Which model a run leaves: the last, or the best of those that were tested.

The records say it alone, so that a run that was resumed, or that goes on, finds the same one.

The suffix `_C` marks a tuple over classes, `_K` one over clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ahfal_app.config import Settings
from ahfal_app.results.reading import Metrics, Run
from ahfal_app.results.records import CycleRecord, Record, TestRecord
from ahfal_app.results.units import metric_text

#: The metric that every test has.
ACCURACY = "accuracy"

#: Metrics of which less is better; of all others more is.
LOWER_IS_BETTER = frozenset({"calibration-error", "loss"})

#: The setting `keep` that chooses by a metric.
BEST = "best"


@dataclass(frozen=True)
class Candidate:
    """A global model that was tested.

    Attributes
    ----------
    cycle, round : int
        When, from 0 and from 1; a cycle's end is its last round.
    value : float
        Of the metric that models are compared by.
    """

    cycle: int
    round: int
    value: float


@dataclass(frozen=True)
class Kept:
    """The model that a run leaves, and how it did in its test.

    Attributes
    ----------
    cycle, round : int
        When it was aggregated, from 0 and from 1.
    metric : str
        What it was chosen by; empty where it is the last one, whatever it is worth.
    value : float | None
        Of that metric; None where there is none.
    compared : int
        Models that it was chosen from.
    labels : int
        Labels that it was trained on, at all clients together.
    labels_per_client_K : tuple[int, ...]
        The same by client.
    accuracy : float | None
        In its test, as are all the others.
    class_accuracy_C : tuple[float | None, ...]
        None for a class without test samples.
    metrics : dict[str, float | None]
        The others, by name.
    tests : tuple[TestRecord, ...]
        Each test; the figures above are of the first one.
    """

    cycle: int
    round: int
    metric: str
    value: float | None
    compared: int
    labels: int
    labels_per_client_K: tuple[int, ...]
    accuracy: float | None
    class_accuracy_C: tuple[float | None, ...]
    metrics: dict[str, float | None]
    tests: tuple[TestRecord, ...] = ()

    @property
    def is_chosen(self) -> bool:
        """Whether it was chosen by how models did in the test whose figures these are."""
        return bool(self.metric) and self.compared > 1

    @property
    def where(self) -> str:
        """When it was aggregated, in words."""
        return f"cycle {self.cycle + 1}, round {self.round}"

    @property
    def why(self) -> str:
        """Why it was chosen, and what that makes of its figures, in words."""
        value = metric_text(self.metric, self.value)
        return (
            f"{self.metric} {value}, the {extreme(self.metric)} of {self.compared} models that "
            "were tested; chosen by this test, whose figures for it are optimistic"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `summary.json` says of it; cycles and rounds as in `metrics.jsonl`."""
        return {
            "keep": BEST if self.metric else "last",
            "metric": self.metric or None,
            "value": self.value,
            "compared": self.compared,
            "cycle": self.cycle,
            "round": self.round,
            "labels": self.labels,
            "accuracy": self.accuracy,
        }


def value_of(record: Record, metric: str) -> float | None:
    """Return a metric of a test; None where nothing was tested, or it is not defined."""
    if metric == ACCURACY:
        return record.accuracy if isinstance(record, CycleRecord) else record.test_accuracy
    return record.metrics.get(metric)


def tested(record: Record, settings: Settings) -> Candidate | None:
    """Return the model that a record tells a value of, if it does."""
    value = value_of(record, settings.metric)
    # In `metrics.jsonl` what is not finite is None; a run that goes on must find the same.
    if value is None or not math.isfinite(value):
        return None
    round_ = settings.rounds if isinstance(record, CycleRecord) else record.round
    return Candidate(record.cycle, round_, value)


def best_of(records: Iterable[Record], settings: Settings) -> Candidate | None:
    """Return the model with the best value; of equals the earliest, which had fewer labels."""
    found = [each for record in records if (each := tested(record, settings)) is not None]
    best: Candidate | None = None
    for each in sorted(found, key=lambda each: (each.cycle, each.round)):
        if is_better(each, best, settings.metric):
            best = each
    return best


def is_better(candidate: Candidate, than: Candidate | None, metric: str) -> bool:
    """Return whether a model is better than an earlier one; anything is better than none."""
    if than is None:
        return True
    if metric in LOWER_IS_BETTER:
        return candidate.value < than.value
    return candidate.value > than.value


def extreme(metric: str) -> str:
    """Return which value of a metric is the best, in a word."""
    return "lowest" if metric in LOWER_IS_BETTER else "highest"


def kept_model(metrics: Metrics, settings: Settings) -> Kept:
    """Return which model a run leaves that has come to the end of a cycle.

    Where no test has a value of the metric, it is the last one.
    """
    last = metrics.cycles[-1]
    best = best_of(metrics.records, settings) if settings.keep == BEST else None
    if best is None:
        return _kept(last, last, Candidate(last.cycle, settings.rounds, 0.0))
    compared = sum(tested(record, settings) is not None for record in metrics.records)
    of_cycle = next(cycle for cycle in metrics.cycles if cycle.cycle == best.cycle)
    at = (best.cycle, best.round)
    in_between = (each for each in metrics.rounds if (each.cycle, each.round) == at)
    record = of_cycle if best.round == settings.rounds else next(in_between)
    return _kept(record, of_cycle, best, settings.metric, compared)


def kept_of(run: Run) -> Kept | None:
    """Return which model a run has left; None before its end."""
    return kept_model(run.metrics, run.settings) if run.is_complete else None


def _kept(
    record: Record, of_cycle: CycleRecord, at: Candidate, metric: str = "", compared: int = 1
) -> Kept:
    return Kept(
        cycle=at.cycle,
        round=at.round,
        metric=metric,
        value=at.value if metric else None,
        compared=compared,
        labels=of_cycle.labels,
        labels_per_client_K=of_cycle.labels_per_client,
        accuracy=value_of(record, ACCURACY),
        class_accuracy_C=_class_accuracy(record, len(of_cycle.class_accuracy)),
        metrics=record.metrics,
        tests=record.tests,
    )


def _class_accuracy(record: Record, num_classes: int) -> tuple[float | None, ...]:
    if isinstance(record, CycleRecord):
        return record.class_accuracy
    return record.tests[0].recall if record.tests else (None,) * num_classes
