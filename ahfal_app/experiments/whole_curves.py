"""The tables of whole learning curves: who is ahead on average over the labels, and when.

The final value alone hides a method that leads with few labels and is caught up with later.
"""

from __future__ import annotations

import math
import statistics

import numpy as np

from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.comparison import SIGNIFICANCE, TEST_NAME, paired_difference
from ahfal_app.experiments.results import ExperimentResults, Point, RunResult, area
from ahfal_app.experiments.tables import (
    NOTHING,
    Measure,
    difference_table,
    other_methods,
)
from ahfal_app.multiple_tests import holm
from ahfal_app.parameters import Scalar
from ahfal_app.results.tables import TextTable

#: Cycles that a table has a column of.
_MOST_COLUMNS = 11


def area_difference_table(results: ExperimentResults) -> TextTable | None:
    """Return paired differences to the reference in the area; None where no run has two cycles."""
    if all(len(run.labels_T) < 2 for run in results.runs):
        return None
    return difference_table(results, area, " in the area under the curve")


def cycle_difference_table(results: ExperimentResults) -> TextTable | None:
    """Return paired differences to the reference after each cycle.

    Of many cycles some, evenly spaced, the first and the last among them. None for a single method,
    and where the final value is all that there is to compare.
    """
    reference = results.reference
    count = max((len(run.labels_T) for run in results.runs), default=0)
    if reference is None or count < 2:
        return None
    spaced = np.linspace(0, count - 1, min(count, _MOST_COLUMNS))
    cycles = [int(cycle) for cycle in np.unique(spaced.round())]
    others, rows = other_methods(results), list[tuple[str, ...]]()
    for point in results.settings_points:
        columns = [_differences(results, reference, point, _after(cycle)) for cycle in cycles]
        for method, *cells in zip(others, *columns, strict=True):
            if any(cell != NOTHING for cell in cells):
                rows.append((point_text(point) or "all", str(method), *cells))
    if not rows:
        return None
    labels = [_mean_labels(results, cycle) for cycle in cycles]
    return TextTable(
        title=f"Differences to {reference} after each number of labels, in points of "
        f"{results.metric}",
        headings=("Where", results.method_axis, *labels),
        rows=rows,
        numbers=frozenset(range(2, 2 + len(cycles))),
        note="Paired by seed. Headings: labels of all clients, mean over runs. In brackets p by "
        f"the {TEST_NAME}, among the methods of a row's place after the same cycle, where it is "
        f"below {SIGNIFICANCE}; it is not corrected for the number of cycles.",
    )


def _after(cycle: int) -> Measure:
    """Return the metric in the test of a cycle, in percent."""

    def value(result: RunResult) -> float | None:
        values_T = result.values_T
        missing = cycle >= len(values_T) or math.isnan(values_T[cycle])
        return None if missing else values_T[cycle]

    return value


def _differences(
    results: ExperimentResults, reference: Scalar, point: Point, measure: Measure
) -> list[str]:
    """Return each other method's difference to the reference, and its p where that counts."""
    base = results.by_seed(point, reference, measure)
    found = [
        paired_difference(results.by_seed(point, method, measure), base)
        for method in other_methods(results)
    ]
    corrected = holm([each.p if each else None for each in found])
    return [
        NOTHING
        if each is None
        else f"{each.mean:+.2f}" + (f" ({p:.3f})" if p is not None and p < SIGNIFICANCE else "")
        for each, p in zip(found, corrected, strict=True)
    ]


def _mean_labels(results: ExperimentResults, cycle: int) -> str:
    labels = [run.labels_T[cycle] for run in results.runs if cycle < len(run.labels_T)]
    return f"{statistics.fmean(labels):,.0f}"
