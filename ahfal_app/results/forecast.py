"""What an accuracy takes, or a budget gives, by the learning curve of a run's cycles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ahfal_app.errors import ReportError
from ahfal_app.learning_curve import Range, fit_curve
from ahfal_app.results.costs import amount, money
from ahfal_app.results.reading import read_run
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent, seconds_text

#: Labels beyond this many times the most that were bought are not forecast.
FARTHEST = 4

_TOO_FAR = f"{FARTHEST} times what was bought"


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


@dataclass(frozen=True)
class BudgetForecast:
    """What a number of labels is expected to give.

    Attributes
    ----------
    budget : int
        Labels beside those that there are.
    accuracy : Range | None
        With all of them, by the curve; None where it cannot be told.
    of_a_run : Range | None
        The same with an interval for a single run, which scatters around its curve.
    cycles : int
        Cycles that are still to come.
    seconds : float
        Time that they take, by the mean of the run's cycles.
    reason : str
        Why there is no forecast; empty where there is one.
    """

    budget: int
    accuracy: Range | None
    of_a_run: Range | None
    cycles: int
    seconds: float
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
        reason = f"not from these data: more than {farthest} labels, {_TOO_FAR}"
        return Forecast(accuracy, None, None, None, None, reason)
    have = max(labels_M)
    cycles = _each(found, lambda n: max(0.0, _up((n - have) / per_cycle)))
    seconds = _each(cycles, lambda count: count * seconds_per_cycle)
    return Forecast(accuracy, None, found, cycles, seconds, "")


def forecast_budget(
    labels_M: Sequence[int],
    accuracies_M: Sequence[float],
    budget: int,
    per_cycle: float,
    seconds_per_cycle: float,
) -> BudgetForecast:
    """Tell what accuracy more labels give, by a run's cycles.

    Parameters
    ----------
    labels_M, accuracies_M, per_cycle, seconds_per_cycle
        As of `forecast`.
    budget : int
        Labels that can be bought beside those that there are, above 0.
    """
    have = max(labels_M)
    wanted, farthest = have + budget, FARTHEST * have
    if wanted > farthest:
        reason = f"not from these data: {wanted} labels are more than {farthest}, {_TOO_FAR}"
        return BudgetForecast(budget, None, None, 0, 0.0, reason)
    try:
        fitted = fit_curve(labels_M, accuracies_M)
    except ValueError as error:
        return BudgetForecast(budget, None, None, 0, 0.0, f"not from these data: {error}")
    cycles = math.ceil(budget / per_cycle)
    found = fitted.range_of(lambda curve: curve(wanted))
    seconds = cycles * seconds_per_cycle
    return BudgetForecast(budget, found, fitted.point_range(wanted), cycles, seconds, "")


@dataclass(frozen=True)
class Points:
    """The points of one run's curve, or of the mean of several seeds of one, and its prices.

    Attributes
    ----------
    labels_M, accuracies_M : tuple[int, ...], tuple[float, ...]
        Labels of all sites together, and test accuracies.
    per_cycle : float
        Labels that a cycle buys, in the mean.
    seconds_per_cycle : float
        What it takes, in the mean.
    rounds : int
        Rounds of a cycle.
    label_cost, round_cost : float
        As the run's settings have them; 0: nobody counts it.
    currency : str
        Of both.
    """

    labels_M: tuple[int, ...]
    accuracies_M: tuple[float, ...]
    per_cycle: float
    seconds_per_cycle: float
    rounds: int
    label_cost: float
    round_cost: float
    currency: str

    def priced(
        self, label_cost: float | None, round_cost: float | None, currency: str | None
    ) -> Points:
        """Return them with other prices, where these are given."""
        return replace(
            self,
            label_cost=self.label_cost if label_cost is None else label_cost,
            round_cost=self.round_cost if round_cost is None else round_cost,
            currency=self.currency if currency is None else currency,
        )


def points_of(folders: Sequence[Path]) -> Points:
    """Read the curve of a run, or of several seeds of one.

    Of several runs the mean accuracy counts, over the numbers of labels that all of them have.

    Raises
    ------
    ReportError
        A folder is no run's, or they share fewer than two numbers of labels.
    """
    runs = [read_run(folder) for folder in folders]
    curves = [{c.labels: c.accuracy for c in run.metrics.cycles} for run in runs]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if len(shared) < 2:
        names = ", ".join(str(folder) for folder in folders)
        raise ReportError(f"{names}: allowed are runs that share two numbers of labels or more")
    means = [sum(curve[n] for curve in curves) / len(curves) for n in shared]
    seconds = [sum(run.metrics.seconds.values()) / len(run.metrics.cycles) for run in runs]
    settings = runs[0].settings
    return Points(
        tuple(shared),
        tuple(means),
        (shared[-1] - shared[0]) / (len(shared) - 1),
        sum(seconds) / len(seconds),
        settings.rounds,
        settings.label_cost,
        settings.round_cost,
        settings.currency,
    )


def forecast_runs(points: Points, accuracy: float) -> Forecast:
    """Tell what an accuracy takes, by one run or by several seeds of one.

    Raises
    ------
    ReportError
        The accuracy is not between 0 and 1.
    """
    if not 0 < accuracy < 1:
        raise ReportError(f"accuracy={accuracy}: allowed is a share above 0 and below 1")
    return forecast(
        points.labels_M, points.accuracies_M, accuracy, points.per_cycle, points.seconds_per_cycle
    )


def forecast_runs_budget(points: Points, budget: int) -> BudgetForecast:
    """Tell what accuracy more labels give, by one run or by several seeds of one."""
    return forecast_budget(
        points.labels_M, points.accuracies_M, budget, points.per_cycle, points.seconds_per_cycle
    )


def forecast_table(found: Forecast, points: Points) -> TextTable:
    """Return a forecast with labels as a table; costs only of what has a price."""
    have = max(points.labels_M)
    rows: list[tuple[str, Range | None, Callable[[float], str]]] = [
        ("labels in all", found.labels, _count),
        ("cycles to come", found.cycles, _count),
        ("time to come", found.seconds, _time),
    ]

    def paid(value: float) -> str:
        return "no end known" if math.isinf(value) else money(value, points.currency)

    if found.labels is not None and found.cycles is not None:
        labels, cycles = found.labels, found.cycles
        if points.label_cost:
            rows.append(
                ("cost of all labels", _each(labels, lambda n: _price(n, points.label_cost)), paid)
            )
        if points.label_cost or points.round_cost:
            to_come = Range(
                *(
                    _price(max(0.0, n - have), points.label_cost)
                    + _price(count * points.rounds, points.round_cost)
                    for n, count in (
                        (labels.low, cycles.low),
                        (labels.point, cycles.point),
                        (labels.high, cycles.high),
                    )
                )
            )
            rows.append(("cost to come", to_come, paid))
    cells = [
        (name, text(value.low), text(value.point), text(value.high))
        for name, value, text in rows
        if value is not None
    ]
    title = f"accuracy {percent(found.accuracy)}"
    return TextTable(title, ("", "from", "best fit", "to"), cells)


def budget_table(found: BudgetForecast, points: Points) -> TextTable:
    """Return what a budget gives as a table; a cost only where something has a price."""
    if found.accuracy is None or found.of_a_run is None:
        raise ValueError(found.reason)
    ranges = (("test accuracy, of the curve", found.accuracy), ("… of a run", found.of_a_run))
    cells = [
        *((name, percent(r.low), percent(r.point), percent(r.high)) for name, r in ranges),
        ("cycles to come", "", f"{found.cycles:,}", ""),
        ("time to come", "", _time(found.seconds), ""),
    ]
    if points.label_cost or points.round_cost:
        cost = _price(found.budget, points.label_cost)
        cost += _price(found.cycles * points.rounds, points.round_cost)
        cells.append(("cost to come", "", money(cost, points.currency), ""))
    title = f"{found.budget:,} more labels, {max(points.labels_M) + found.budget:,} in all"
    return TextTable(title, ("", "from", "best fit", "to"), cells)


def _price(count: float, price: float) -> float:
    # Nothing costs nothing, however much of it there is.
    if not price:
        return 0.0
    return count if math.isinf(count) else amount(math.ceil(count), price)


def _each(range_: Range, function: Callable[[float], float]) -> Range:
    return Range(function(range_.low), function(range_.point), function(range_.high))


def _count(value: float) -> str:
    return "no end known" if math.isinf(value) else f"{math.ceil(value):,}"


def _time(value: float) -> str:
    return "no end known" if math.isinf(value) else seconds_text(value)


def _up(value: float) -> float:
    return value if math.isinf(value) else float(math.ceil(value))
