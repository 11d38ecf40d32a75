"""Metrics of a test, by name; each module of this package is one, named after its file.

Each is computed from the confusion matrix, which adds up over test sets, and is written to
`metrics.jsonl` with each cycle, and shown by the trackers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ahfal_app.errors import InvalidMetric
from ahfal_app.plugins import METRICS

__all__ = ["measure_all", "metric_names"]


def metric_names() -> tuple[str, ...]:
    """Return the names of all metrics, without importing them."""
    return METRICS.names()


def measure_all(confusion_CC: NDArray[np.int64]) -> dict[str, float | None]:
    """Return every metric of a test by name; None where one is not defined.

    Parameters
    ----------
    confusion_CC : NDArray[np.int64]
        Test samples by true class (row) and predicted class (column).

    Raises
    ------
    InvalidMetric
        A metric is no finite number.
    """
    return {name: _checked(name, METRICS.component(name)(confusion_CC)) for name in metric_names()}


def _checked(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidMetric(
            f"metric {name!r} ({METRICS.where(name)}) gives {value!r}; allowed is a finite number, "
            "or None where it is not defined"
        )
    return float(value)
