"""Mean ranks and their tests, beside numbers that were published or computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ahfal_app.benchmark.ranks import (
    critical_difference,
    friedman,
    groups,
    ranks,
    signed_rank,
)

#: Ranks of four classifiers on 14 data sets: table 6 of Demšar (2006).
_PUBLISHED = np.array(
    [
        [4, 3, 2, 1],
        [1, 2, 3, 4],
        [4, 1, 2, 3],
        [4, 1, 3, 2],
        [4, 2, 3, 1],
        [1, 2.5, 4, 2.5],
        [3, 2, 4, 1],
        [2.5, 2.5, 4, 1],
        [4, 3, 2, 1],
        [2.5, 2.5, 2.5, 2.5],
        [4, 2.5, 1, 2.5],
        [3, 2, 4, 1],
        [4, 1, 2, 3],
        [3, 1, 4, 2],
    ]
).T


def test_friedman_and_nemenyi_as_published() -> None:
    assert _PUBLISHED.mean(axis=1) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    found = friedman(_PUBLISHED)
    assert found is not None
    assert found.chi_square == pytest.approx(9.28, abs=0.01)
    assert found.f == pytest.approx(3.69, abs=0.01)
    assert (found.df, found.df_error) == (3, 39)
    # The critical value of F(3, 39) at 5 % is 2.85: less than F.
    assert found.p < 0.05
    assert stats.f.sf(2.85, 3, 39) == pytest.approx(0.05, abs=0.001)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=0.005)


def test_quantiles_are_those_of_the_published_table() -> None:
    """Table 5 a of Demšar (2006): q at 5 % of 2 to 10 classifiers."""
    published = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for methods, q in enumerate(published, 2):
        factor = (methods * (methods + 1) / (6 * 30)) ** 0.5
        assert critical_difference(methods, 30) / factor == pytest.approx(q, abs=0.001)


def test_ranks_by_hand() -> None:
    """The best has 1; two equals of rank 2 and 3 have 2.5 each."""
    values_MB = np.array([[90.0, 50.0], [80.0, 70.0], [80.0, 60.0]])
    assert ranks(values_MB).tolist() == [[1, 3], [2.5, 1], [2.5, 2]]


def test_friedman_by_hand_and_beside_another_program() -> None:
    """Two blocks, three methods: ranks 1 2 3 and 2 1 3; means 1.5, 1.5, 3.

    12·2/(3·4)·(2.25 + 2.25 + 9 − 12) = 3; F = 1·3/(2·2 − 3) = 3.
    """
    found = friedman(np.array([[1.0, 2], [2, 1], [3, 3]]))
    assert found is not None
    assert (found.chi_square, found.f) == pytest.approx((3.0, 3.0))
    values_MB = np.random.default_rng(0).normal(size=(5, 12))
    other = stats.friedmanchisquare(*values_MB)
    ours = friedman(ranks(values_MB))
    assert ours is not None
    assert ours.chi_square == pytest.approx(other.statistic)


def test_friedman_where_there_is_nothing_to_test_or_no_doubt() -> None:
    assert friedman(np.array([[1.0, 1.0]])) is None
    assert friedman(np.array([[1.0], [2.0]])) is None
    agreed = friedman(np.array([[1.0, 1, 1], [2, 2, 2]]))
    assert agreed is not None
    assert agreed.p == 0.0
    level = friedman(np.full((3, 4), 2.0))
    assert level is not None
    assert (level.chi_square, level.p) == pytest.approx((0.0, 1.0))


def test_groups_by_hand() -> None:
    """Demšar's example: one group at 5 %, two at 10 % that share the third method."""
    assert groups([1.964, 2.0, 2.893, 3.143], 1.25) == [(0, 3)]
    assert groups([1.964, 2.0, 2.893, 3.143], 1.12) == [(0, 2), (2, 3)]
    assert groups([1.0, 2.0, 3.0], 1.0) == []
    assert groups([1.0, 1.5, 2.0], 5.0) == [(0, 2)]
    assert groups([1.0, 1.1, 4.0, 4.1, 9.0], 1.0) == [(0, 1), (2, 3)]


def test_signed_rank_by_hand() -> None:
    """Of five blocks all on one side the exact two-sided p is 2/2⁵."""
    assert signed_rank([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 32)
    assert signed_rank([-1.0, 2.0]) == pytest.approx(1.0)
    assert signed_rank([0.0, 0.0, 0.0]) == 1.0
    assert signed_rank([1.0]) is None
    assert signed_rank([1.0, 2.0, -3.0]) == signed_rank([-1.0, -2.0, 3.0])
