"""Sums over predictions by hand, and that they add up over clients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score

from ahfal_app.stop_set import (
    FEWEST_SAMPLES,
    MOST_TABLE_CLASSES,
    UNITS,
    check_sums,
    entropy_units,
    observe,
    prediction_sums,
    sums_size,
)

#: Two clients' tables by the class before and now; together they are the first case by hand.
TABLES = ([[30, 5], [0, 15]], [[10, 0], [3, 37]])


def sums_of(table: list[list[int]]) -> np.ndarray:
    """Return sums over samples whose predictions make up a table."""
    table_CC = np.array(table)
    before_N, now_N = (
        each.repeat(table_CC.ravel()) for each in np.indices(table_CC.shape).reshape(2, -1)
    )
    return prediction_sums(now_N, np.full(len(now_N), UNITS // 4), before_N, len(table_CC))


def test_kappa_and_change_of_the_f_measure_by_hand() -> None:
    found = observe(sums_of([[40, 5], [3, 52]]), 100, 2)
    assert (found.predicted, found.compared, found.uncertainty) == (100, 100, 0.25)
    assert found.kappa == pytest.approx(0.837728, abs=1e-6)
    assert found.changed == pytest.approx(0.08)
    assert found.delta_f_macro == pytest.approx((0.071429 + 0.090909) / 2, abs=1e-6)
    assert found.delta_f_worst == pytest.approx(0.090909, abs=1e-6)


def test_kappa_is_of_the_sum_and_not_a_mean_of_kappas() -> None:
    sums = [sums_of(table) for table in TABLES]
    own = [observe(each, 50, 2).kappa for each in sums]
    assert own == pytest.approx([0.782609, 0.831461], abs=1e-6)
    assert observe(sums[0] + sums[1], 100, 2) == observe(sums_of([[40, 5], [3, 52]]), 100, 2)


def test_entropy_by_hand() -> None:
    logits_NC = np.log(np.array([[0.99, 0.01], [0.5, 0.5], [1.0, 1e-300]]))
    units_N = entropy_units(logits_NC)
    assert units_N[0] / UNITS == pytest.approx(0.080793, abs=1e-6)
    assert units_N[1:].tolist() == [UNITS, 0]
    # As large as logits get, and of both signs.
    assert entropy_units(np.array([[3e38, -3e38]], np.float32)).tolist() == [0]
    # A model that has come apart is sure of nothing.
    apart = np.array([[np.nan, 1.0], [np.inf, np.inf], [-np.inf, np.inf]], np.float32)
    assert entropy_units(apart).tolist() == [UNITS, UNITS, 0]


@pytest.mark.parametrize("num_classes", [2, 3, MOST_TABLE_CLASSES + 1])
def test_what_never_changes_agrees_whatever_it_is(num_classes: int) -> None:
    """One class alone: 0 / 0 in the formula, and agreement all the same."""
    same_N = np.full(20, 1)
    found = observe(prediction_sums(same_N, same_N, same_N, num_classes), 20, num_classes)
    assert (found.kappa, found.changed, found.delta_f_worst) == (1.0, 0.0, 0.0)
    first = observe(prediction_sums(same_N, same_N, np.full(20, -1), num_classes), 20, num_classes)
    assert (first.compared, first.kappa, first.changed) == (0, None, None)
    assert first.uncertainty == pytest.approx(1 / UNITS)


def test_a_class_that_is_gone_changes_by_all() -> None:
    found = observe(sums_of([[0, 10, 0], [0, 10, 0], [0, 0, 0]]), 20, 3)
    assert found.delta_f_worst == 1
    assert found.delta_f_macro == pytest.approx((1 + 1 - 20 / 30) / 2)
    assert found.kappa == 0


def test_few_samples_tell_nothing() -> None:
    few_N = np.zeros(FEWEST_SAMPLES - 1, np.int64)
    assert not prediction_sums(few_N, few_N, few_N, 2).any()
    many_N = np.zeros(FEWEST_SAMPLES, np.int64)
    before_N = many_N.copy()
    before_N[0] = -1
    assert prediction_sums(many_N, many_N, before_N, 2).tolist() == [FEWEST_SAMPLES, *[0] * 6]


@pytest.mark.slow
@given(st.data())
def test_sums_agree_with_slow_formulas_and_add_up(data: st.DataObject) -> None:
    num_classes = data.draw(st.sampled_from([2, 3, 7]))
    draw = st.lists(
        st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1)),
        min_size=FEWEST_SAMPLES,
        max_size=40,
    )
    clients = [np.array(data.draw(draw)).T for _ in range(data.draw(st.integers(1, 3)))]
    sums = [prediction_sums(now, now * 7, before, num_classes) for before, now in clients]
    for (before, _), sums_E in zip(clients, sums, strict=True):
        check_sums(sums_E, len(before), num_classes)
    before, now = np.concatenate(clients, axis=1)
    total = sum(sums)
    assert total.tolist() == prediction_sums(now, now * 7, before, num_classes).tolist()
    found = observe(total, len(now), num_classes)
    if (before != now).any():
        assert found.kappa == pytest.approx(cohen_kappa_score(before, now))
    else:
        assert found.kappa == 1
    scores = f1_score(before, now, average=None, labels=np.union1d(before, now))
    assert found.delta_f_macro == pytest.approx(1 - scores.mean())
    assert found.delta_f_worst == pytest.approx(1 - scores.min())
    assert found.changed == pytest.approx((before != now).mean())


def test_many_classes_send_margins_that_say_the_same() -> None:
    """Classes that nobody predicts change nothing but the form."""
    random = np.random.default_rng(0)
    before, now = random.integers(0, 5, (2, 300))
    now[:250] = before[:250]
    few = observe(prediction_sums(now, now, before, 5), 300, 5)
    many = MOST_TABLE_CLASSES + 1
    sums_E = prediction_sums(now, now, before, many)
    assert len(sums_E) == sums_size(many) == 3 + 3 * many
    check_sums(sums_E, 300, many)
    assert observe(sums_E, 300, many) == few


@pytest.mark.parametrize("num_classes", [2, MOST_TABLE_CLASSES + 1])
@pytest.mark.parametrize(
    ("place", "by", "said"),
    [
        (0, 1, "allowed is at most 20"),
        (0, -20, "no more compared than predicted"),
        (0, 2**61, "allowed is at most 20"),
        (1, 20 * UNITS, "sums that no predictions have"),
        (1, -21, "sums that no predictions have"),
        (2, 1, "no more compared than predicted"),
        (2, -1, "above the 19"),
        (3, -21, "sums that no predictions have"),
        (3, 1, "above the 20"),
        (-1, 1, "do not add up"),
        (4, 1, "do not add up"),
        (4, 2**62, "above the 20"),
    ],
)
def test_sums_that_cannot_be_are_refused(num_classes: int, place: int, by: int, said: str) -> None:
    none_N = np.zeros(20, np.int64)
    sums_E = prediction_sums(none_N, none_N + 1, none_N, num_classes)
    check_sums(sums_E, 20, num_classes)
    sums_E[place] += by
    with pytest.raises(ValueError, match=said):
        check_sums(sums_E, 20, num_classes)


def test_entropy_is_finite_and_within_its_bounds() -> None:
    logits_NC = np.random.default_rng(1).normal(scale=30, size=(500, 6))
    p_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    p_NC /= p_NC.sum(axis=1, keepdims=True)
    slow = -(p_NC * np.log(np.maximum(p_NC, 1e-300))).sum(axis=1) / math.log(6)
    assert entropy_units(logits_NC) / UNITS == pytest.approx(slow, abs=1 / UNITS)
