"""Values in a record, checked where they arrive."""

from __future__ import annotations

import math

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from ahfal_app.messages.keys import METRICS_KEY


def count(record: MetricRecord | ConfigRecord, key: str) -> int:
    """Return a value that must be an integer of at least 0.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key}={value!r}: allowed is an integer ≥ 0")
    return value


def number(record: MetricRecord | ConfigRecord, key: str, lowest: float = 0.0) -> float:
    """Return a value that must be a finite number of at least `lowest`.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    value = record.get(key)
    if not isinstance(value, float) or not lowest <= value < math.inf:
        raise ValueError(f"{key}={value!r}: allowed is a number ≥ {lowest:g}")
    return value


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the metrics of an answer.

    Raises
    ------
    ValueError
        There are none.
    """
    if METRICS_KEY not in content.metric_records:
        raise ValueError(f"answer without {METRICS_KEY!r}")
    return content.metric_records[METRICS_KEY]
