"""Intervals of figures: by hand, by other software, and how often they hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ahfal_app.evaluation import Interval, evaluation_sums, figures_of
from ahfal_app.evaluation.figures import mean_bounds_of_independent, newcombe, spread
from ahfal_app.intervals import wilson


def test_wilsons_interval_by_hand() -> None:
    """Centre (x + z²/2) / (n + z²) and half width z √(x (n - x) / n + z²/4) / (n + z²)."""
    z2 = 1.959964**2
    centre = (3 + z2 / 2) / (4 + z2)
    half = np.sqrt(z2) * np.sqrt(3 * 1 / 4 + z2 / 4) / (4 + z2)
    assert Interval(3, 4).bounds == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert Interval(0, 0).bounds is None
    assert Interval(0, 0).share is None


@given(st.integers(1, 10_000), st.data())
def test_wilsons_interval_is_scipys(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    theirs = binomtest(count, of).proportion_ci(0.95, method="wilson")
    assert wilson(count, of) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_interval_of_a_mean_by_hand() -> None:
    """Two estimates: √(0.3² + 0.4²) / 2 below and √(0.1² + 0²) / 2 above their mean."""
    low, high = mean_bounds_of_independent([0.5, 0.9], [(0.2, 0.6), (0.5, 0.9)])
    assert (low, high) == pytest.approx((0.7 - 0.25, 0.7 + 0.05))


@pytest.mark.parametrize("area", [0.0, 0.5, 0.8, 1.0])
def test_newcombes_interval_solves_its_equation(area: float) -> None:
    own, others = 12, 30
    low, high = newcombe(area, own, others)
    assert 0 <= low <= area <= high <= 1
    for end in {low, high} - {0.0, 1.0, area}:
        more = (1 - end) / (2 - end) + end / (1 + end)
        variance = end * (1 - end) * (1 + ((own + others) / 2 - 1) * more) / (own * others)
        assert abs(area - end) == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)


def test_a_perfect_test_has_no_empty_interval() -> None:
    labels = np.repeat([0, 1], 10)
    figures = figures_of(evaluation_sums(np.eye(2)[labels] * 9.0, labels))
    for name in ("accuracy", "balanced-accuracy", "macro-f1", "auroc"):
        low, high = figures.intervals[name]
        assert figures.metrics[name] == high == 1.0
        assert 0.6 < low < 0.95


@pytest.mark.parametrize(
    "name", ["accuracy", "balanced-accuracy", "macro-f1", "auroc", "calibration-error"]
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(name: str) -> None:
    """Tests of 150 samples, drawn from a population of which the figures are known."""
    draw = np.random.default_rng(7)
    labels = draw.choice(4, 60_000, p=[0.4, 0.3, 0.2, 0.1])
    logits = draw.normal(size=(60_000, 4))
    logits[np.arange(60_000), labels] += 1.2
    truth = figures_of(evaluation_sums(logits, labels)).metrics[name]
    assert truth is not None
    held = 0
    for rows in draw.integers(0, 60_000, (200, 150)):
        low, high = figures_of(evaluation_sums(logits[rows], labels[rows])).intervals[name]
        held += low <= truth <= high
    # Of 200, at least as many as 95 % would give but once in a thousand times.
    assert held >= 178


def test_a_well_calibrated_model_is_not_said_to_be_a_bad_one() -> None:
    """Where every prediction is right as often as it is sure, an interval begins at 0."""
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        share = draw.uniform(0.55, 0.95, 150)
        labels = (draw.random(150) > share).astype(np.int64)
        logits = np.log(np.stack([share, 1 - share], axis=1))
        low, high = figures_of(evaluation_sums(logits, labels)).intervals["calibration-error"]
        held += low == 0.0 < high
    assert held >= 88


def test_classes_that_nobody_has_have_no_part_in_means() -> None:
    logits = np.array([[2.0, 0.0, -9.0], [0.0, 2.0, -9.0]])
    figures = figures_of(evaluation_sums(logits, np.array([0, 1])))
    assert figures.metrics["balanced-accuracy"] == 1.0
    assert figures.auroc_C == (1.0, 1.0, None)
    assert figures.recall_C[2] == figures.precision_C[2] == Interval(0, 0)


def test_worst_and_spread() -> None:
    assert spread({"b": 0.75, "a": 0.25}) == ("a", 0.5)
