"""The tables of a run's report, as text in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ahfal_app.config import setting_fields
from ahfal_app.results.reading import Metrics, Run
from ahfal_app.results.records import CycleRecord, Record, RoundRecord
from ahfal_app.results.units import bytes_text, percent, seconds_text


@dataclass(frozen=True)
class TextTable:
    """A table as a person reads it; `numbers` are the columns to align on the right."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = field(default_factory=frozenset)
    total: Sequence[str] = ()
    note: str = ""


def cycle_table(metrics: Metrics) -> TextTable:
    """Give each cycle a row; seconds and bytes include the cycle's rounds."""
    headings = (
        "Cycle",
        "Labels",
        "Labels per client",
        "Test accuracy",
        "Test loss",
        "Mean deviation (points)",
        "Low-variance classes",
        "Budget",
        "Bought",
        "Pending",
        "Time",
        "To clients",
        "From clients",
    )
    return TextTable(
        title="Cycles",
        headings=headings,
        rows=[_cycle_row(cycle, metrics.rounds) for cycle in metrics.cycles],
        numbers=frozenset(range(len(headings))),
        note="Cycles count from 1 here and from 0 in metrics.jsonl. The model of a cycle is "
        "trained on its labels; the budget is bought after that, for the next cycle.",
    )


def _cycle_row(cycle: CycleRecord, rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    records: list[Record] = [cycle]
    records += [record for record in rounds if record.cycle == cycle.cycle]
    fewest, most = min(cycle.labels_per_client), max(cycle.labels_per_client)
    deviation, low = cycle.deviation, cycle.low
    return (
        f"{cycle.cycle + 1}",
        f"{cycle.labels:,}",
        f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}",
        percent(cycle.accuracy),
        "not finite" if cycle.loss is None else f"{cycle.loss:.4f}",
        "n/a" if deviation is None else f"{100 * sum(deviation) / len(deviation):.2f}",
        "n/a" if low is None else f"{sum(low)} of {len(low)}",
        f"{cycle.budget:,}",
        f"{cycle.bought:,}",
        f"{cycle.pending:,}",
        seconds_text(sum(sum(record.seconds.values()) for record in records)),
        bytes_text(sum(record.bytes_down for record in records)),
        bytes_text(sum(record.bytes_up for record in records)),
    )


def time_table(metrics: Metrics) -> TextTable:
    """Sum the seconds per phase, the longest first."""
    seconds = metrics.seconds
    total = sum(seconds.values())
    phases = sorted(seconds.items(), key=lambda phase: (-phase[1], phase[0]))
    return TextTable(
        title="Time by phase",
        headings=("Phase", "Time", "Share"),
        rows=[
            (name, seconds_text(spent), percent(spent / total if total else 0.0, 1))
            for name, spent in phases
        ],
        numbers=frozenset({1, 2}),
        total=("all", seconds_text(total), percent(1.0, 1)) if phases else (),
    )


def features_table(environment: Mapping[str, Any]) -> TextTable | None:
    """Tell what the features of a backbone took; None where this process has computed none."""
    backbone = environment.get("backbone")
    if not backbone or not any(each["images"] for each in backbone["extracted"].values()):
        return None
    rows = []
    for split, computed in backbone["extracted"].items():
        images, seconds = computed["images"], computed["seconds"]
        rate = f"{images / seconds:,.0f}" if images and seconds else "n/a"
        rows.append((split, f"{images:,}", seconds_text(seconds), rate))
    name, features, views = backbone["name"], backbone["features"], backbone.get("views", 0)
    viewed = f", {views} views of each training image besides" if views else ""
    return TextTable(
        title=f"Features of {name} ({features} of an image{viewed}); all others were there",
        headings=("Split", "Computed", "Time", "Images/s"),
        rows=rows,
        numbers=frozenset({1, 2, 3}),
    )


def traffic_table(metrics: Metrics) -> TextTable:
    """Sum the bytes to and from the clients by what they were for."""
    parts = (("training rounds", metrics.rounds), ("selection", metrics.cycles))
    return TextTable(
        title="Bytes sent",
        headings=("For", "To clients", "From clients"),
        rows=[
            (
                name,
                bytes_text(sum(record.bytes_down for record in records)),
                bytes_text(sum(record.bytes_up for record in records)),
            )
            for name, records in parts
        ],
        numbers=frozenset({1, 2}),
        total=("all", bytes_text(metrics.bytes_down), bytes_text(metrics.bytes_up)),
    )


def failure_table(metrics: Metrics) -> TextTable | None:
    """List every message without a usable answer; None if all were answered."""
    in_rounds = [
        (record.cycle, f"{record.round}", failure)
        for record in metrics.rounds
        for failure in record.failed
    ]
    in_selection = [
        (record.cycle, "selection", failure)
        for record in metrics.cycles
        for failure in record.failed
    ]
    failures = sorted(in_rounds + in_selection, key=lambda row: row[0])
    if not failures:
        return None
    return TextTable(
        title="Failures",
        headings=("Cycle", "Round", "Client", "Reason"),
        rows=[
            (f"{cycle + 1}", place, failure.site or f"{failure.client}", failure.reason)
            for cycle, place, failure in failures
        ],
        numbers=frozenset({0, 1, 2}),
    )


def joined_table(metrics: Metrics) -> TextTable | None:
    """List who came to the run between its cycles; None if nobody did."""
    rows = [
        (
            f"{cycle.cycle + 1}",
            came.who,
            f"{came.samples:,}",
            "is back" if came.is_back else "is new",
        )
        for cycle in metrics.cycles
        for came in cycle.joined
    ]
    if not rows:
        return None
    return TextTable(
        title="Clients that came between cycles",
        headings=("Before cycle", "Client", "Samples", ""),
        rows=rows,
        numbers=frozenset({0, 2}),
        note="Who is away is among the failures.",
    )


def settings_table(run: Run) -> TextTable:
    """List every setting with its default, where it differs, and its meaning."""
    values = run.settings.to_tell()
    fields = setting_fields()
    rows = []
    for key, value in values.items():
        known = fields.get(key)
        if known is None:
            rows.append((key, _word(value), "", "Parameter of the query strategy."))
            continue
        default = "" if known.default == value else _word(known.default)
        rows.append((key, _word(value), default, (known.description or "").replace("`", "")))
    return TextTable(
        title="Settings",
        headings=("Setting", "Value", "Default, if another", "Meaning"),
        rows=rows,
    )


def not_used_table(environment: Mapping[str, Any]) -> TextTable | None:
    """List what the data set's folder holds besides; None where there is nothing."""
    lines = environment.get("data", {}).get("not_used")
    if not lines:
        return None
    return TextTable(
        title="Found with the data set and not used",
        headings=("Count", "Reason", "Such as"),
        rows=[(f"{line['count']:,}", line["reason"], line["such_as"]) for line in lines],
        numbers=frozenset({0}),
    )


def environment_table(environment: Mapping[str, Any]) -> TextTable:
    """List what `environment.json` holds."""
    rows = [
        (f"{part}: {key.replace('_', ' ')}", _word(value))
        for part, facts in environment.items()
        if isinstance(facts, dict)
        for key, value in facts.items()
        if key not in ("class_names", "not_used", "notes")
    ]
    return TextTable(title="Environment", headings=("What", "Value"), rows=rows)


def grid_table(
    title: str, corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> TextTable:
    """Arrange the numbers behind a figure, one named row after another."""
    return TextTable(
        title=title,
        headings=(corner, *columns),
        rows=[(name, *cells) for name, cells in rows.items()],
        numbers=frozenset(range(1, len(columns) + 1)),
    )


def _word(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_word, value)) or "none"
    return "(empty)" if value == "" else str(value)
