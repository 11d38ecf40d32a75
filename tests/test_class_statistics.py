from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import reference_ahfal as reference

from ahfal_app.class_statistics import (
    class_proportions,
    class_statistics,
    dispersion_percent,
    otsu_threshold,
    statistics_from_sums,
)
from ahfal_app.errors import NoLabelledClients
from ahfal_app.otsu import otsu_neighbours

HISTOGRAMS = [[50, 30, 20], [40, 40, 20], [60, 20, 20]]


@st.composite
def histograms(draw: st.DrawFn) -> list[list[int]]:
    num_classes = draw(st.integers(2, 8))
    row = st.lists(st.integers(0, 1000), min_size=num_classes, max_size=num_classes)
    return draw(st.lists(row, min_size=1, max_size=8))


def test_deviation_of_three_clients() -> None:
    statistics = class_statistics(HISTOGRAMS, tau=12)
    np.testing.assert_allclose(statistics.mean_C, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(100 * statistics.deviation_C, [8.16497, 8.16497, 0], atol=1e-5)
    assert statistics.low_C.tolist() == [True, True, True]


def test_tau_is_in_percentage_points() -> None:
    assert class_statistics(HISTOGRAMS, tau=8).low_C.tolist() == [False, False, True]
    assert class_statistics(HISTOGRAMS, tau=0.08).low_C.tolist() == [False, False, True]


def test_coefficient_of_variation() -> None:
    # 100 σ / p̄ of the three classes: 16.33, 27.22 and 0 percent.
    statistics = class_statistics(HISTOGRAMS, tau=20, dispersion="coefficient-of-variation")
    assert statistics.low_C.tolist() == [True, False, True]
    np.testing.assert_allclose(
        dispersion_percent(statistics.mean_C, statistics.deviation_C, "coefficient-of-variation"),
        [16.32993, 27.21655, 0],
        atol=1e-5,
    )


def test_coefficient_of_variation_of_a_class_that_nobody_has_is_low() -> None:
    statistics = class_statistics([[1, 0], [2, 0]], 1, dispersion="coefficient-of-variation")
    assert statistics.low_C.tolist() == [True, True]


def test_deviation_equal_to_tau_is_high() -> None:
    assert not class_statistics([[5, 3], [3, 5]], tau=12.5).low_C.any()
    assert class_statistics([[5, 3], [3, 5]], tau=12.5001).low_C.all()


@pytest.mark.parametrize("percent", range(1, 50))
def test_deviation_equal_to_tau_is_high_whatever_its_rounding(percent: int) -> None:
    rows = np.array([[50 + percent, 50 - percent], [50 - percent, 50 + percent]])
    shares = rows / 100
    sums = statistics_from_sums(shares.sum(0), (shares**2).sum(0), 2, tau=percent)
    assert not class_statistics(rows, tau=percent).low_C.any()
    assert not sums.low_C.any()


def test_tau_zero_makes_every_class_high() -> None:
    assert not class_statistics([[1, 1], [1, 1]], tau=0).low_C.any()


def test_sums_by_hand() -> None:
    statistics = statistics_from_sums([1.5, 0.9, 0.6], [0.77, 0.29, 0.12], 3, tau=8)
    np.testing.assert_allclose(statistics.mean_C, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(100 * statistics.deviation_C, [8.16497, 8.16497, 0], atol=1e-5)
    assert statistics.low_C.tolist() == [False, False, True]


def test_clients_without_labels_do_not_count() -> None:
    statistics = class_statistics([*HISTOGRAMS, [0, 0, 0]], tau=12)
    np.testing.assert_array_equal(statistics.mean_C, class_statistics(HISTOGRAMS, 12).mean_C)


def test_clients_count_alike_whatever_their_size() -> None:
    large = class_statistics([[9000, 1000], [1, 3]], tau=12)
    np.testing.assert_allclose(large.mean_C, [0.575, 0.425])


def test_proportions_are_accepted_as_counts() -> None:
    shares = class_proportions(HISTOGRAMS)
    np.testing.assert_allclose(
        class_statistics(shares, 12).deviation_C, class_statistics(HISTOGRAMS, 12).deviation_C
    )


@pytest.mark.parametrize("rows", [[[0, 0]], np.zeros((0, 3))])
def test_no_labels_at_all_is_a_named_error(rows: list[list[int]]) -> None:
    with pytest.raises(NoLabelledClients, match="no client has a labelled sample"):
        class_statistics(rows, tau=12)


def test_sums_of_no_clients_are_a_named_error() -> None:
    with pytest.raises(NoLabelledClients):
        statistics_from_sums([0.0], [0.0], 0, tau=12)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_counts_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        class_statistics([[bad, 1.0]], tau=12)


def test_a_single_histogram_is_not_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        class_statistics([1, 2], tau=12)


@given(histograms(), st.floats(0, 60))
def test_agrees_with_exact_fractions_and_with_sums(rows: list[list[int]], tau: float) -> None:
    assume(any(sum(row) for row in rows))
    statistics = class_statistics(rows, tau)
    means, deviations = reference.deviations(rows)
    np.testing.assert_allclose(statistics.mean_C, means, atol=1e-12)
    np.testing.assert_allclose(statistics.deviation_C, deviations, atol=1e-12)

    shares = class_proportions([row for row in rows if sum(row)])
    sums = statistics_from_sums(shares.sum(0), (shares**2).sum(0), len(shares), tau)
    np.testing.assert_allclose(sums.mean_C, means, atol=1e-9)
    np.testing.assert_allclose(sums.deviation_C, deviations, atol=1e-7)
    assert statistics.mean_C.sum() == pytest.approx(1)


@given(histograms(), st.randoms(use_true_random=False))
def test_order_of_clients_does_not_matter(rows: list[list[int]], random: object) -> None:
    assume(any(sum(row) for row in rows))
    first, second = class_statistics(rows, 12), class_statistics(rows[::-1], 12)
    np.testing.assert_allclose(first.deviation_C, second.deviation_C, atol=1e-12)
    assert first.low_C.tolist() == second.low_C.tolist()


class TestOtsu:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            # Between 2 and 8: 2 x 2 (1.5 - 8.5)² = 196, against 1 x 3 (1 - 19/3)² = 85.3.
            ([9, 1, 8, 2], 5.0),
            # 1 x 2 (0 - 5)² = 50 and 2 x 1 (0 - 10)² = 200.
            ([0, 0, 10], 5.0),
            # Both places have 1 x 2 x 2.25: the lowest.
            ([1, 2, 3], 1.5),
            ([4, 4, 4], None),
            ([4, 4 + 1e-12], None),
            ([7], None),
            ([], None),
        ],
    )
    def test_by_hand(self, values: list[float], expected: float | None) -> None:
        assert otsu_threshold(values) == expected

    @given(st.lists(st.integers(0, 40), min_size=2, max_size=12))
    def test_agrees_with_trying_every_place(self, values: list[int]) -> None:
        def between(threshold: float) -> Fraction:
            low = [Fraction(v) for v in values if v < threshold]
            high = [Fraction(v) for v in values if v >= threshold]
            gap = sum(low, Fraction()) / len(low) - sum(high, Fraction()) / len(high)
            return len(low) * len(high) * gap**2

        levels = sorted(set(values))
        places = [(a + b) / 2 for a, b in pairwise(levels)]
        expected = max(places, key=lambda t: (between(t), -t)) if places else None
        assert otsu_threshold(values) == expected

    def test_it_splits_the_classes_and_says_so(self) -> None:
        plain = class_statistics(HISTOGRAMS, tau=12)
        found = class_statistics(HISTOGRAMS, tau=12, rule="otsu")
        threshold = otsu_threshold(100 * plain.deviation_C)
        assert (plain.tau, found.tau) == (12, threshold)
        assert found.low_C.tolist() == (100 * plain.deviation_C < threshold).tolist()
        assert 0 < found.low_C.sum() < len(found.low_C)
        shares = class_proportions(HISTOGRAMS)
        sums = statistics_from_sums(
            shares.sum(0), (shares**2).sum(0), len(shares), tau=12, rule="otsu"
        )
        assert sums.low_C.tolist() == found.low_C.tolist()

    def test_where_nothing_differs_tau_counts(self) -> None:
        for tau, low in ((12.0, False), (51.0, True)):
            found = class_statistics([[1, 0], [0, 1]], tau=tau, rule="otsu")
            assert (found.tau, found.low_C.all()) == (tau, low)


def test_neighbours_that_all_differ_too_little_part_nowhere() -> None:
    assert otsu_neighbours([0, 0.9, 1.8], 1.0) is None
    assert otsu_neighbours([0, 0.9, 3.0], 1.0) == (0.9, 3.0)
