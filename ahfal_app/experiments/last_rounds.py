"""The tables of the last rounds: how far runs swing, and which differences are smaller than that.

The paper reports the final round. Runs with `evaluate-last` say what the rounds before it would
have given; a difference between two methods that is smaller than their swing may be one between
rounds.
"""

from __future__ import annotations

import statistics

from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.comparison import paired_difference
from ahfal_app.experiments.results import ExperimentResults, Point, RunResult, final_value
from ahfal_app.experiments.tables import (
    NOTHING,
    Measure,
    difference_table,
    mean_text,
    other_methods,
)
from ahfal_app.parameters import Scalar
from ahfal_app.results.kept import ACCURACY
from ahfal_app.results.tables import TextTable

#: A method, and the reference that it is compared with.
Pair = tuple[Scalar, Scalar]


def mean_of_last_rounds(result: RunResult) -> float | None:
    """Return the mean of the metric over the last rounds; None where they were not tested."""
    return None if result.last_rounds is None else result.last_rounds.mean


def last_rounds_table(results: ExperimentResults) -> TextTable | None:
    """Return final round, mean and range of the last rounds; None where no run has them."""
    rows = []
    for point in results.settings_points:
        for method in results.methods:
            found = results.last_rounds(point, method)
            if not found:
                continue
            low, high = (
                statistics.fmean(bounds)
                for bounds in zip(*((last.low, last.high) for last in found.values()), strict=True)
            )
            counts = sorted({len(last.values_R) for last in found.values()})
            rows.append(
                (
                    point_text(point) or "all",
                    str(method),
                    mean_text({seed: last.final for seed, last in found.items()}),
                    mean_text({seed: last.mean for seed, last in found.items()}),
                    f"{low:.2f} to {high:.2f}",
                    mean_text({seed: last.swing for seed, last in found.items()}),
                    f"{statistics.fmean(last.rise for last in found.values()):+.2f}",
                    ", ".join(map(str, counts)),
                )
            )
    if not rows:
        return None
    headings = ("Final round", "Mean of the last", "Range", "Swing", "Rise", "Rounds")
    return TextTable(
        title=f"Last rounds, test {results.metric} in %",
        headings=("Where", results.method_axis, *headings),
        rows=rows,
        numbers=frozenset(range(2, 8)),
        note="Of the last cycle; mean ± standard deviation over seeds (their number in brackets). "
        "Range: from the lowest to the highest of a run's last rounds, each a mean over seeds. "
        "Swing: how far these are apart. Rise: how far the final round is above the first of them; "
        "where that is nearly the swing, the models were still getting better.",
    )


def mean_difference_table(results: ExperimentResults) -> TextTable | None:
    """Return paired differences to the reference in the mean of the last rounds."""
    return difference_table(results, mean_of_last_rounds, " in the mean of the last rounds")


def paper_difference_table(results: ExperimentResults) -> TextTable | None:
    """Return which of the paper's differences to the reference are smaller than our swing.

    None where the metric is not the paper's, or no two methods have both its number and last
    rounds.
    """
    reference = results.reference
    if results.metric != ACCURACY or reference is None:
        return None
    rows, smaller = list[tuple[str, ...]](), 0
    for point in results.settings_points:
        for method in other_methods(results):
            pair = (method, reference)
            paper, swing = (each(results, point, pair) for each in (_paper_difference, _swing))
            if paper is None or swing is None:
                continue
            is_smaller = abs(paper) < swing
            smaller += is_smaller
            ours = (
                _difference(results, point, pair, measure)
                for measure in (final_value, mean_of_last_rounds)
            )
            place = (point_text(point) or "all", str(method))
            rows.append((*place, f"{paper:+.2f}", f"{swing:.2f}", _word(is_smaller), *ours))
    if not rows:
        return None
    headings = (
        "Paper's",
        "Swing",
        "Smaller than it",
        "Ours, final round",
        "Ours, mean of the last",
    )
    return TextTable(
        title=f"The paper's differences to {reference}, and the swing, in points",
        headings=("Where", results.method_axis, *headings),
        rows=rows,
        numbers=frozenset({2, 3, 5, 6}),
        note=f"{smaller} of the paper's {len(rows)} differences {_is(smaller)} smaller than the "
        "swing: than how far the accuracy of our runs goes up and down in their last rounds, mean "
        "over seeds and of both methods. It is a single run's; a mean over seeds swings less.",
    )


def _paper_difference(results: ExperimentResults, point: Point, pair: Pair) -> float | None:
    """Return the paper's difference between two methods, in points."""
    numbers = [results.paper_number(point, method) for method in pair]
    known = [number.accuracy for number in numbers if number is not None]
    return known[0] - known[1] if len(known) == 2 else None


def _swing(results: ExperimentResults, point: Point, pair: Pair) -> float | None:
    """Return the mean swing of two methods' runs, both counting alike."""
    found = [results.last_rounds(point, method).values() for method in pair]
    means = [statistics.fmean(last.swing for last in runs) for runs in found if runs]
    return statistics.fmean(means) if len(means) == 2 else None


def _difference(results: ExperimentResults, point: Point, pair: Pair, measure: Measure) -> str:
    ours, base = (results.by_seed(point, method, measure) for method in pair)
    difference = paired_difference(ours, base)
    return NOTHING if difference is None else f"{difference.mean:+.2f}"


def _word(value: bool) -> str:
    return "yes" if value else "no"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
