"""Class counts in which older labels count less: cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ahfal_app.class_statistics import class_statistics
from ahfal_app.forgetting import (
    bias_warning,
    effective_size,
    forgotten_counts,
    sampling_deviation,
)

ONE = np.array([[4, 0], [1, 1], [0, 2]])
OTHER = np.array([[0, 3], [0, 0], [5, 0]])


def test_forgetting_turns_a_class_of_low_variance_into_one_of_high():
    plain = class_statistics([ONE.sum(0), OTHER.sum(0)], tau=12)
    assert plain.mean_C.tolist() == [0.625, 0.375]
    assert plain.deviation_C.tolist() == [0, 0]
    assert plain.low_C.all()
    rows = [forgotten_counts(counts, 2) for counts in (ONE, OTHER)]
    assert rows[0] == pytest.approx([2.707107, 2.707107], abs=1e-6)
    assert rows[1] == pytest.approx([5, 1.5])
    found = class_statistics(rows, tau=12)
    assert found.mean_C == pytest.approx([0.634615, 0.365385], abs=1e-6)
    assert 100 * found.deviation_C == pytest.approx([13.4615] * 2, abs=1e-4)
    assert not found.low_C.any()
    assert effective_size(ONE.sum(1), 2) == pytest.approx(7.3284, abs=1e-4)
    assert effective_size(OTHER.sum(1), 2) == pytest.approx(7.3478, abs=1e-4)


def test_a_shorter_half_life_parts_the_clients_further():
    rows = [forgotten_counts(counts, 1) for counts in (ONE, OTHER)]
    assert [row.tolist() for row in rows] == [[1.5, 2.5], [5, 0.75]]
    deviation = class_statistics(rows, tau=12).deviation_C
    assert 100 * deviation == pytest.approx([24.7283] * 2, abs=1e-4)


@given(
    hnp.arrays(
        np.int64, st.tuples(st.integers(1, 9), st.integers(2, 4)), elements=st.integers(0, 9)
    ),
    st.sampled_from([0.5, 1.0, 3.0, 10.0]),
)
def test_the_recursion_gives_the_same(counts_TC: np.ndarray, half_life: float):
    decay, counts = 2 ** (-1 / half_life), np.zeros(counts_TC.shape[1])
    for new_C in counts_TC:
        counts = decay * counts + new_C
    assert forgotten_counts(counts_TC, half_life) == pytest.approx(counts, abs=1e-8)
    labels_T = counts_TC.sum(axis=1)
    size = effective_size(labels_T, half_life)
    assert size <= labels_T.sum() * (1 + 1e-9)
    assert effective_size(labels_T, 0) == labels_T.sum()


@pytest.mark.parametrize(
    ("half_life", "expected"), [(1, 3), (2, 5.83), (3, 8.69), (5, 14.45), (10, 28.87)]
)
def test_effective_size_in_the_long_run(half_life: float, expected: float):
    assert effective_size(np.ones(400), half_life) == pytest.approx(expected, abs=0.005)


def test_sampling_alone_gives_a_class_a_deviation():
    found = [100 * sampling_deviation(0.1, size) for size in (10, 20, 50, 100, 250)]
    assert found == pytest.approx([9.5, 6.7, 4.2, 3.0, 1.9], abs=0.05)
    assert "10.0 effective" in bias_warning([0.1] * 10, [10, 10, 0], 12)
    assert not bias_warning([0.1] * 10, [50, 50], 12)
    assert not bias_warning([0.1] * 10, [], 12)


def test_labels_that_are_all_old_are_none():
    old = np.zeros((60, 2))
    old[0] = 7
    assert forgotten_counts(old, 1).tolist() == [0, 0]
    assert effective_size(old.sum(axis=1), 1) == 0
    statistics = class_statistics([forgotten_counts(old, 1), [1.0, 3.0]], tau=12)
    assert statistics.mean_C.tolist() == [0.25, 0.75]


def test_what_sampling_gives_is_taken_from_the_deviation():
    rows, sizes = [[6, 4], [4, 6]], [10.0, 10.0]
    # Variance 0.01; sampling gives 0.24 / 9.
    assert class_statistics(rows, 12, effective_M=sizes).deviation_C.tolist() == [0, 0]
    found = class_statistics(rows, 12, effective_M=[100.0, 100.0]).deviation_C
    assert found == pytest.approx([np.sqrt(0.01 - 0.24 / 99)] * 2)
    # Of one label nobody can tell.
    assert class_statistics(rows, 12, effective_M=[1.0, 0.5]).deviation_C == pytest.approx(
        [0.1] * 2
    )
