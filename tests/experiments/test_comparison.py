"""Statistics of repeated runs, against SciPy and statsmodels and by hand."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from ahfal_app.experiments.comparison import (
    area_under_curve,
    clear_best,
    labels_to_reach,
    paired_difference,
    shown_from,
    summarise,
)
from ahfal_app.multiple_tests import holm, holm_limit

OURS = {0: 66.1, 1: 65.2, 2: 67.0, 3: 66.4}
THEIRS = {0: 64.0, 1: 63.9, 2: 65.1, 3: 66.3, 9: 10.0}


def test_summary_by_hand() -> None:
    summary = summarise([1.0, 2.0, 6.0])
    assert (summary.count, summary.mean) == (3, 3)
    assert summary.std == pytest.approx(7**0.5)
    assert summarise([5.0]).std is None


def test_paired_difference_agrees_with_scipy() -> None:
    difference = paired_difference(OURS, THEIRS)
    ours, theirs = ([results[seed] for seed in range(4)] for results in (OURS, THEIRS))
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert difference is not None
    assert difference.count == 4
    assert difference.mean == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert difference.p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    "others",
    [
        (),
        (1.0,),
        (1.0,) * 14,
        # Two that are significant before it, one of which is the last that is, and one that is not.
        (0.0001, 0.012, 0.3, 0.9),
        # One that is not significant, so that the next, which would be, is none either.
        (0.02, 0.0201, None),
        (None, 0.001, None, 0.024),
    ],
)
def test_a_difference_counts_from_the_one_that_is_said_on(others: tuple[float | None, ...]) -> None:
    """Of a mean on either side of it, with its spread, p is on either side of 0.05."""
    found = paired_difference(OURS, THEIRS)
    assert found is not None
    least = shown_from(found, others)
    assert least is not None
    corrected = []
    for mean in (0.999 * least, least, 1.001 * least):
        moved = paired_difference({s: v + mean - found.mean for s, v in OURS.items()}, THEIRS)
        assert moved is not None
        corrected.append(holm([moved.p, *others])[0])
    above, at, below = corrected
    assert above is not None
    assert below is not None
    assert above > 0.05 > below
    assert at == pytest.approx(0.05)
    if not others:
        assert found.high is not None
        assert least == pytest.approx(found.high - found.mean)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8), st.floats(0.001, 0.999))
def test_the_limit_is_where_holm_turns(others: list[float | None], level: float) -> None:
    limit = holm_limit(others, level)
    (below, *_), (above, *_) = (holm([limit * f, *others]) for f in (1 - 1e-9, 1 + 1e-9))
    assert below is not None
    assert above is not None
    assert below <= level * (1 + 1e-12)
    assert above >= level * (1 - 1e-12)


def test_few_or_no_pairs() -> None:
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    single = paired_difference({0: 1.0, 5: 2.0}, {0: 3.0})
    assert single is not None
    assert (single.count, single.mean, single.low, single.p) == (1, -2, None, None)
    assert shown_from(single, ()) is None


def test_equal_differences_have_no_test() -> None:
    """Results are shares of some images: two seeds differ by the same often enough by chance."""
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    shifted = paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert same is not None
    assert shifted is not None
    assert (same.mean, same.p) == (0, 1)
    assert shown_from(same, ()) is shown_from(shifted, ()) is None
    assert (shifted.mean, shifted.low, shifted.p) == (1, None, None)
    rounded = paired_difference({0: 0.3, 1: 0.7}, {0: 0.1, 1: 0.5})
    assert rounded is not None
    assert rounded.p is None


def test_the_best_is_the_best_on_equal_seeds() -> None:
    """A has the higher mean by a seed that B has not, and is below B wherever both are."""
    results = {"A": {0: 50, 1: 51, 2: 95}, "B": {0: 60, 1: 61.01}}
    assert clear_best(results) is None
    results["A"].pop(2)
    assert clear_best(results) == "B"


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_agrees_with_statsmodels(p_values: list[float | None]) -> None:
    corrected = holm(p_values)
    tested = [p for p in p_values if p is not None]
    assert [p is None for p in corrected] == [p is None for p in p_values]
    if tested:
        # It collects garbage each time, which takes longer than everything else here.
        with mock.patch("gc.collect"):
            expected = multipletests(tested, method="holm")[1]
        np.testing.assert_allclose([p for p in corrected if p is not None], expected)


def test_best_only_where_the_difference_holds() -> None:
    clear = {"a": {0: 9.0, 1: 9.1, 2: 8.9}, "b": {0: 5.0, 1: 5.0, 2: 5.1}}
    assert clear_best(clear) == "a"
    # One seed speaks against it, and one method cannot be told from the best.
    assert clear_best({**clear, "c": {0: 8.0, 1: 9.0, 2: 9.5}}) is None
    assert clear_best({"a": {0: 1.0}}) is None
    assert clear_best({"a": {0: 9.0}, "b": {0: 1.0}}) is None


def test_area_under_the_curve_by_hand() -> None:
    # 10 labels at a mean of 0.5 and 30 at a mean of 0.7.
    assert area_under_curve([10, 20, 50], [0.4, 0.6, 0.8]) == pytest.approx(0.65)
    assert area_under_curve([10], [0.4]) == 0.4


def test_area_under_the_curve_where_labels_do_not_grow() -> None:
    assert area_under_curve([10, 10, 10], [0.5, 0.6, 0.7]) == pytest.approx(0.6)
    # A step of no labels has no area: 10 labels at a mean of 0.5.
    assert area_under_curve([10, 10, 20], [0.0, 0.4, 0.6]) == pytest.approx(0.5)
    # 20 labels at a mean of 0.5 there, 10 at one of 0.8 back.
    assert area_under_curve([10, 30, 20], [0.4, 0.6, 1.0]) == pytest.approx(0.6)
    assert area_under_curve([10, 20, 10], [0.4, 0.6, 0.4]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("target", "expected"), [(0.3, 10), (0.4, 10), (0.5, 15), (0.6, 20), (0.75, 42.5), (0.9, None)]
)
def test_labels_to_reach_an_accuracy(target: float, expected: float | None) -> None:
    found = labels_to_reach(target, [10, 20, 30, 50], [0.4, 0.6, 0.5, 0.9 - 1e-9])
    if target == 0.75:
        expected = 30 + 20 * 0.25 / 0.4
    assert found == (None if expected is None else pytest.approx(expected))


def test_labels_to_reach_an_accuracy_that_is_not_always_defined() -> None:
    nan = float("nan")
    # The straight line from 20 labels to 40 is at 0.6 in its middle.
    assert labels_to_reach(0.6, [10, 20, 30, 40], [nan, 0.5, nan, 0.7]) == pytest.approx(30)
    assert labels_to_reach(0.6, [10, 20, 30], [nan, nan, 0.7]) == 30
    assert labels_to_reach(0.6, [10, 20], [0.5, nan]) is None
