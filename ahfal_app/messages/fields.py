"""Values in a record, checked where they arrive."""

from __future__ import annotations

import re
import reprlib
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ahfal_app.messages.keys import ARRAYS_KEY, CONFIG_KEY, METRICS_KEY

Kind = TypeVar("Kind", ArrayRecord, ConfigRecord, MetricRecord)

#: More than any run has of anything that is counted; sums of such numbers stay exact.
LARGEST_COUNT = 10**12

#: More than any loss, time or budget of a run; sums and products of such numbers stay finite.
LARGEST_NUMBER = 1e12

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist, _short.maxtuple, _short.maxlevel = 4, 8, 2


def shown(value: object) -> str:
    """Return what somebody else has sent as a short text, without control characters."""
    return _short.repr(value)


def count(record: MetricRecord | ConfigRecord, key: str) -> int:
    """Return a value that must be an integer from 0 to `LARGEST_COUNT`.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    value = record.get(key)
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
        raise ValueError(
            f"{key}={shown(value)}: allowed is an integer ≥ 0 and ≤ {LARGEST_COUNT:.0e}"
        )
    return value


def number(record: MetricRecord | ConfigRecord, key: str, lowest: float = 0.0) -> float:
    """Return a value that must be a number from `lowest` to `LARGEST_NUMBER`.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    value = record.get(key)
    if not isinstance(value, float) or not lowest <= value <= LARGEST_NUMBER:
        raise ValueError(
            f"{key}={shown(value)}: allowed is a number ≥ {lowest:g} and ≤ {LARGEST_NUMBER:g}"
        )
    return value


def numbers(record: MetricRecord, key: str, length: int, highest: float) -> list[float]:
    """Return a metric that must be so many finite numbers from 0 to `highest`.

    Raises
    ------
    ValueError
        It is missing or something else.
    """
    values = record.get(key)
    if not isinstance(values, list) or len(values) != length:
        raise ValueError(f"{key}={shown(values)}: allowed are {length} numbers")
    if not all(0 <= value <= highest for value in values):
        raise ValueError(f"{key}={shown(values)}: allowed are numbers from 0 to {highest:g}")
    return [float(value) for value in values]


def text(record: ConfigRecord, key: str, pattern: str, longest: int) -> str:
    """Return a text that must match a pattern as a whole.

    Raises
    ------
    ValueError
        It is missing, longer, or something else.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key}={shown(value)}: allowed is text")
    if len(value) > longest or not re.fullmatch(pattern, value, re.DOTALL):
        raise ValueError(
            f"{key}={shown(value)}: allowed is text of at most {longest} characters that matches "
            f"{pattern}"
        )
    return value


def metrics_of(content: RecordDict, key: str = METRICS_KEY) -> MetricRecord:
    """Return metrics of a message, by default those of an answer.

    Raises
    ------
    ValueError
        There are none.
    """
    what = "answer" if key == METRICS_KEY else "message"
    return _of_kind(content, key, MetricRecord, what)


def config_of(content: RecordDict, key: str = CONFIG_KEY) -> ConfigRecord:
    """Return a record of a message, by default its order.

    Raises
    ------
    ValueError
        There is none.
    """
    return _of_kind(content, key, ConfigRecord, "message")


def arrays_of(content: RecordDict, what: str = "message") -> ArrayRecord:
    """Return the arrays of a message, which is called `what`.

    Raises
    ------
    ValueError
        There are none.
    """
    return _of_kind(content, ARRAYS_KEY, ArrayRecord, what)


def _of_kind(content: RecordDict, key: str, kind: type[Kind], what: str) -> Kind:
    # Flower sorts all records of a message by their kinds for each of its own questions.
    record = content.get(key)
    if not isinstance(record, kind):
        raise ValueError(f"{what} without {key!r}")
    return record
