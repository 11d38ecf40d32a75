"""Lloyd's algorithm from several seedings at once, beside scikit-learn and plain loops.

Shape suffixes: N points, D width, K clusters, S starts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from ahfal_app.query.core import lloyd as module
from ahfal_app.query.core.clustering import lloyd
from ahfal_app.query.core.lloyd import best_clusters, lloyd_clusters, seeds


def random_points(seed: int, size: int, width: int) -> torch.Tensor:
    """Points about the origin. Shape (N, D)."""
    points = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
    return points - points.mean(dim=0)


class TestClusters:
    def test_clusters_do_not_depend_on_place_and_scale(self) -> None:
        points = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)).double()
        expected = lloyd(points, 7, 1, np.random.default_rng(0))
        assert len(np.unique(expected)) == 7
        for moved in (points * 1e30, points * 1e-30, points * 2.0**40 + 2.0**44):
            assert lloyd(moved, 7, 1, np.random.default_rng(0)).tolist() == expected.tolist()

    def test_no_point_is_nearer_to_another_mean(self) -> None:
        """What convergence means."""
        points = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)).double()
        clusters = torch.from_numpy(lloyd(points, 9, 1, np.random.default_rng(0)))
        means = torch.stack([points[clusters == k].mean(dim=0) for k in range(9)])
        assert torch.equal(torch.cdist(points, means).argmin(dim=1), clusters)

    def test_more_starts_are_no_worse(self) -> None:
        points = torch.randn(300, 2, generator=torch.Generator().manual_seed(2)).double()

        def spread(starts: int) -> float:
            clusters = torch.from_numpy(lloyd(points, 20, starts, np.random.default_rng(5)))
            groups = [points[clusters == k] for k in range(20)]
            return float(sum((group - group.mean(dim=0)).square().sum() for group in groups))

        assert spread(10) < spread(1)

    def test_as_many_clusters_as_points_and_equal_points(self) -> None:
        points = torch.arange(12.0).double()[:, None]
        assert sorted(lloyd(points, 12, 1, np.random.default_rng(0))) == list(range(12))
        assert set(lloyd(points * 0, 5, 1, np.random.default_rng(0))) == {0}
        signed = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [3.0, 1.0]]).double()
        assert len(set(lloyd(signed, 3, 1, np.random.default_rng(0)))) == 2


def slow_seeds(
    points: torch.Tensor, num_clusters: int, starts: int, generator: np.random.Generator
) -> list[list[int]]:
    """Greedy k-means++ start by start, with the draws of all starts made together."""
    size = len(points)
    trials = 2 + int(math.log(num_clusters))
    squared = torch.cdist(points.double(), points.double()).square().numpy()
    chosen = [[int(i)] for i in generator.integers(size, size=starts)]
    for _ in range(1, num_clusters):
        for seeds_of_one, draws in zip(chosen, generator.random((starts, trials)), strict=True):
            nearest = squared[seeds_of_one].min(axis=0)
            shares = np.cumsum(nearest)
            candidates = [
                next(i for i in range(size) if shares[i] > draw * shares[-1]) for draw in draws
            ]
            left = [np.minimum(nearest, squared[c]).sum() for c in candidates]
            best = next(i for i, each in enumerate(left) if each <= min(left) * (1 + 1e-6))
            seeds_of_one.append(candidates[best])
    return chosen


class TestSeeds:
    @settings(deadline=None, max_examples=30)
    @given(
        seed=st.integers(0, 10_000),
        num_clusters=st.integers(1, 12),
        starts=st.integers(1, 4),
    )
    def test_equal_plain_loops(self, seed: int, num_clusters: int, starts: int) -> None:
        points = random_points(seed, 40, 3).double()
        ours = seeds(points, num_clusters, starts, np.random.default_rng(seed))
        assert ours.tolist() == slow_seeds(
            points, num_clusters, starts, np.random.default_rng(seed)
        )

    def test_candidates_that_leave_the_same_are_not_told_apart_by_rounding(self) -> None:
        """Points that are each other's nearest often do; whoever is drawn first is taken."""
        sums = torch.tensor(
            [[3.0, 2.0 + 1e-12, 2.0], [2.0, 2.0 - 1e-12, 5.0], [2.0, 1.9, 2.0]], dtype=torch.float64
        )
        assert module._first_smallest(sums).tolist() == [1, 0, 1]

    def test_distances_of_all_pairs_at_once_are_those_of_each_candidate(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And no more than all pairs' are computed, however many candidates there are."""
        points = random_points(6, 120, 4).double()
        computed: list[int] = []
        squared = module._PairwiseDistances._squared

        def counted(
            self: module._PairwiseDistances, rows: torch.Tensor | slice, columns: slice
        ) -> torch.Tensor:
            distances = squared(self, rows, columns)
            computed.append(distances.numel())
            return distances

        monkeypatch.setattr(module._PairwiseDistances, "_squared", counted)
        at_once = seeds(points, 30, 4, np.random.default_rng(0))
        assert sum(computed) == 120 * 120
        computed.clear()
        monkeypatch.setattr(module, "_KEPT", 120 * 120 - 1)
        assert torch.equal(seeds(points, 30, 4, np.random.default_rng(0)), at_once)
        assert sum(computed) == 4 * 120 + 29 * 4 * 5 * 120

    def test_all_distinct_points_are_seeds_before_one_is_twice(self) -> None:
        points = torch.arange(6.0).repeat(5)[:, None] - 2.5
        for chosen in seeds(points, 6, 10, np.random.default_rng(0)).tolist():
            assert sorted(i % 6 for i in chosen) == list(range(6))


class TestBestClusters:
    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 10_000), num_clusters=st.integers(1, 15))
    def test_one_start_equals_scikit_learn(self, seed: int, num_clusters: int) -> None:
        # In double precision: a tie by rounding, of one case in thousands, leads elsewhere.
        points = random_points(seed, 300, 4).double()
        centres = points[:num_clusters]
        theirs = KMeans(num_clusters, init=centres.numpy(), n_init=1).fit_predict(points.numpy())
        assert best_clusters(points, centres[None]).tolist() == theirs.tolist()

    def test_the_best_start_is_the_one_that_scikit_learn_finds_best(self) -> None:
        for seed in range(10):
            points = random_points(seed, 200, 2).double()
            starts = [random_points(seed * 10 + s, 12, 2) for s in range(6)]
            centres = torch.stack(starts).double()
            models = [KMeans(12, init=c.numpy(), n_init=1).fit(points.numpy()) for c in centres]
            best = min(models, key=lambda model: model.inertia_)
            assert best_clusters(points, centres).tolist() == best.labels_.tolist()

    def test_starts_do_not_disturb_each_other(self) -> None:
        points = random_points(3, 150, 3)
        centres = torch.stack([points[s * 9 : s * 9 + 9] for s in range(5)])
        together = best_clusters(points, centres).tolist()
        assert together in [best_clusters(points, one[None]).tolist() for one in centres]

    def test_blocks_of_points_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points = random_points(4, 333, 5)
        centres = points[None, :8].repeat(2, 1, 1)
        whole = best_clusters(points, centres)
        monkeypatch.setattr(module, "_DISTANCES", 160)
        monkeypatch.setattr(module, "_ROWS", 7)
        assert torch.equal(best_clusters(points, centres), whole)

    def test_distances_that_are_kept_are_those_that_are_computed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points = random_points(5, 700, 6)
        centres = torch.stack([points[s * 40 : s * 40 + 40] for s in range(3)])
        kept = best_clusters(points, centres)
        products: list[int] = []
        distances = module._distances

        def counted(centres_KD: torch.Tensor, points_ND: torch.Tensor) -> torch.Tensor:
            products.append(len(centres_KD) * len(points_ND))
            return distances(centres_KD, points_ND)

        monkeypatch.setattr(module, "_distances", counted)
        assert torch.equal(best_clusters(points, centres), kept)
        number = sum(products)
        monkeypatch.setattr(module, "_KEPT", 0)
        assert torch.equal(best_clusters(points, centres), kept)
        assert number < 0.8 * (sum(products) - number)

    def test_an_empty_cluster_begins_again_with_the_furthest_point(self) -> None:
        """{0, 1} about 0.5 and {9, 12} about 10.5: 9 and 12 are the furthest, 9 comes first."""
        points = torch.tensor([[0.0], [1.0], [9.0], [12.0]])
        centres = torch.tensor([[[0.5], [10.5], [1000.0]]])
        assert best_clusters(points, centres).tolist() == [0, 0, 2, 1]

    def test_all_centres_at_one_place(self) -> None:
        points = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        clusters = best_clusters(points, torch.zeros(1, 4, 1))
        assert sorted(clusters.tolist()) == [0, 1, 2, 3]

    def test_every_cluster_has_points(self) -> None:
        for seed in range(20):
            points = random_points(seed, 30, 2)
            clusters = lloyd_clusters(points, 25, 3, np.random.default_rng(seed))
            assert len(set(clusters.tolist())) == 25
