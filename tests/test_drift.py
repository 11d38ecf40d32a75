"""Whether two windows have the same class mix: cases computed by hand, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.drift import (
    RELABELLINGS,
    DriftTest,
    Refusal,
    chi_square,
    drift_test,
    expected_counts,
    is_large_enough,
    is_tested,
    merged_counts,
    permutation,
    pooled_p,
)
from ahfal_app.multiple_tests import holm

Counts = tuple[int, ...]


def _generator() -> np.random.Generator:
    return np.random.default_rng(1)


def _formula(x_C: Counts, y_C: Counts) -> tuple[float, float]:
    """Return X² and G class by class, as they are printed."""
    first, second = sum(x_C), sum(y_C)
    statistic = ratio = 0.0
    for x, y in zip(x_C, y_C, strict=True):
        if x + y:
            difference = math.sqrt(second / first) * x - math.sqrt(first / second) * y
            statistic += difference**2 / (x + y)
            for found, total in ((x, first), (y, second)):
                if found:
                    expected = total * (x + y) / (first + second)
                    ratio += 2 * found * math.log(found / expected)
    return statistic, ratio


@pytest.mark.parametrize(
    ("reference", "recent", "statistic", "df", "p", "ratio"),
    [
        pytest.param((30, 10, 10), (15, 20, 15), 9.333333, 2, 0.009404, 9.501728, id="S12"),
        pytest.param((8, 2), (6, 14), 6.696429, 1, 0.009661, 7.012778, id="S13"),
        pytest.param((4, 0, 6), (4, 0, 6), 0, 1, 1, 0, id="S14"),
        pytest.param((20, 0, 0), (10, 10, 0), 13.333333, 1, 0.000261, 17.260924, id="S15"),
    ],
)
def test_cases_computed_by_hand(
    reference: Counts, recent: Counts, statistic: float, df: int, p: float, ratio: float
):
    found = chi_square(reference, recent)
    assert found.statistic == pytest.approx(statistic, abs=1e-6)
    assert found.df == df
    assert found.p == pytest.approx(p, abs=1e-6)
    assert found.log_ratio == pytest.approx(ratio, abs=1e-6)


def test_two_degrees_of_freedom_have_a_p_value_that_can_be_written_down():
    found = chi_square((30, 10, 10), (15, 20, 15))
    assert found.p == pytest.approx(math.exp(-found.statistic / 2))
    assert expected_counts((30, 10, 10), (15, 20, 15)).min() == 12.5


def test_small_counts_need_relabelling():
    # S13: of four expected counts three are at least 5, which is less than 80 %.
    assert expected_counts((8, 2), (6, 14)).min() == pytest.approx(4.666667, abs=1e-6)
    assert not is_large_enough((8, 2), (6, 14))
    assert drift_test((8, 2), (6, 14), "chi-square", _generator) is Refusal.TOO_FEW
    found = drift_test((8, 2), (6, 14), "permutation", _generator)
    assert isinstance(found, DriftTest)
    assert found.statistic == pytest.approx(6.696429, abs=1e-6)
    # 14 labels of one class among 30: exactly, P(the ten have as few or many) by Fisher's sums.
    far = [k for k in range(11) if _formula((k, 10 - k), (14 - k, 6 + k))[0] >= 6.69]
    exact = sum(math.comb(14, k) * math.comb(16, 10 - k) for k in far) / math.comb(30, 10)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found == drift_test((8, 2), (6, 14), "permutation", _generator)


def test_windows_that_are_equal_are_as_likely_as_can_be():
    assert permutation((4, 0, 6), (4, 0, 6), _generator()).p == 1


def test_the_least_p_value_of_relabelling_is_one_in_all():
    found = permutation((40, 0), (0, 40), _generator())
    assert found.p == 1 / (1 + RELABELLINGS)


def test_holm():
    found = holm([0.009, 0.04, None, 0.03, 0.2])  # S16
    assert found == pytest.approx([0.036, 0.09, None, 0.09, 0.2])


def test_all_clients_together():
    tests = [DriftTest(statistic, 0, 2, 1) for statistic in (9.3333, 1.2, 3.1)]
    assert pooled_p(tests) == pytest.approx(0.0340, abs=5e-5)  # S17
    assert pooled_p([]) is None


@pytest.mark.parametrize(
    ("reference", "recent", "why"),
    [
        ((0, 0, 0), (3, 4, 5), Refusal.NO_LABELS),
        ((3, 4, 5), (0, 0, 0), Refusal.NO_LABELS),
        ((0, 0, 0), (0, 0, 0), Refusal.NO_LABELS),
        ((0, 30, 0), (0, 20, 0), Refusal.ONE_CLASS),
        ((1, 1, 1), (1, 1, 1), Refusal.TOO_FEW),
    ],
)
def test_what_cannot_be_judged_is_not(reference: Counts, recent: Counts, why: Refusal):
    assert drift_test(reference, recent, "chi-square", _generator) is why
    if why is not Refusal.TOO_FEW:
        assert drift_test(reference, recent, "permutation", _generator) is why
    assert why.words


def test_a_window_without_labels_has_no_statistic():
    with pytest.raises(ValueError, match="all 0"):
        chi_square((0, 0), (3, 4))


def test_the_rarest_classes_are_merged_until_counts_are_large_enough():
    # Expected counts of the three rare classes are 1, 2 and 2; together 5.
    found = merged_counts((20, 1, 2, 2, 25), (20, 1, 2, 2, 25))
    assert found is not None
    assert found[0].tolist() == [5, 20, 25]
    test = drift_test((20, 1, 2, 2, 25), (20, 1, 2, 2, 25), "chi-square", _generator)
    assert isinstance(test, DriftTest)
    assert test.df == 2
    # Of equally rare ones the last goes first, and no more than need be.
    found = merged_counts((20, 20, 20, 20, 1, 2, 3), (20, 20, 20, 20, 5, 4, 3))
    assert found is not None
    assert found[0].tolist() == [5, 1, 20, 20, 20, 20]


def test_no_cycle_is_in_the_recent_windows_of_two_tests():
    assert [cycle for cycle in range(12) if is_tested(cycle, 3)] == [5, 8, 11]
    assert [cycle for cycle in range(4) if is_tested(cycle, 1)] == [1, 2, 3]


_counts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=6)


@given(_counts)
def test_a_test_is_that_of_the_formula_and_knows_no_order(pairs: list[tuple[int, int]]):
    x_C, y_C = (tuple(each) for each in zip(*pairs, strict=True))
    if not sum(x_C) or not sum(y_C):
        return
    found = chi_square(x_C, y_C)
    statistic, ratio = _formula(x_C, y_C)
    assert found.statistic == pytest.approx(statistic, abs=1e-9)
    assert found.log_ratio == pytest.approx(ratio, abs=1e-9)
    assert chi_square(x_C[::-1], y_C[::-1]).statistic == pytest.approx(statistic, abs=1e-9)
    assert chi_square(y_C, x_C).statistic == pytest.approx(statistic, abs=1e-9)


@given(_counts)
def test_merging_keeps_every_label(pairs: list[tuple[int, int]]):
    x_C, y_C = (tuple(each) for each in zip(*pairs, strict=True))
    if not sum(x_C) or not sum(y_C):
        return
    found = merged_counts(x_C, y_C)
    if found is None:
        return
    assert (found[0].sum(), found[1].sum()) == (sum(x_C), sum(y_C))
    assert len(found[0]) >= 2
    assert is_large_enough(*found)
