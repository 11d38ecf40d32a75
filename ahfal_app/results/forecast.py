"""How many labels an accuracy takes, by the learning curve of a run's cycles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ahfal_app.errors import ReportError
from ahfal_app.learning_curve import Range, fit_curve
from ahfal_app.results.reading import read_run
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent, seconds_text

#: Labels beyond this many times the most that were bought are not forecast.
FARTHEST = 4


@dataclass(frozen=True)
class Forecast:
    """What an accuracy is expected to take.

    Attributes
    ----------
    accuracy : float
        The one that is wanted.
    reached : int | None
        The fewest labels that gave it in the run; None: it was not reached.
    labels : Range | None
        Labels in all; None where the run has it already, or has too few points.
    cycles : Range | None
        Cycles that are still to come.
    seconds : Range | None
        Time that they take, by the mean of the run's cycles.
    reason : str
        Why there is no forecast, or why it goes no farther; empty where there is one.
    """

    accuracy: float
    reached: int | None
    labels: Range | None
    cycles: Range | None
    seconds: Range | None
    reason: str


def forecast(
    labels_M: Sequence[int],
    accuracies_M: Sequence[float],
    accuracy: float,
    per_cycle: float,
    seconds_per_cycle: float,
) -> Forecast:
    """Tell what an accuracy takes, by a run's cycles.

    Parameters
    ----------
    labels_M : Sequence[int]
        Labels of all sites together, by cycle.
    accuracies_M : Sequence[float]
        Test accuracies.
    accuracy : float
        The one that is wanted, above 0 and below 1.
    per_cycle : float
        Labels that a cycle buys, above 0.
    seconds_per_cycle : float
        Time that a cycle takes.
    """
    reached = [n for n, y in zip(labels_M, accuracies_M, strict=True) if y >= accuracy]
    if reached:
        return Forecast(accuracy, min(reached), None, None, None, "")
    try:
        fitted = fit_curve(labels_M, accuracies_M)
    except ValueError as error:
        return Forecast(accuracy, None, None, None, None, f"not from these data: {error}")
    found = fitted.range_of(lambda curve: curve.labels_for(accuracy))
    if math.isinf(found.point):
        reason = (
            f"not from these data: the curve that fits best ends at {fitted.best.a:.4f}, below "
            f"{accuracy}"
        )
        return Forecast(accuracy, None, None, None, None, reason)
    farthest = FARTHEST * max(labels_M)
    if found.point > farthest:
        reason = (
            f"not from these data: more than {farthest} labels, {FARTHEST} times what was bought"
        )
        return Forecast(accuracy, None, None, None, None, reason)
    have = max(labels_M)
    cycles = _each(found, lambda n: max(0.0, _up((n - have) / per_cycle)))
    seconds = _each(cycles, lambda count: count * seconds_per_cycle)
    return Forecast(accuracy, None, found, cycles, seconds, "")


def forecast_runs(folders: Sequence[Path], accuracy: float) -> Forecast:
    """Tell what an accuracy takes, by one run or by several seeds of one.

    Of several runs the mean accuracy counts, over the numbers of labels that all of them have.

    Raises
    ------
    ReportError
        The accuracy is not between 0 and 1, or a folder is no run's.
    """
    if not 0 < accuracy < 1:
        raise ReportError(f"accuracy={accuracy}: allowed is a share above 0 and below 1")
    runs = [read_run(folder) for folder in folders]
    curves = [{c.labels: c.accuracy for c in run.metrics.cycles} for run in runs]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if len(shared) < 2:
        names = ", ".join(str(folder) for folder in folders)
        raise ReportError(f"{names}: allowed are runs that share two numbers of labels or more")
    means = [sum(curve[n] for curve in curves) / len(curves) for n in shared]
    per_cycle = (shared[-1] - shared[0]) / (len(shared) - 1)
    seconds = [sum(run.metrics.seconds.values()) / len(run.metrics.cycles) for run in runs]
    return forecast(shared, means, accuracy, per_cycle, sum(seconds) / len(seconds))


def forecast_table(found: Forecast, label_cost: float, currency: str) -> TextTable:
    """Return a forecast with labels as a table; a cost only where a label has one."""
    rows = [("labels in all", found.labels, _count), ("cycles to come", found.cycles, _count)]
    rows.append(("time", found.seconds, _time))
    if label_cost and found.labels is not None:
        cost = _each(found.labels, lambda labels: labels * label_cost)
        rows.append(("cost of all labels", cost, lambda value: f"{_count(value)} {currency}"))
    cells = [
        (name, text(value.low), text(value.point), text(value.high))
        for name, value, text in rows
        if value is not None
    ]
    title = f"accuracy {percent(found.accuracy)}"
    return TextTable(title, ("", "from", "best fit", "to"), cells)


def _each(range_: Range, function: Callable[[float], float]) -> Range:
    return Range(function(range_.low), function(range_.point), function(range_.high))


def _count(value: float) -> str:
    return "no end known" if math.isinf(value) else f"{math.ceil(value):,}"


def _time(value: float) -> str:
    return "no end known" if math.isinf(value) else seconds_text(value)


def _up(value: float) -> float:
    return value if math.isinf(value) else float(math.ceil(value))
