from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference_ahfal as reference

from ahfal_app.errors import NonFiniteSignal
from ahfal_app.query.core.budgets import allocate, inverse_count_weights, shortfall_weights
from ahfal_app.query.core.picking import top_per_class, top_scores
from ahfal_app.query.core.representation import representation_ratio_budgets

MANY = 10_000


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Draw class counts, capacities and a budget."""
    num_classes = draw(st.integers(2, 10))
    counts = st.lists(st.integers(0, 60), min_size=num_classes, max_size=num_classes)
    capacities = st.lists(st.integers(0, 40), min_size=num_classes, max_size=num_classes)
    return draw(counts), draw(capacities), draw(st.integers(0, 150))


def inverse_count(counts: list[int], capacities: list[int], budget: int) -> list[int]:
    return [int(b) for b in allocate(inverse_count_weights(counts), capacities, budget)]


def split(weights: list[Any], total: int) -> list[int]:
    """Return shares where every class could take everything."""
    return [int(share) for share in allocate(weights, [max(total, 0)] * len(weights), total)]


class TestLargestRemainder:
    def test_tie_goes_to_the_lowest_class(self) -> None:
        weights = inverse_count_weights([4, 2, 0, 1])
        assert split(weights, 10) == [1, 2, 4, 3]

    def test_tie_that_floats_would_break(self) -> None:
        # Three thirds of 7 and a share of 3 in 9: all remainders are 1/3 on paper.
        weights = [Fraction(1, 3), Fraction(2, 6), Fraction(3, 9)]
        assert split(weights, 7) == [3, 2, 2]

    def test_weights_of_numpy_do_not_overflow(self) -> None:
        weights = np.array([2**61, 2**61, 2**61])
        assert split(weights.tolist(), 100) == [34, 33, 33]
        assert split(list(weights), 100) == [34, 33, 33]

    def test_weights_of_zero_get_nothing(self) -> None:
        assert split([0, 1, 0, 1], 5) == [0, 3, 0, 2]

    def test_all_weights_zero_count_alike(self) -> None:
        assert split([0.0, 0.0, 0.0], 4) == [2, 1, 1]

    @pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
    def test_impossible_weights_are_refused(self, weight: float) -> None:
        with pytest.raises(ValueError, match="weight"):
            split([1.0, weight], 3)

    def test_no_classes_and_negative_totals_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one class"):
            split([], 3)
        with pytest.raises(ValueError, match="budget -1"):
            split([1], -1)

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(0, 1000))
    def test_shares_are_within_one_of_the_ideal(self, weights: list[float], total: int) -> None:
        shares = split(weights, total)
        assert sum(shares) == total
        exact = [Fraction(weight) for weight in weights]
        if whole := sum(exact):
            for share, weight in zip(shares, exact, strict=True):
                assert abs(share - total * weight / whole) < 1


class TestAllocate:
    @pytest.mark.parametrize(
        ("counts", "capacities", "budget", "expected"),
        [
            ([4, 2, 0, 1], [10, 10, 10, 10], 10, [1, 2, 4, 3]),
            ([4, 2, 0, 1], [10, 10, 1, 10], 10, [1, 3, 1, 5]),
            ([0, 1], [10, 10], 5, [3, 2]),
            ([10, 10], [1, 1], 5, [1, 1]),
            ([7, 0], [9, 0], 3, [3, 0]),
            ([0, 0, 0], [5, 5, 5], 4, [2, 1, 1]),
            ([3, 3], [0, 0], 4, [0, 0]),
            ([3, 3], [4, 4], 0, [0, 0]),
            (
                [387, 32, 30, 0, 22, 11, 36, 0, 0, 0],
                [3628, 312, 232, 0, 128, 80, 279, 0, 0, 0],
                259,
                [4, 40, 42, 0, 58, 80, 35, 0, 0, 0],
            ),
        ],
    )
    def test_by_hand(
        self, counts: list[int], capacities: list[int], budget: int, expected: list[int]
    ) -> None:
        assert inverse_count(counts, capacities, budget) == expected

    def test_first_pass_over_a_concentrated_client(self) -> None:
        weights = inverse_count_weights([387, 32, 30, 0, 22, 11, 36, 0, 0, 0])
        expected = [0, 2, 2, 61, 3, 6, 2, 61, 61, 61]
        assert split(weights, 259) == expected

    def test_equal_counts_get_equal_budgets_up_to_rounding(self) -> None:
        budgets = inverse_count([17] * 7, [MANY] * 7, 100)
        assert max(budgets) - min(budgets) <= 1

    def test_class_without_weight_takes_what_no_other_can(self) -> None:
        assert allocate([1, 0], [2, 9], 5).tolist() == [2, 3]

    def test_capacities_must_fit_the_classes(self) -> None:
        for capacities in ([1], [1, -1]):
            with pytest.raises(ValueError, match="capacities of at least 0"):
                allocate([1, 1], capacities, 1)

    @given(problems())
    def test_agrees_with_the_slow_version(self, problem: tuple[list[int], list[int], int]) -> None:
        assert inverse_count(*problem) == reference.class_budgets(*problem)

    @given(problems())
    def test_spends_the_budget_within_capacity(
        self, problem: tuple[list[int], list[int], int]
    ) -> None:
        _, capacities, budget = problem
        budgets = np.array(inverse_count(*problem))
        assert budgets.sum() == min(budget, sum(capacities))
        assert (budgets >= 0).all()
        assert (budgets <= capacities).all()

    def test_a_thousand_classes_with_all_different_counts(self) -> None:
        budgets = inverse_count(list(range(1000)), [20] * 1000, 5000)
        assert sum(budgets) == 5000
        assert sorted(budgets, reverse=True) == budgets


def shortfall(
    counts: list[int], mean: list[float], capacities: list[int], budget: int
) -> list[int]:
    deficits = shortfall_weights(counts, mean)
    budgets = allocate(inverse_count_weights(counts), capacities, budget, deficits)
    return [int(share) for share in budgets]


class TestDeficitsByShortfall:
    """ "Redistributed proportionally to underrepresented classes", read as max(0, p̄ - p)."""

    def test_weights_by_hand(self) -> None:
        # Shares of 0.6, 0.1, 0.1, 0.2 and 0.
        weights = shortfall_weights([6, 1, 1, 2, 0], [0.2] * 5)
        assert weights == (0, Fraction(1, 10), Fraction(1, 10), 0, Fraction(1, 5))
        assert shortfall_weights([0, 0], [0.75, 0.25]) == (Fraction(3, 4), Fraction(1, 4))

    def test_counts_that_sum_to_less_than_one_have_shares_too(self) -> None:
        """Of old labels that count less: the first class has all of them."""
        mean = [0.4, 0.4, 0.2]
        assert shortfall_weights([0.2, 0, 0], mean) == shortfall_weights([2, 0, 0], mean)
        assert shortfall_weights([0.2, 0, 0], mean)[0] == 0

    def test_rounding_of_the_mean_is_no_shortfall(self) -> None:
        # 0.1 + 0.2 is a little more than 3 of 10.
        assert shortfall_weights([3, 7], [0.1 + 0.2, 0.7]) == (0, 0)

    @pytest.mark.parametrize(
        ("counts", "mean", "capacities", "budget", "expected", "by_inverse_counts"),
        [
            # Equation 4 gives (1, 2, 4, 3) and class 2 takes 1. Classes 2 and 3 are below the
            # mean, and class 2 is used up, so that class 3 gets all 3.
            ([4, 2, 0, 1], [0.25] * 4, [10, 10, 1, 10], 10, [1, 2, 1, 6], [1, 3, 1, 5]),
            # (1, 3, 3, 1, 3), and class 4 has none: 3 in halves to classes 1 and 2.
            ([6, 1, 1, 2, 0], [0.2] * 5, [9, 9, 9, 9, 0], 11, [1, 5, 4, 1, 0], [1, 4, 4, 2, 0]),
            # (4, 1, 1) and class 0 takes 1. No other is below the mean: 3 by equation 4.
            ([0, 3, 3], [0.5, 0.25, 0.25], [1, 9, 9], 6, [1, 3, 2], [1, 3, 2]),
            # (5, 5, 0, 2) and class 0 has none. Of its 5 class 1 takes 1, then it is used up;
            # 4 are left, by equation 4 in 3 : 8 to the classes above the mean.
            ([0, 1, 8, 3], [0.3, 0.3, 0.2, 0.2], [0, 6, 20, 20], 12, [0, 6, 1, 5], [0, 6, 1, 5]),
            # Shares of 1/4, 1/4 and 1/2 against 0.3, 0.6 and 0.1: (2, 2, 1) and class 2 has
            # none; the one left goes to class 1, which lacks most, and not to class 0.
            ([1, 1, 2], [0.3, 0.6, 0.1], [9, 9, 0], 5, [2, 3, 0], [3, 2, 0]),
        ],
    )
    def test_by_hand(
        self,
        counts: list[int],
        mean: list[float],
        capacities: list[int],
        budget: int,
        expected: list[int],
        by_inverse_counts: list[int],
    ) -> None:
        assert shortfall(counts, mean, capacities, budget) == expected
        assert inverse_count(counts, capacities, budget) == by_inverse_counts

    def test_where_nothing_is_missing_both_readings_are_the_same(self) -> None:
        assert shortfall([4, 2, 0, 1], [0.7, 0.1, 0.1, 0.1], [MANY] * 4, 10) == [1, 2, 4, 3]

    def test_weights_for_deficits_must_fit_the_classes(self) -> None:
        with pytest.raises(ValueError, match="2 weights for deficits are needed, got 1"):
            allocate([1, 1], [5, 5], 3, [1])

    @given(problems(), st.data())
    def test_agrees_with_the_slow_version(
        self, problem: tuple[list[int], list[int], int], data: st.DataObject
    ) -> None:
        counts, capacities, budget = problem
        size = len(counts)
        shares = data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any))
        mean = [share / sum(shares) for share in shares]
        result = shortfall(counts, mean, capacities, budget)
        assert result == reference.class_budgets(counts, capacities, budget, mean)
        assert sum(result) == min(budget, sum(capacities))


class TestRepresentationRatio:
    @pytest.mark.parametrize(
        ("counts", "capacities", "budget", "expected"),
        [
            ([4, 2, 0, 1], [MANY] * 4, 10, [0, 0, 9, 1]),
            ([40, 30, 20, 10], [MANY] * 4, 20, [3, 3, 3, 11]),
            ([40, 30, 20, 10], [MANY] * 4, 100, [10, 20, 30, 40]),
            ([40, 30, 20, 10], [MANY, MANY, 0, 0], 20, [10, 10, 0, 0]),
            ([40, 30, 20, 10], [MANY, 1, 2, 3], 20, [14, 1, 2, 3]),
            ([0, 0, 0, 0], [9, 9, 9, 9], 2, [1, 1, 0, 0]),
        ],
    )
    def test_by_hand(
        self, counts: list[int], capacities: list[int], budget: int, expected: list[int]
    ) -> None:
        result = representation_ratio_budgets(counts, [0.25] * 4, capacities, budget)
        assert result.tolist() == expected

    def test_class_that_no_client_has_labelled_is_tried_first(self) -> None:
        budgets = representation_ratio_budgets([0, 10], [0.0, 1.0], [MANY, MANY], 1)
        assert budgets.tolist() == [1, 0]

    def test_rounding_of_the_target_buys_no_label(self) -> None:
        # 0.1 is a little more than a tenth: ten classes must get ten labels each, not 11.
        result = representation_ratio_budgets([20] * 10, [0.1] * 10, [MANY] * 10, 100)
        assert result.tolist() == [10] * 10

    @given(problems(), st.data())
    def test_agrees_with_the_slow_version(
        self, problem: tuple[list[int], list[int], int], data: st.DataObject
    ) -> None:
        counts, capacities, budget = problem
        size = len(counts)
        weights = data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any))
        target = [Fraction(weight, sum(weights)) for weight in weights]
        result = representation_ratio_budgets(
            counts, [float(share) for share in target], capacities, budget
        )
        assert result.tolist() == reference.ratio_budgets(counts, target, capacities, budget)
        assert result.sum() == min(budget, sum(capacities))

    @pytest.mark.parametrize(
        ("counts", "target", "capacities", "budget"),
        [
            ([1], [0.5, 0.5], [1, 1], 1),
            ([1, 1], [0.5, float("nan")], [1, 1], 1),
            ([1, 1], [0.5, -0.5], [1, 1], 1),
            ([1, 1], [0.5, 0.5], [1, -1], 1),
            ([1, 1], [0.5, 0.5], [1, 1], -1),
            ([1, -1], [0.5, 0.5], [1, 1], 1),
        ],
    )
    def test_impossible_input_is_refused(
        self, counts: list[int], target: list[float], capacities: list[int], budget: int
    ) -> None:
        with pytest.raises(ValueError, match="must"):
            representation_ratio_budgets(counts, target, capacities, budget)


class TestPicking:
    ids = np.array([3, 5, 8, 9, 20])
    scores = torch.tensor([0.2, 0.6, 0.1, 0.5, 0.3], dtype=torch.float64)

    def test_top_scores_are_ordered(self) -> None:
        assert top_scores(self.scores, self.ids, 3).tolist() == [5, 9, 20]
        assert top_scores(self.scores, self.ids, 99).tolist() == [5, 9, 20, 3, 8]

    def test_ties_go_to_the_smallest_id(self) -> None:
        assert top_scores(torch.zeros(5), self.ids, 3).tolist() == [3, 5, 8]
        assert top_per_class(
            torch.zeros(5), self.ids, torch.tensor([1, 0, 1, 0, 1]), [1, 2]
        ).tolist() == [3, 5, 8]

    def test_top_per_class_by_hand(self) -> None:
        classes = torch.tensor([0, 0, 1, 1, 1])
        assert top_per_class(self.scores, self.ids, classes, [1, 2]).tolist() == [5, 9, 20]
        assert top_per_class(self.scores, self.ids, classes, [0, 99]).tolist() == [9, 20, 8]
        assert top_per_class(self.scores, self.ids, classes, [0, 0]).tolist() == []

    @given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 6))
    def test_top_per_class_agrees_with_sorting_each_class(
        self, seed: int, size: int, num_classes: int
    ) -> None:
        random = np.random.default_rng(seed)
        scores, classes = random.integers(0, 5, size) / 4, random.integers(0, num_classes, size)
        budgets = random.integers(0, 8, num_classes)
        ids = np.sort(random.choice(1000, size, replace=False))
        picked = top_per_class(torch.tensor(scores), ids, torch.tensor(classes), budgets)
        expected = []
        for c in range(num_classes):
            members = [(-s, i) for s, i, k in zip(scores, ids, classes, strict=True) if k == c]
            expected += sorted(members)[: budgets[c]]
        assert picked.tolist() == [i for _, i in sorted(expected)]

    def test_scores_that_are_not_finite_are_counted(self) -> None:
        scores = torch.tensor([0.0, float("nan"), float("inf"), 1.0, 2.0])
        with pytest.raises(NonFiniteSignal, match="2 of 5 scores"):
            top_scores(scores, self.ids, 1)
