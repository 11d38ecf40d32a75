"""The figures that people read of a test, each with an interval of 95 %.

Accuracy, recall and precision have Wilson's interval (JASA 1927). Balanced accuracy is a mean of
recalls, whose interval follows from theirs (Zou and Donner, Statistics in Medicine 2008), as that
of macro F1 from the classes' F1, of which each is a function of one share: with J the right ones
of all samples that are of the class or were predicted as it, F1 = 2 J / (1 + J). The area under
the ROC curve has Newcombe's interval (Statistics in Medicine 2006, method 5); the ends of the
mean area are the means of the ends, which is wide. The expected calibration error lies between what
Wilson's intervals of all bins allow together (Bonferroni), which is wide, too: a bootstrap of a sum
of distances would lie above the truth.

Shapes: C classes, K bins of confidence, B bins of log-odds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ahfal_app.evaluation.sums import UNITS, EvaluationSums
from ahfal_app.intervals import LEVEL, Bounds, Interval, Z, wilson_at
from ahfal_app.metrics import measure_all, metric_names

_EDGE = 1e-12


@dataclass(frozen=True, eq=False)
class ModelFigures:
    """What a model is worth by a test.

    Attributes
    ----------
    sums : EvaluationSums
        What the test came to.
    metrics : dict[str, float | None]
        `accuracy`, the metrics of `ahfal_app.metrics` by name, `auroc` (the mean over classes),
        `calibration-error` and `loss`; None where one is not defined.
    intervals : dict[str, Bounds]
        Of those metrics that have one, by name.
    auroc_C : tuple[float | None, ...]
        Area under the ROC curve of each class against the rest; None where all samples or none
        are of the class.
    auroc_bounds_C : tuple[Bounds | None, ...]
        Their intervals.
    auroc_resolution_C : tuple[float | None, ...]
        How far each area can lie from that of the single samples' ranks: half of the pairs that
        share a bin.
    """

    sums: EvaluationSums
    metrics: dict[str, float | None]
    intervals: dict[str, Bounds] = field(default_factory=dict)
    auroc_C: tuple[float | None, ...] = ()
    auroc_bounds_C: tuple[Bounds | None, ...] = ()
    auroc_resolution_C: tuple[float | None, ...] = ()

    @property
    def accuracy(self) -> Interval:
        """Share of the samples whose class was predicted."""
        return Interval(int(self.sums.confusion_CC.trace()), self.sums.num_samples)

    @property
    def recall_C(self) -> tuple[Interval, ...]:
        """Of each class's samples, how many were predicted as such."""
        return _intervals(self.sums.confusion_CC, self.sums.confusion_CC.sum(axis=1))

    @property
    def precision_C(self) -> tuple[Interval, ...]:
        """Of the samples that were predicted as a class, how many are of it."""
        return _intervals(self.sums.confusion_CC, self.sums.confusion_CC.sum(axis=0))


def figure_names() -> tuple[str, ...]:
    """Return the names of all metrics that a test has, in their order."""
    return ("accuracy", *metric_names(), "auroc", "calibration-error", "loss")


def figures_of(sums: EvaluationSums) -> ModelFigures:
    """Return the figures of a test."""
    confusion_CC = sums.confusion_CC
    areas = [_Area.of(*ranks) for ranks in zip(*sums.ranks_2CB, strict=True)]
    auroc_C = tuple(area.value for area in areas)
    accuracy = Interval(int(confusion_CC.trace()), sums.num_samples)
    metrics = {
        "accuracy": accuracy.share,
        **measure_all(confusion_CC),
        "auroc": _mean(auroc_C),
        "calibration-error": calibration_error(sums.calibration_3K),
        "loss": sums.loss,
    }
    bounds_C = tuple(area.bounds for area in areas)
    intervals = {
        "accuracy": accuracy.bounds,
        "balanced-accuracy": _balanced_accuracy_bounds(confusion_CC),
        "macro-f1": _macro_f1_bounds(confusion_CC),
        "auroc": _mean_bounds(bounds_C),
        "calibration-error": _calibration_bounds(sums.calibration_3K),
    }
    return ModelFigures(
        sums,
        metrics,
        {
            name: bounds
            for name, bounds in intervals.items()
            if bounds is not None and metrics.get(name) is not None
        },
        auroc_C,
        bounds_C,
        tuple(area.resolution for area in areas),
    )


def mean_bounds_of_independent(values: Sequence[float], bounds: Sequence[Bounds]) -> Bounds:
    """Return the interval of a mean of independent estimates (Zou and Donner, 2008)."""
    values_C, bounds_C2 = np.array(values), np.array(bounds).reshape(-1, 2)
    mean = float(values_C.mean())
    below, above = values_C - bounds_C2[:, 0], bounds_C2[:, 1] - values_C
    low, high = (float(np.sqrt((each**2).sum())) / len(values_C) for each in (below, above))
    return max(0.0, mean - low), min(1.0, mean + high)


def calibration_error(calibration_3K: NDArray[np.int64]) -> float | None:
    """Return the expected calibration error; None of nothing.

    Σ_k n_k / N |accuracy_k - confidence_k| over bins by the highest probability (Guo et al.,
    On calibration of modern neural networks, ICML 2017).
    """
    tested, right, confidence = calibration_3K
    total = int(tested.sum())
    return float(np.abs(right - confidence / UNITS).sum() / total) if total else None


@dataclass(frozen=True)
class _Area:
    """The area under one class's ROC curve."""

    value: float | None = None
    bounds: Bounds | None = None
    resolution: float | None = None

    @classmethod
    def of(cls, own_B: NDArray[np.int64], all_B: NDArray[np.int64]) -> _Area:
        others_B = all_B - own_B
        own, others = int(own_B.sum()), int(others_B.sum())
        if not own or not others:
            return cls()
        pairs = own * others
        below_B = np.cumsum(others_B) - others_B
        ties = float((own_B * others_B).sum()) / 2
        value = (float((own_B * below_B).sum()) + ties) / pairs
        return cls(value, newcombe(value, own, others), ties / pairs)


def newcombe(area: float, own: int, others: int) -> Bounds:
    """Return the interval of an area under a ROC curve (Newcombe, 2006, method 5).

    Parameters
    ----------
    area : float
        The area.
    own, others : int
        Samples of the class, and of all others.
    """
    # A process of a client imports this module for each message, and needs no root.
    from scipy.optimize import brentq

    half = (own + others) / 2 - 1

    def excess(theta: float) -> float:
        more = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + half * more) / (own * others)
        return (area - theta) ** 2 - Z**2 * variance

    # At 0 and 1 the variance vanishes, so that they solve the equation without being an end.
    inner = min(max(area, _EDGE), 1 - _EDGE)
    low = float(brentq(excess, 0.0, inner)) if area > 0 else 0.0
    high = float(brentq(excess, inner, 1.0)) if area < 1 else 1.0
    return low, high


def _balanced_accuracy_bounds(confusion_CC: NDArray[np.int64]) -> Bounds | None:
    right_C, tested_C = confusion_CC.diagonal(), confusion_CC.sum(axis=1)
    shares = [Interval(int(r), int(n)) for r, n in zip(right_C, tested_C, strict=True) if n]
    return _of_shares(shares)


def _macro_f1_bounds(confusion_CC: NDArray[np.int64]) -> Bounds | None:
    right_C = confusion_CC.diagonal()
    either_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1) - right_C
    shares = [Interval(int(r), int(n)) for r, n in zip(right_C, either_C, strict=True) if n]
    return _of_shares(shares, lambda share: 2 * share / (1 + share))


def _of_shares(
    shares: Sequence[Interval], through: Callable[[float], float] = lambda share: share
) -> Bounds | None:
    found = [(each.share, each.bounds) for each in shares]
    values = [through(share) for share, _ in found if share is not None]
    bounds = [(through(low), through(high)) for low, high in (b for _, b in found if b)]
    return mean_bounds_of_independent(values, bounds) if values else None


def _calibration_bounds(calibration_3K: NDArray[np.int64]) -> Bounds | None:
    tested_K, right_K, units_K = calibration_3K
    total = int(tested_K.sum())
    if not total:
        return None
    places = np.flatnonzero(tested_K).tolist()
    # All bins' intervals hold together in 95 of 100 cases (Bonferroni).
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / len(places))
    low = high = 0.0
    for k in places:
        tested, confidence = int(tested_K[k]), float(units_K[k] / UNITS / tested_K[k])
        least, most = wilson_at(int(right_K[k]), tested, z)
        # As near to the confidence, and as far from it, as the bin's accuracy may be.
        low += tested * max(0.0, least - confidence, confidence - most)
        high += tested * max(confidence - least, most - confidence)
    return low / total, high / total


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mean_bounds(bounds: Sequence[Bounds | None]) -> Bounds | None:
    known = [each for each in bounds if each is not None]
    if not known:
        return None
    low, high = np.mean(known, axis=0)
    return float(low), float(high)


def _intervals(
    confusion_CC: NDArray[np.int64], totals_C: NDArray[np.int64]
) -> tuple[Interval, ...]:
    pairs = zip(confusion_CC.diagonal().tolist(), totals_C.tolist(), strict=True)
    return tuple(Interval(right, total) for right, total in pairs)


def spread(values: Mapping[str, float]) -> tuple[str, float]:
    """Return whose value is the lowest, and how far the highest lies above it."""
    worst = min(values, key=values.__getitem__)
    return worst, max(values.values()) - values[worst]
