"""A learning curve fitted to accuracies by labels, with its interval.

The curve is an inverse power law, y = a - b n^-c (Figueroa et al., Predicting sample size required
for classification performance, BMC Medical Informatics and Decision Making 2012). Its interval
tells how far its bend is known, and nothing of other seeds or of a curve of another form.

Shape suffixes: M points of a curve, G exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Not from `scipy.stats`, which calls the same and takes a second to import.
from scipy.special import fdtri, stdtrit

#: Exponents that are tried: 0.05, 0.06, … 2.00.
EXPONENTS = np.arange(5, 201) / 100

#: A curve has three numbers, and one point more is needed to know how well it fits.
LEAST_POINTS = 4

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
    scatter : float
        What a point may differ from the best curve by chance: t(0.975; M - 3) sqrt(SSE / (M - 3)).
    """

    best: Curve
    admissible: tuple[Curve, ...]
    scatter: float

    def range_of(self, quantity: Callable[[Curve], float]) -> Range:
        """Return what follows from the best curve, and from the admissible ones."""
        values = [quantity(curve) for curve in self.admissible]
        return Range(min(values), quantity(self.best), max(values))

    def point_range(self, labels: float) -> Range:
        """Return the accuracy with so many labels, and where a single run's may lie.

        The range of the curve, wider by what the points scatter around it.
        """
        found = self.range_of(lambda curve: curve(labels))
        low, high = max(0.0, found.low - self.scatter), min(1.0, found.high + self.scatter)
        return Range(low, found.point, high)


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
    limit = least * (1 + float(fdtri(1, freedom, _CONFIDENCE)) / freedom)
    curves = [
        Curve(float(a), float(b), float(c)) for a, b, c in zip(a_G, b_G, EXPONENTS, strict=True)
    ]
    admissible = [curve for curve, error in zip(curves, errors_G, strict=True) if error <= limit]
    # What differs by rounding alone is equal.
    is_best_G = errors_G <= errors_G.min() + _LEAST_ERROR * len(labels)
    scatter = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
    scatter *= math.sqrt(float(errors_G.min()) / freedom)
    return FittedCurve(curves[int(is_best_G.argmax())], tuple(admissible), scatter)


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
