"""How many labels an accuracy takes: a learning curve fitted to a run's cycles, with its interval.

The curve is an inverse power law, y = a - b n^-c (Figueroa et al., Predicting sample size required
for classification performance, BMC Medical Informatics and Decision Making 2012). Its interval
tells how far its bend is known, and nothing of other seeds or of a curve of another form.

Shape suffixes: M points of a curve, G exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from ahfal_app.errors import ReportError
from ahfal_app.results.reading import read_run
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent, seconds_text

#: Exponents that are tried: 0.05, 0.06, … 2.00.
EXPONENTS = np.arange(5, 201) / 100

#: A curve has three numbers, and one point more is needed to know how well it fits.
LEAST_POINTS = 4

#: Labels beyond this many times the most that were bought are not forecast.
FARTHEST = 4

_CONFIDENCE = 0.95
_LEAST_ERROR = 1e-12


@dataclass(frozen=True)
class Range:
    """A number with its interval; infinite where there is no end to it."""

    low: float
    point: float
    high: float


@dataclass(frozen=True)
class Curve:
    """y = a - b n^-c, with b >= 0 and a <= 1."""

    a: float
    b: float
    c: float

    def __call__(self, labels: float) -> float:
        """Return the accuracy with so many labels."""
        return float(self.a - self.b * labels**-self.c)

    def labels_for(self, accuracy: float) -> float:
        """Return the labels that an accuracy takes; infinite where the curve never gets there."""
        if self.b == 0:
            return 0.0 if accuracy <= self.a else math.inf
        if accuracy >= self.a:
            return math.inf
        return float((self.b / (self.a - accuracy)) ** (1 / self.c))


@dataclass(frozen=True)
class FittedCurve:
    """The curve of the least squared error, and all that fit almost as well.

    Attributes
    ----------
    best : Curve
        The one that fits best; of equals that with the smallest exponent.
    admissible : tuple[Curve, ...]
        For each exponent whose squared error is at most SSE (1 + F(0.95; 1, M - 3) / (M - 3)), its
        curve: the profile of the exponent.
    """

    best: Curve
    admissible: tuple[Curve, ...]

    def range_of(self, quantity: Callable[[Curve], float]) -> Range:
        """Return what follows from the best curve, and from the admissible ones."""
        values = [quantity(curve) for curve in self.admissible]
        return Range(min(values), quantity(self.best), max(values))


def fit_curve(labels_M: Sequence[float], accuracies_M: Sequence[float]) -> FittedCurve:
    """Fit a learning curve by least squares, the same on every machine.

    For each exponent of `EXPONENTS` a and b follow from linear least squares; where a would be
    above 1 it is 1, and where b would be below 0 it is 0.

    Parameters
    ----------
    labels_M : Sequence[float]
        Labels, above 0.
    accuracies_M : Sequence[float]
        Accuracies, from 0 to 1.

    Raises
    ------
    ValueError
        There are fewer than `LEAST_POINTS` different numbers of labels.
    """
    if len(set(labels_M)) < LEAST_POINTS:
        raise ValueError(
            f"{len(set(labels_M))} different numbers of labels; a curve takes {LEAST_POINTS}"
        )
    labels, accuracies = np.asarray(labels_M, np.float64), np.asarray(accuracies_M, np.float64)
    powers_GM = labels[None, :] ** -EXPONENTS[:, None]
    a_G, b_G = _coefficients(powers_GM, accuracies)
    errors_G = ((accuracies - (a_G[:, None] - b_G[:, None] * powers_GM)) ** 2).sum(axis=1)
    freedom = len(set(labels_M)) - 3
    least = max(float(errors_G.min()), _LEAST_ERROR * len(labels))
    limit = least * (1 + float(f_distribution.ppf(_CONFIDENCE, 1, freedom)) / freedom)
    curves = [
        Curve(float(a), float(b), float(c)) for a, b, c in zip(a_G, b_G, EXPONENTS, strict=True)
    ]
    admissible = [curve for curve, error in zip(curves, errors_G, strict=True) if error <= limit]
    # What differs by rounding alone is equal.
    is_best_G = errors_G <= errors_G.min() + _LEAST_ERROR * len(labels)
    return FittedCurve(curves[int(is_best_G.argmax())], tuple(admissible))


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


def _coefficients(
    powers_GM: NDArray[np.float64], accuracies_M: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a and b of each exponent's best curve. Shapes (G,)."""
    mean_G, mean = powers_GM.mean(axis=1), float(accuracies_M.mean())
    centred_GM = powers_GM - mean_G[:, None]
    slope_G = (centred_GM @ (accuracies_M - mean)) / (centred_GM**2).sum(axis=1)
    b_G = -slope_G
    a_G = mean + b_G * mean_G
    # A curve that ends at 1 has but one number left: b = Σ x (1 - y) / Σ x².
    b_at_one_G = (powers_GM @ (1 - accuracies_M)) / (powers_GM**2).sum(axis=1)
    above_G = a_G > 1
    a_G, b_G = np.where(above_G, 1.0, a_G), np.where(above_G, b_at_one_G, b_G)
    falls_G = b_G < 0
    return np.where(falls_G, mean, a_G), np.where(falls_G, 0.0, b_G)


def _each(range_: Range, function: Callable[[float], float]) -> Range:
    return Range(function(range_.low), function(range_.point), function(range_.high))


def _count(value: float) -> str:
    return "no end known" if math.isinf(value) else f"{math.ceil(value):,}"


def _time(value: float) -> str:
    return "no end known" if math.isinf(value) else seconds_text(value)


def _up(value: float) -> float:
    return value if math.isinf(value) else float(math.ceil(value))
