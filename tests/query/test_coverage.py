"""Greedy coverage, and the strategies that are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pools import context_of
from support.reference_coverage import RADIUS, eager_coverage

from ahfal_app.parameters import Scalar
from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.core import coverage as coverage_module
from ahfal_app.query.core import nearness as nearness_module
from ahfal_app.query.core.coverage import (
    FIRST_EXACT,
    FIRST_ROWS,
    Coverage,
    Search,
    gaussian,
    greedy_coverage,
    laplace,
    student,
    top_hat,
)
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.prob_cover import RADII, pure_radius

KERNELS = {"gaussian": gaussian, "laplace": laplace, "student": student, "top-hat": top_hat}


def coverage_of(
    values: Any, kernel: str, radius: float, weights: Sequence[float] | None = None
) -> Coverage:
    """Return the coverage of all points; numbers are points on a line."""
    points = torch.as_tensor(np.array(values), dtype=torch.float64)
    points = points[:, None] if points.ndim == 1 else points
    weights = [1.0] * len(points) if weights is None else weights
    references = torch.arange(len(points))
    weights_R = torch.tensor(weights, dtype=torch.float64)
    return Coverage(EmbeddingPoints(points), KERNELS[kernel](radius), references, weights_R)


def picks(coverage: Coverage, size: int, count: int, again: bool = True) -> list[int]:
    chosen = torch.arange(size, len(coverage.points))
    return [int(i) for i in greedy_coverage(coverage, size, chosen, count, again)]


def select(
    name: str, pool: Any, labelled: Any, budget: int, num_classes: int = 2, **parameters: Scalar
) -> list[int]:
    """Return what a strategy takes of points on a line, or in the plane."""
    pool_ND = torch.tensor(pool, dtype=torch.float32)
    pool_ND = pool_ND[:, None] if pool_ND.ndim == 1 else pool_ND
    labelled_LD = torch.tensor(labelled, dtype=torch.float32).reshape(-1, pool_ND.shape[1])
    view = PoolView(
        np.arange(len(pool_ND)),
        {
            Signal.LOCAL_EMBEDDINGS: lambda: pool_ND,
            Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: labelled_LD,
        },
    )
    strategy = make_strategy(name, {"normalise": False, **parameters})
    selected = checked_select(strategy, view, context_of(budget, [1] * num_classes))
    return [int(i) for i in selected]


def assert_near(gains: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(gains, expected, rtol=0, atol=1e-6)


class Counting(Coverage):
    """A coverage that knows of how many points gains, and their bounds, were computed each time."""

    looked_at: list[int]
    bounded: list[int]
    taken: list[int]

    @classmethod
    def of(cls, plain: Coverage) -> Counting:
        made = cls(plain.points, plain.kernel, plain.references_R, plain.weights_R)
        for name in ("looked_at", "bounded", "taken"):
            object.__setattr__(made, name, [])
        return made

    def gains(self, rows_K: torch.Tensor, covered_R: torch.Tensor) -> torch.Tensor:
        self.looked_at.append(len(rows_K))
        return super().gains(rows_K, covered_R)

    def covering(self, rows_K: torch.Tensor, columns_C: torch.Tensor | None = None) -> torch.Tensor:
        self.looked_at.append(len(rows_K))
        return super().covering(rows_K, columns_C)

    def covered_by(self, chosen_L: torch.Tensor) -> torch.Tensor:
        self.taken.append(len(chosen_L))
        return super().covered_by(chosen_L)

    def gain_bounds(self, bounds_KR: torch.Tensor, covered_R: torch.Tensor) -> torch.Tensor:
        self.bounded.append(len(bounds_KR))
        return super().gain_bounds(bounds_KR, covered_R)


class TestGreedyCoverage:
    def test_soft_gains_by_hand(self) -> None:
        line = coverage_of([0, 1, 3], "gaussian", 1)
        nothing = torch.zeros(3, dtype=torch.float64)
        gains = line.gains(torch.arange(3), nothing) / 3
        assert_near(gains, torch.tensor([0.456001, 0.462065, 0.339480]).double())
        after = line.covered_by(torch.tensor([1]))
        gains = line.gains(torch.arange(3), after) / 3
        assert_near(gains[[0, 2]], torch.tensor([0.210707, 0.327228]).double())
        assert float(gains[1]) == 0
        covered = line.covered_by(torch.tensor([0]))
        gains = line.gains(torch.tensor([1, 2]), covered) / 3
        assert_near(gains, torch.tensor([0.216771, 0.333292]).double())
        assert picks(line, 3, 2) == [1, 2]

    def test_weighted_gains_by_hand(self) -> None:
        line = coverage_of([0, 1, 3], "gaussian", 1, [0.1, 0.2, 0.9])
        nothing = torch.zeros(3, dtype=torch.float64)
        gains = line.gains(torch.arange(3), nothing) / 3
        assert_near(gains, torch.tensor([0.057896, 0.084424, 0.301225]).double())
        gains = line.gains(torch.arange(2), line.covered_by(torch.tensor([2]))) / 3
        assert_near(gains, torch.tensor([0.056633, 0.077704]).double())
        assert picks(line, 3, 2) == [2, 1]
        # The pool first, then what is labelled: 1 and 3, and 0.
        line = coverage_of([1, 3, 0], "gaussian", 1, [0.9, 0.2, 0])
        gains = line.gains(torch.arange(2), line.covered_by(torch.tensor([2]))) / 3
        assert_near(gains, torch.tensor([0.190849, 0.066658]).double())
        assert picks(line, 2, 1) == [0]

    def test_kernels(self) -> None:
        squared = torch.tensor([0.0, 1.0, 4.0])
        torch.testing.assert_close(gaussian(2)(squared), torch.exp(-squared / 4))
        torch.testing.assert_close(laplace(2)(squared), torch.exp(-squared.sqrt() / 2))
        # 1 / ∜(1 + 2 · 0 / 4)³, and so on; and 16 to the power of -3/4.
        assert_near(student(2)(squared), torch.tensor([1.0, 1.5**-0.75, 3**-0.75]))
        assert_near(student(2)(torch.tensor([30.0])), torch.tensor([0.125]))
        assert top_hat(2)(squared).tolist() == [1, 1, 0]

    @pytest.mark.slow
    @pytest.mark.parametrize("again", [True, False])
    @settings(max_examples=20)
    @given(
        seed=st.integers(0, 2**32 - 1),
        size=st.integers(2, 20),
        num_chosen=st.integers(0, 6),
        kernel=st.sampled_from(sorted(KERNELS)),
        rows=st.sampled_from([(1, 1, 1, 2), (2, 3, 7, 5), (16, 4, 512, 4096)]),
        weighted=st.booleans(),
        kept=st.sampled_from([0, 10**6]),
    )
    def test_agrees_with_computing_all_gains_for_each_pick(
        self,
        again: bool,
        seed: int,
        size: int,
        num_chosen: int,
        kernel: str,
        rows: tuple[int, int, int, int],
        weighted: bool,
        kept: int,
    ) -> None:
        random = np.random.default_rng(seed)
        # Whole numbers, so that many gains tie and many points are equal.
        values = random.integers(0, 5, (size + num_chosen, 2))
        weights = random.integers(0, 3, len(values)) if weighted else np.ones(len(values))
        count = int(random.integers(1, size + 1))
        expected = eager_coverage(values.tolist(), size, weights.tolist(), kernel, count, again)
        with pytest.MonkeyPatch.context() as patch:
            names = ("FIRST_ROWS", "FIRST_EXACT", "ROWS", "REFERENCES")
            for name, number in zip(names, rows, strict=True):
                patch.setattr(coverage_module, name, number)
            patch.setattr(nearness_module, "KEPT", kept)
            coverage = coverage_of(values, kernel, 1.5, weights.astype(float).tolist())
            assert picks(coverage, size, count, again) == expected

    @pytest.mark.parametrize("kernel", sorted(KERNELS))
    def test_in_another_order_as_much_is_covered_by_each_pick(self, kernel: str) -> None:
        """Two points that cover each other alone are level, so that picks may differ."""
        values = np.random.default_rng(3).normal(size=(60, 4))
        order = np.random.default_rng(4).permutation(60)
        plain, shuffled = (coverage_of(each, kernel, 1.5) for each in (values, values[order]))
        taken, taken_shuffled = picks(plain, 60, 12), order[picks(shuffled, 60, 12)]
        for number in range(1, 13):
            covered = [
                plain.covered_by(torch.as_tensor(np.array(each[:number]))).sum()
                for each in (taken, taken_shuffled)
            ]
            torch.testing.assert_close(*covered)

    @pytest.mark.slow
    def test_looks_at_few_candidates_after_the_first_pick(self) -> None:
        plain = coverage_of(np.random.default_rng(0).normal(size=(2000, 3)), "gaussian", 1)
        counting = Counting.of(plain)
        assert picks(counting, 2000, 40) == picks(plain, 2000, 40)
        assert sum(counting.bounded) < 2000 + 40 * 400
        assert sum(counting.looked_at) < 40 * 3 * FIRST_EXACT

    def test_what_a_pick_covers_is_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With its gain; where that keeps nothing, again when it is picked."""
        plain = coverage_of(np.random.default_rng(1).normal(size=(200, 3)), "gaussian", 1)
        keeping, computing = Counting.of(plain), Counting.of(plain)
        assert picks(keeping, 200, 30) == picks(plain, 200, 30)
        # The set that covers from the beginning is the only one.
        assert keeping.taken == [0]
        monkeypatch.setattr(coverage_module, "KEPT", 0)
        assert picks(computing, 200, 30) == picks(plain, 200, 30)
        assert computing.taken == [0] + [1] * 30

    def test_distances_to_what_is_covered_better_are_not_computed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fifteen groups far apart: candidates are compared with points of their own groups."""
        middles = np.linspace(0, 1500, 15).repeat(10)
        values = middles + np.random.default_rng(2).normal(size=150)
        line = coverage_of(values, "gaussian", 1.5)
        expected = eager_coverage(values[:, None].tolist(), 150, [1.0] * 150, "gaussian", 12, True)
        computed: list[int] = []
        whole = EmbeddingPoints.squared_distances

        def counted(self: EmbeddingPoints, rows: Any, columns: Any) -> torch.Tensor:
            squared = whole(self, rows, columns)
            computed.append(squared.shape[1])
            return squared

        monkeypatch.setattr(EmbeddingPoints, "squared_distances", counted)
        assert picks(line, 150, 12) == expected
        assert 0 < sum(computed) < 0.5 * 150 * len(computed)

    def test_a_pick_without_gain_covers_nothing_new(self) -> None:
        """Which strategies may take for another reason: two equal points, and one far away."""
        counting = Counting.of(coverage_of([0, 0, 5], "top-hat", 1))
        search = Search(counting, 3, torch.zeros(3, dtype=torch.float64))
        assert search.best() == 0
        search.take(0)
        assert search.best() == 2
        covered, computed = search.covered_R.tolist(), sum(counting.looked_at)
        search.take(1)
        assert search.covered_R.tolist() == covered == [1, 1, 0]
        assert search.best() == 2
        assert (sum(counting.looked_at), counting.taken) == (computed, [])

    def test_looks_at_no_level_candidates_that_come_later(self) -> None:
        """Points so far from each other that each covers itself alone."""
        counting = Counting.of(coverage_of(list(range(300)), "top-hat", 0.5))
        assert picks(counting, 300, 20) == list(range(20))
        assert sum(counting.bounded) <= 300 + 20 * FIRST_ROWS
        assert sum(counting.looked_at) <= 20 * FIRST_EXACT

    @pytest.mark.parametrize("scale", [1.0, 2e9, 1e20, 1e-10])
    def test_bounds_are_bounds_at_every_scale(self, scale: float) -> None:
        """The last point is near to all others, which are far from each other."""
        values = np.concatenate([np.eye(9), np.full((1, 9), 1 / 9)]) * scale
        assert picks(coverage_of(values, "top-hat", 1.0 * scale), 10, 1) == [9]

    @pytest.mark.parametrize("kernel", sorted(KERNELS))
    def test_candidates_that_single_precision_cannot_tell_apart(self, kernel: str) -> None:
        """The gains of two points of a group differ in the ninth digit."""
        random = np.random.default_rng(5)
        groups = random.normal(size=(6, 40)).repeat(8, axis=0)
        values = groups + random.normal(0, 1e-6, groups.shape)
        values *= 1.5 / np.sqrt(80)
        expected = eager_coverage(values.tolist(), 48, [1.0] * 48, kernel, 12, True)
        assert picks(coverage_of(values, kernel, 1.5), 48, 12) == expected


class TestProbCover:
    def test_by_hand(self) -> None:
        assert select("prob-cover", [0, 1, 2, 3, 10], [], 3, radius=1.5) == [1, 2, 4]
        assert select("prob-cover", [1, 2, 3, 10], [0], 3, radius=1.5) == [1, 3, 0]

    def test_what_comes_when_all_is_covered(self) -> None:
        line = [9, 9.1, 0, 1, 2, 0.5]
        assert select("prob-cover", line, [], 3, radius=1.5) == [3, 0, 2]
        assert select("prob-cover", line, [], 3, radius=1.5, exhausted="id") == [3, 0, 1]

    def test_what_is_as_far_as_the_radius_is_not_covered(self) -> None:
        # Otherwise 1 would cover all three.
        assert select("prob-cover", [0, 1, 2, 9], [], 2, radius=1.0) == [0, 1]
        assert select("prob-cover", [0, 1, 2, 9], [], 2, radius=1.0001) == [1, 3]

    def test_more_than_all_is_covered_a_second_time_and_nothing_comes_twice(self) -> None:
        assert select("prob-cover", [0, 0.1, 0.2, 5, 5.1, 5.3], [], 5, radius=1) == [0, 3, 1, 4, 2]

    def test_estimated_radius_by_hand(self) -> None:
        line = torch.tensor([0, 0.03, 0.06, 0.5, 0.53, 0.56], dtype=torch.float64)[:, None]
        clusters = torch.tensor([0, 0, 0, 1, 1, 1])
        # Distances to the other cluster are .5, .47, .44, .44, .47, .5.
        assert pure_radius(line, clusters, 1.0) == pytest.approx(0.4)
        assert pure_radius(line, clusters, 0.6) == pytest.approx(0.45)
        mixed = torch.tensor([0, 1, 0, 1, 0, 1])
        assert pure_radius(line, mixed, 0.95) == RADII[0]
        assert pure_radius(line, torch.zeros(6), 0.95) == 1

    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), clusters=st.integers(1, 3))
    def test_estimated_radius_agrees_with_all_pairs(
        self, seed: int, size: int, clusters: int
    ) -> None:
        random = np.random.default_rng(seed)
        # Multiples of .05 and some more, so that distances lie a hair beside the radii.
        values = random.integers(0, 12, (size, 1)) / 20 + 1e-9 * np.arange(size)[:, None]
        labels = random.integers(0, clusters, size)
        purity = float(random.choice([0.05, 0.5, 0.95, 1.0]))
        squared = np.square(values - values.T)
        squared[labels[:, None] == labels] = np.inf
        nearest = squared.min(axis=1)
        pure = [r for r in RADII if np.mean(nearest >= r * r) >= purity]
        found = pure_radius(torch.tensor(values), torch.tensor(labels), purity)
        assert found == max(pure, default=RADII[0])

    def test_radius_is_estimated_where_none_is_set(self) -> None:
        """Clusters at 0, 1 and 2: with a ball of 1 the middle one's samples cover all."""
        random = np.random.default_rng(0)
        line = (np.arange(60) % 3 + random.uniform(-0.02, 0.02, 60)).tolist()
        selected = select("prob-cover", line, [], 3, num_classes=3)
        assert sorted(i % 3 for i in selected) == [0, 1, 2]


class TestMaxHerding:
    def test_by_hand(self) -> None:
        assert select("max-herding", [0, 1, 3], [], 2) == [1, 2]
        assert select("max-herding", [1, 3], [0], 1) == [1]

    def test_kernels_are_those_that_are_set(self) -> None:
        """Each picks what it gains most by, which is another sample for each."""
        line = np.random.default_rng(2).uniform(0, 12, 25)
        values, weights = line[:, None].tolist(), [1.0] * 25
        chosen = {
            kernel: select("max-herding", values[:22], values[22:], 7, kernel=kernel, radius=RADIUS)
            for kernel in KERNELS
        }
        for kernel, picked in chosen.items():
            assert picked == eager_coverage(values, 22, weights, kernel, 7, True), kernel
        assert len({tuple(picked) for picked in chosen.values()}) == len(KERNELS)
        by_default = select("max-herding", values[:22], values[22:], 7, radius=RADIUS)
        assert by_default == chosen["gaussian"]

    def test_duplicates_are_distinct_samples(self) -> None:
        assert select("max-herding", [4] * 6, [], 4) == [0, 1, 2, 3]
        assert select("max-herding", [4] * 6, [4], 4) == [0, 1, 2, 3]

    def test_with_a_top_hat_it_is_prob_cover(self) -> None:
        line = np.random.default_rng(0).uniform(0, 9, 40).tolist()
        hat: dict[str, Scalar] = {"kernel": "top-hat", "radius": 0.7}
        assert select("max-herding", line[5:], line[:5], 9, **hat) == select(
            "prob-cover", line[5:], line[:5], 9, radius=0.7
        )


@pytest.mark.parametrize("name", ["prob-cover", "max-herding"])
class TestCoveringStrategies:
    def test_lengths_of_embeddings_count_only_if_wanted(self, name: str) -> None:
        plane = np.random.default_rng(0).normal(size=(30, 2))
        longer = plane * np.random.default_rng(1).uniform(1, 9, (30, 1))
        chosen, again = (
            select(name, values.tolist(), [], 6, radius=0.3, normalise=True)
            for values in (plane, longer)
        )
        assert chosen == again
        plain = [select(name, v.tolist(), [], 6, radius=0.3) for v in (plane, longer)]
        assert plain[0] != plain[1]

    @pytest.mark.slow
    def test_of_many_samples_some_are_covered_and_all_may_be_chosen(self, name: str) -> None:
        plane = np.random.default_rng(0).normal(size=(300, 2)).tolist()
        thinned: dict[str, Scalar] = {"radius": 0.3, "reference-points": 30}
        chosen = select(name, plane, [], 100, **thinned)
        assert chosen == select(name, plane, [], 100, **thinned)
        assert chosen != select(name, plane, [], 100, radius=0.3)
        everything = select(name, plane, [], 100, radius=0.3, **{"reference-points": 0})
        assert everything == select(name, plane, [], 100, radius=0.3)
