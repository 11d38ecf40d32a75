"""What a tracker is told: the records of `metrics.jsonl` as named numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ahfal_app.parameters import Scalar
from ahfal_app.results.records import CycleRecord, Record

#: Where the report lies among the artifacts of a tracker that has any.
REPORT_ARTIFACT = "report"

#: Fields of a record that say where it belongs, are lists over clients, or are told otherwise.
_NO_METRICS = frozenset(
    {"kind", "cycle", "round", "labels_per_client", "tests", "sites", "untested", "joined"}
)


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked.

    Attributes
    ----------
    id : str
        Identity of the run, the same after a resume and unlike any other's.
    folder : Path
        Its folder, which has its name; what a tracker stores locally goes in there.
    rounds : int
        Rounds of a cycle.
    class_names : Sequence[str]
        In the order of the classes.
    """

    id: str
    folder: Path
    rounds: int
    class_names: Sequence[str]


@dataclass(frozen=True)
class Point:
    """The numbers of one record.

    Attributes
    ----------
    index : int
        Place of the record in `metrics.jsonl`, from 0.
    step : int
        Federated rounds done since the start of the run. A cycle's record has the step of the
        cycle's last round.
    metrics : dict[str, float]
        By name: `round/…` or `cycle/…` and the record's field; units are the record's.
    time : float
        When it was made, in seconds since 1970; not part of what it says.
    """

    index: int
    step: int
    metrics: dict[str, float]
    time: float = field(compare=False)


class Tracker(Protocol):
    """Shows a run; may raise anything, since libraries do."""

    def log_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Take the resolved settings as hyperparameters; again after a resume."""
        ...

    def log(self, points: Sequence[Point]) -> None:
        """Take new points, in order; the same ones again after this has failed."""
        ...

    def finish(self, report: Path | None, stopped: str) -> None:
        """End the tracking.

        Parameters
        ----------
        report : Path, optional
            The run's report, if there is one.
        stopped : str
            Why the run ended early; empty if it did not.
        """
        ...


def point_of(record: Record, index: int, run: TrackedRun) -> Point:
    """Return a record, made just now, as a point.

    Parameters
    ----------
    record : Record
        Of a round or of a cycle.
    index : int
        Its place in `metrics.jsonl`, from 0.
    run : TrackedRun
        The run that it is of.
    """
    within = run.rounds if isinstance(record, CycleRecord) else record.round
    fields = record.model_dump(exclude=set(_NO_METRICS)) | {"failed": len(record.failed)}
    if fields.get("arrivals"):
        # Sites and simulations tell different things of them, clients and classes by number.
        fields["arrivals"] = {
            k: v for k, v in fields["arrivals"].items() if k != "clients" and v != ()
        }
    if fields.get("forgetting"):
        fields["forgetting"].pop("effective")
    if isinstance(record, CycleRecord) and record.drift is not None:
        drift = record.drift
        fields["drift"] = {"pooled": drift.pooled, "drifting": len(drift.drifting)}
    if isinstance(record, CycleRecord) and record.grants is not None:
        fields["grants"] = {f"client-{g.client}": g.added for g in record.grants.clients}
    metrics: dict[str, float] = {}
    for name, value in fields.items():
        metrics.update(_numbers(f"{record.kind}/{name}", value, run.class_names))
    if isinstance(record, CycleRecord):
        metrics.update(_of_tests(record))
    return Point(index, record.cycle * run.rounds + within, metrics, time.time())


def _of_tests(record: CycleRecord) -> Iterator[tuple[str, float]]:
    """Return every metric of each test by name: of the server's, the sites' together, and each."""
    for test in record.tests:
        yield from _numbers(f"cycle/{test.where}", test.metrics, ())
    for site in record.sites:
        yield from _numbers(f"cycle/site-{site.client}", site.test.metrics, ())


def _numbers(name: str, value: Any, class_names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Return the numbers in a record's field by name; None and text have none."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(f"{name}/{key}", part, class_names)
    elif isinstance(value, tuple):
        for place, (part, class_name) in enumerate(zip(value, class_names, strict=True)):
            yield from _numbers(f"{name}/{_class_word(place, class_name)}", part, ())
    elif value is not None and not isinstance(value, str):
        yield name, float(value)


def _class_word(place: int, name: str) -> str:
    """Return a class as part of a metric's name; MLflow takes few other characters."""
    word = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")
    return f"{place}-{word}" if word and word != str(place) else str(place)
