"""Statistics of repeated runs: means, paired differences, learning curves.

Seeds pair runs: runs of the same seed share their split, initial labels and initial models,
so that methods are compared seed by seed. All tests are two-sided.

Shapes: S seeds, T cycles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ahfal_app.multiple_tests import holm, holm_limit

#: Probability with which an interval covers the true difference.
CONFIDENCE = 0.95

#: Corrected p-values below this count as a difference.
SIGNIFICANCE = 0.05

#: Deviations of a smaller share of the differences are rounding alone.
_SAME = 1e-9

#: How tests and correction are called in tables.
TEST_NAME = "paired t-test over seeds, corrected by Holm's method"


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation; the latter is None for a single run."""

    count: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference to a reference, seed by seed.

    `low` and `high` bound the mean at `CONFIDENCE`, by Student's t; `p` is the p-value of a
    paired t-test, not corrected. All three are None for fewer than 2 pairs, and where all pairs
    differ by the same: as results are shares of some images, that comes by chance, too.
    """

    count: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def summarise(values_S: ArrayLike) -> Summary:
    """Return mean and sample standard deviation of at least one value."""
    values = np.asarray(values_S, dtype=np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(values.mean()), std)


def paired_difference(
    ours: Mapping[int, float], reference: Mapping[int, float]
) -> Difference | None:
    """Compare two methods on the seeds that both have.

    Parameters
    ----------
    ours, reference : Mapping[int, float]
        Results by seed.

    Returns
    -------
    Difference | None
        Of ours less the reference; None where no seed has both.
    """
    seeds = sorted(set(ours) & set(reference))
    if not seeds:
        return None
    differences_S = np.array([ours[seed] - reference[seed] for seed in seeds])
    mean = float(differences_S.mean())
    if len(seeds) < 2:
        return Difference(1, mean)
    error = float(stats.sem(differences_S))
    if error <= _SAME * np.abs(differences_S).max():
        return Difference(len(seeds), mean, *((mean, mean, 1.0) if mean == 0 else ()))
    low, high = stats.t.interval(CONFIDENCE, len(seeds) - 1, loc=mean, scale=error)
    p = float(2 * stats.t.sf(abs(mean / error), len(seeds) - 1))
    return Difference(len(seeds), mean, float(low), float(high), p)


def shown_from(difference: Difference, others: Sequence[float | None]) -> float | None:
    """Return how large a mean difference would have to be to count, its spread over seeds as it is.

    A smaller one may be there all the same: runs of so few seeds could not have shown it.

    Parameters
    ----------
    difference : Difference
        What was found.
    others : Sequence[float | None]
        p-values, not corrected, of the tests that this one is corrected for beside itself; None is
        not a test.

    Returns
    -------
    float | None
        In the unit of the difference, above 0; None where nothing could be tested.
    """
    if difference.low is None or difference.high is None or difference.low == difference.high:
        return None
    freedom = difference.count - 1
    error = (difference.high - difference.low) / 2 / stats.t.isf((1 - CONFIDENCE) / 2, freedom)
    return float(stats.t.isf(holm_limit(others, SIGNIFICANCE) / 2, freedom) * error)


def clear_best(results: Mapping[str, Mapping[int, float]]) -> str | None:
    """Return the method with the highest mean, if it is above every other one on equal seeds.

    Parameters
    ----------
    results : Mapping[str, Mapping[int, float]]
        Results by seed, by method; at least two methods.

    Returns
    -------
    str | None
        None where the best cannot be told from another one after correction.
    """
    if len(results) < 2:
        return None
    best = max(results, key=lambda name: summarise(list(results[name].values())).mean)
    others = [paired_difference(results[best], results[n]) for n in results if n != best]
    corrected = holm([other.p if other else None for other in others])
    holds = all(
        other is not None and other.mean > 0 and p is not None and p < SIGNIFICANCE
        for other, p in zip(others, corrected, strict=True)
    )
    return best if holds else None


def area_under_curve(labels_T: ArrayLike, accuracy_T: ArrayLike) -> float:
    """Return the mean accuracy over the labels, by the trapezoidal rule.

    Where labels become fewer, as by images that are withdrawn, the way back counts as the way
    there. Where their number never changes, the mean over the cycles. In the unit of the
    accuracies.
    """
    accuracy = np.asarray(accuracy_T, dtype=np.float64)
    steps = np.abs(np.diff(np.asarray(labels_T, dtype=np.float64)))
    if not steps.any():
        return float(accuracy.mean())
    return float((steps * (accuracy[1:] + accuracy[:-1]) / 2.0).sum() / steps.sum())


def labels_to_reach(
    target: float, labels_T: Sequence[float], accuracy_T: Sequence[float]
) -> float | None:
    """Return the labels after which a learning curve first reaches an accuracy.

    Between two cycles the curve is a straight line; one whose accuracy is not defined (NaN) is
    passed over. None where it never gets there.
    """
    previous: tuple[float, float] | None = None
    for labels, accuracy in zip(labels_T, accuracy_T, strict=True):
        if accuracy >= target:
            if previous is None or math.isclose(accuracy, previous[1]):
                return float(labels)
            share = (target - previous[1]) / (accuracy - previous[1])
            return float(previous[0] + share * (labels - previous[0]))
        if not math.isnan(accuracy):
            previous = (labels, accuracy)
    return None
