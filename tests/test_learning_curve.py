"""Learning curves by hand, and on curves whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.learning_curve import Curve, fit_curve

N = [100, 200, 300, 400, 500]
NOISY = [0.702, 0.7556, 0.7855, 0.802, 0.8086]


def gain(curve: Curve) -> float:
    return curve(600) - curve(500)


def test_a_curve_of_the_form_is_found_by_hand() -> None:
    fitted = fit_curve(N, [0.7, 0.758579, 0.784530, 0.8, 0.810557])
    assert (fitted.best.a, fitted.best.b) == pytest.approx((0.9, 2), abs=1e-4)
    assert fitted.best.c == 0.5
    assert fitted.best.labels_for(0.85) == pytest.approx(1600, abs=1)
    assert gain(fitted.best) == pytest.approx(0.007793, abs=1e-6)


def test_an_interval_by_hand() -> None:
    fitted = fit_curve(N, NOISY)
    assert fitted.best.c == 0.43
    assert (fitted.best.a, fitted.best.b) == pytest.approx((0.920162, 1.583824), abs=1e-6)
    assert (fitted.admissible[0].c, fitted.admissible[-1].c) == (0.25, 1.13)
    assert fitted.admissible[0].a == 1
    assert fitted.admissible[-1].a == pytest.approx(0.824101, abs=1e-6)
    there = fitted.range_of(lambda curve: curve(600))
    assert (there.low, there.point, there.high) == pytest.approx(
        (0.807460, 0.818980, 0.821673), abs=1e-6
    )
    # Two points more than numbers: wider by 4.302653 sqrt(1.79446e-5 / 2) on either side.
    run = fitted.point_range(600)
    assert (run.low, run.point, run.high) == pytest.approx((0.794572, 0.818980, 0.834561), abs=1e-6)
    found = fitted.range_of(gain)
    assert (found.low, found.point, found.high) == pytest.approx(
        (0.003807, 0.008252, 0.009482), abs=1e-6
    )
    for accuracy, expected in (
        (0.82, (581, 614, 2072)),
        (0.83, (710, 785, math.inf)),
        (0.85, (1105, 1406, math.inf)),
    ):
        labels = fitted.range_of(lambda curve, wanted=accuracy: curve.labels_for(wanted))
        found_labels = labels.low, labels.point, labels.high
        assert found_labels == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("accuracies", [[0.5] * 5, [0.6, 0.55, 0.5, 0.45, 0.4]])
def test_what_does_not_rise_is_a_flat_curve(accuracies: list[float]) -> None:
    fitted = fit_curve(N, accuracies)
    assert fitted.best.b == 0
    assert fitted.best.a == pytest.approx(0.5)
    assert gain(fitted.best) == 0
    assert fitted.best.labels_for(0.7) == math.inf


@given(
    a=st.floats(0.5, 1), b=st.floats(0.5, 3), c=st.integers(20, 120), wanted=st.floats(0.05, 0.95)
)
def test_curves_of_the_form_give_their_own_answer(
    a: float, b: float, c: int, wanted: float
) -> None:
    curve = Curve(a, b, c / 100)
    labels = [100, 200, 400, 800, 1600, 3200]
    fitted = fit_curve(labels, [curve(n) for n in labels])
    assert fitted.best.c == pytest.approx(curve.c, abs=0.011)
    # Of the way from the last point to the curve's end.
    accuracy = curve(3200) + wanted * (a - curve(3200)) * 0.5
    assert fitted.best.labels_for(accuracy) == pytest.approx(curve.labels_for(accuracy), rel=0.05)
    assert fitted.best in fitted.admissible


@pytest.mark.slow
def test_a_slow_fit_finds_no_better_curve() -> None:
    """All of a grid of a and b, for the exponents that were tried."""
    best = fit_curve(N, NOISY).best
    n = np.array(N)

    def error(a: float, b: float, c: float) -> float:
        return float(((np.array(NOISY) - (a - b * n**-c)) ** 2).sum())

    least = error(best.a, best.b, best.c)
    for a in np.linspace(0.8, 1, 41):
        for b in np.linspace(0, 4, 81):
            for c in np.arange(0.05, 2.0, 0.05):
                assert error(a, b, c) >= least - 1e-12
