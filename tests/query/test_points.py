"""Distances in blocks, greedy k-center, D² sampling, k-means."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import reference_baselines as reference
from support.pools import chi_square
from threadpoolctl import threadpool_info, threadpool_limits

from ahfal_app.query.core import clustering, k_center, nearness, points
from ahfal_app.query.core.clustering import k_means
from ahfal_app.query.core.d_squared import d_squared_sampling
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.nearness import Nearness
from ahfal_app.query.core.points import EmbeddingPoints, OuterProductPoints, row_blocks


def embedding_points(values: Any) -> EmbeddingPoints:
    return EmbeddingPoints(torch.as_tensor(values, dtype=torch.float64))


def grid(seed: int, size: int, width: int = 2) -> NDArray[np.int64]:
    """Return points with whole numbers, of which some are equal and many equally far."""
    return np.random.default_rng(seed).integers(0, 5, (size, width))


class TestDistances:
    def test_embeddings(self) -> None:
        values = np.random.default_rng(0).normal(size=(30, 7))
        distances = embedding_points(values).squared_distances(slice(3, 20), torch.arange(30))
        expected = ((values[3:20, None] - values) ** 2).sum(axis=2)
        np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-12)

    def test_outer_products(self) -> None:
        random = np.random.default_rng(0)
        left, right = random.normal(size=(30, 4)), random.normal(size=(30, 7))
        outer = (left[:, :, None] * right[:, None, :]).reshape(30, 28)
        product = OuterProductPoints(torch.tensor(left), torch.tensor(right))
        np.testing.assert_allclose(product.squared_norms_N, (outer**2).sum(axis=1))
        distances = product.squared_distances(torch.arange(30), torch.arange(5, 9))
        expected = ((outer[:, None] - outer[5:9]) ** 2).sum(axis=2)
        np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-12)

    def test_near_points_keep_their_distance_and_equal_points_have_none(self) -> None:
        values = np.full((3, 100), 1000.0)
        values[1, 0] += 0.01
        distances = embedding_points(values).squared_distances(slice(None), torch.arange(3))
        expected = [[0, 1e-4, 0], [1e-4, 0, 1e-4], [0, 1e-4, 0]]
        np.testing.assert_allclose(distances, expected, rtol=1e-3)
        assert distances[0, 2] == distances[0, 0] == 0

    @pytest.mark.parametrize("width", [3, 61, 512, 1280])
    def test_rounding_does_not_part_equal_points(self, width: int) -> None:
        values = np.random.default_rng(0).normal(size=(3, width)) + 5
        tripled = embedding_points(np.tile(values, (41, 1)))
        distances = tripled.squared_distances(slice(None), torch.arange(5, 122))
        same = (np.arange(123)[:, None] - np.arange(5, 122)) % 3 == 0
        assert not distances.numpy()[same].any()
        assert distances.numpy()[~same].all()

    @pytest.mark.parametrize("at_once", [1, 2**20])
    def test_of_points_that_are_no_rows(
        self, monkeypatch: pytest.MonkeyPatch, at_once: int
    ) -> None:
        """A point that is a row has no distance to it, and one near a row keeps its distance."""
        monkeypatch.setattr(points, "PAIRED", at_once)
        values = np.random.default_rng(0).normal(size=(2500, 7)) + 1000
        others = np.random.default_rng(1).normal(size=(5, 7)) + 1000
        others[2] = values[1700]
        others[3] = values[40] + [1e-6, 0, 0, 0, 0, 0, 0]
        distances = embedding_points(values).squared_distances_to(torch.tensor(others))
        expected = ((others[:, None] - values) ** 2).sum(axis=2)
        np.testing.assert_allclose(distances, expected, rtol=1e-9)
        assert distances[2, 1700] == 0
        assert distances[3, 40] == pytest.approx(1e-12, rel=1e-3)
        assert embedding_points(values).squared_distances_to(torch.empty(0, 7).double()).shape == (
            0,
            2500,
        )

    def test_float32_is_computed_in_float64(self) -> None:
        values = torch.tensor([[1e30, 1.0], [1e30, 2.0], [-1e30, 0.0]])
        distances = EmbeddingPoints(values).squared_distances(slice(None), torch.arange(3))
        assert torch.isfinite(distances).all()
        assert distances[0, 2] == pytest.approx(4e60, rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    @given(
        seed=st.integers(0, 2**32 - 1),
        width=st.integers(1, 300),
        scale=st.sampled_from([1e-4, 1.0, 1e4]),
        offset=st.sampled_from([0.0, 1.0, 30.0]),
    )
    @settings(max_examples=25)
    def test_no_distance_is_below_its_bound_and_few_are_far_above(
        self, dtype: torch.dtype, seed: int, width: int, scale: float, offset: float
    ) -> None:
        random = np.random.default_rng(seed)
        # Some points are equal, and some differ in their last digits.
        values = random.normal(offset, 1, (40, width))[random.integers(0, 40, 60)]
        values[::3] += 1e-7
        of_type = torch.as_tensor(values, dtype=dtype) * (1 if dtype is torch.float16 else scale)
        of_points = EmbeddingPoints(of_type)
        exact = of_points.squared_distances(slice(0, 60), torch.arange(60))
        bounds = of_points.distance_bounds(slice(0, 60), torch.arange(60))
        assert bounds.dtype == torch.float32
        assert (bounds.double() <= exact).all()
        norms = of_points.squared_norms_N[:, None] + of_points.squared_norms_N
        assert (exact - bounds.double() <= (2 * width + 60) * 2.0**-24 * norms).all()

    @pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
    def test_what_single_precision_does_not_hold_is_bounded_by_itself(self, size: float) -> None:
        values = np.random.default_rng(0).normal(size=(9, 5)) * size
        of_points = embedding_points(values)
        bounds = of_points.distance_bounds(slice(0, 9), slice(0, 9))
        assert bounds.equal(of_points.squared_distances(slice(0, 9), slice(0, 9)))

    def test_a_few_large_numbers_do_not_hide_small_ones(self) -> None:
        of_points = embedding_points([[0.0], [1e-40], [2e-40], [1.0]])
        bounds = of_points.distance_bounds(slice(0, 4), slice(0, 4)).double()
        assert (bounds <= of_points.squared_distances(slice(0, 4), slice(0, 4))).all()

    def test_bounds_are_not_of_products_that_torch_rounds_further(self) -> None:
        of_points = embedding_points(np.random.default_rng(0).normal(size=(9, 5)))
        torch.set_float32_matmul_precision("medium")
        try:
            bounds = of_points.distance_bounds(slice(0, 9), slice(0, 9))
        finally:
            torch.set_float32_matmul_precision("highest")
        assert bounds.equal(of_points.squared_distances(slice(0, 9), slice(0, 9)))

    @pytest.mark.parametrize("kept", [0, 10**6])
    @pytest.mark.parametrize("references", [slice(0, 50), slice(0, 40), slice(3, 50, 2)])
    def test_bounds_that_are_kept_and_that_are_not(
        self, kept: int, references: slice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nearness, "KEPT", kept)
        monkeypatch.setattr(nearness, "ROWS", 16)
        monkeypatch.setattr(nearness, "row_blocks", lambda size, rows=16: row_blocks(size, rows))
        of_points = embedding_points(np.random.default_rng(0).normal(size=(50, 5)))
        references_R = torch.arange(50)[references]
        bounds = Nearness(of_points, 45, references_R)
        expected = of_points.distance_bounds(slice(0, 45), references_R)
        found = torch.cat([block for _, block in bounds.blocks()])
        torch.testing.assert_close(found, expected)
        some = torch.tensor([44, 0, 17])
        torch.testing.assert_close(bounds.of(some), expected[some])
        assert torch.cat([torch.arange(45)[rows] for rows, _ in bounds.blocks()]).tolist() == list(
            range(45)
        )

    def test_nearest_centre_in_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(points, "ROWS", 4)
        monkeypatch.setattr(points, "CENTRES", 3)
        values = np.random.default_rng(0).normal(size=(23, 3))
        nearest = torch.full((18,), 0.5, dtype=torch.float64)
        embedding_points(values).lower(nearest, torch.arange(15, 23))
        expected = np.minimum(reference.nearest(values[:18].tolist(), values[15:].tolist()), 0.5)
        np.testing.assert_allclose(nearest, expected, atol=1e-12)


class TestGreedyKCenter:
    @given(
        seed=st.integers(0, 2**32 - 1),
        size=st.integers(1, 40),
        share=st.floats(0, 1),
        candidates=st.sampled_from([1, 2, 7, 512]),
        width=st.integers(1, 3),
    )
    def test_agrees_with_one_pass_for_each_pick(
        self, seed: int, size: int, share: float, candidates: int, width: int
    ) -> None:
        values = grid(seed, size, width)
        count = max(1, round(share * size))
        nearest = np.random.default_rng(seed).integers(0, 30, size).astype(float)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(k_center, "CANDIDATES", candidates)
            picks = greedy_k_center(embedding_points(values), torch.tensor(nearest), count)
        assert picks.tolist() == reference.k_center(values.tolist(), nearest.tolist(), count)

    def test_needs_few_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        passes = []
        lower = points.Points.lower

        def counted(*arguments: Any) -> None:
            passes.append(1)
            lower(*arguments)

        monkeypatch.setattr(points.Points, "lower", counted)
        values = np.random.default_rng(0).normal(size=(3000, 16))
        greedy_k_center(embedding_points(values), torch.full((3000,), 1e9).double(), 300)
        assert len(passes) < 30

    def test_distances_that_are_given_stay_as_they_are(self) -> None:
        nearest = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
        greedy_k_center(embedding_points([[0], [1], [2]]), nearest, 2)
        assert nearest.tolist() == [1, 5, 2]


class TestDSquaredSampling:
    # A draw of 10 makes 7 less likely by 40/49, 6 by 20/36, and leaves 4 and -3 as they were.
    LINE = ((0.0,), (10.0,), (7.0,), (6.0,), (4.0,), (-3.0,))

    @pytest.mark.slow
    def test_sequences_have_their_probability(self) -> None:
        line = embedding_points(self.LINE)
        drawn = Counter(
            tuple(d_squared_sampling(line, 0, 3, np.random.default_rng(seed)).tolist())
            for seed in range(2500)
        )
        probabilities = reference.sequence_probabilities(self.LINE, 0, 3)
        # With 19 degrees of freedom, exceeded once in a thousand.
        assert len(probabilities) == 20
        assert chi_square(drawn, probabilities) < 43.8

    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 30), width=st.integers(1, 4))
    def test_agrees_with_the_slow_version_on_equal_draws(
        self, seed: int, size: int, width: int
    ) -> None:
        values = np.random.default_rng(seed).normal(size=(size, width))
        count = 1 + size // 2
        uniform = np.random.default_rng(seed + 1).random
        expected = reference.rejection_seeding(values.tolist(), size - 1, count, uniform)
        generator = np.random.default_rng(seed + 1)
        drawn = d_squared_sampling(embedding_points(values), size - 1, count, generator)
        assert drawn.tolist() == expected

    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 60))
    def test_duplicates_come_last(self, seed: int, size: int) -> None:
        values = grid(seed, size)
        drawn = d_squared_sampling(embedding_points(values), 0, size, np.random.default_rng(seed))
        assert sorted(drawn) == list(range(size))
        distinct = len(np.unique(values, axis=0))
        assert len(np.unique(values[drawn[:distinct]], axis=0)) == distinct


class TestKMeans:
    @pytest.mark.parametrize("num_clusters", [7, 60])
    def test_finds_separate_groups(self, num_clusters: int) -> None:
        random = np.random.default_rng(0)
        groups = np.repeat(np.arange(num_clusters), 12)
        values = 100.0 * random.normal(size=(num_clusters, 8))[groups]
        values += random.normal(size=values.shape) / 100
        numbers = k_means(torch.tensor(values), num_clusters, random)
        pairs = set(zip(groups.tolist(), numbers.tolist(), strict=True))
        # The best of few starts may leave a group divided or two together.
        assert len(pairs) == num_clusters if num_clusters == 7 else len(pairs) < 1.2 * num_clusters
        assert numbers.dtype == np.int64
        assert numbers.max() < num_clusters

    @pytest.mark.slow
    @given(
        seed=st.integers(0, 1000),
        size=st.integers(1, 80),
        num_clusters=st.integers(1, 70),
        scale=st.sampled_from([1e-30, 1.0, 1e30]),
    )
    def test_fewer_distinct_points_than_clusters(
        self, seed: int, size: int, num_clusters: int, scale: float
    ) -> None:
        values = scale * grid(seed, size)
        numbers = k_means(torch.tensor(values), num_clusters, np.random.default_rng(seed))
        assert numbers.shape == (size,)
        assert numbers.min() >= 0
        assert numbers.max() < num_clusters

    @pytest.mark.parametrize(("num_clusters", "most"), [(7, 0), (60, 0), (60, 2000)])
    def test_equal_generators_give_equal_clusters(
        self, num_clusters: int, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clustering, "FULL_POINTS", most)
        values = torch.tensor(np.random.default_rng(0).normal(size=(2000, 8)))
        first, again, other = (
            k_means(values, num_clusters, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        assert first.tolist() == again.tolist()
        assert first.tolist() != other.tolist()

    def test_one_thread_so_that_sums_have_one_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = []
        values = np.random.default_rng(0).normal(size=(200, 2))
        fit_predict = clustering.MiniBatchKMeans.fit_predict

        def counted(*arguments: Any) -> Any:
            threads.extend(library["num_threads"] for library in threadpool_info())
            return fit_predict(*arguments)

        monkeypatch.setattr(clustering.MiniBatchKMeans, "fit_predict", counted)
        monkeypatch.setattr(clustering, "FULL_POINTS", 199)
        with threadpool_limits(2, user_api="openmp"):
            k_means(torch.tensor(values), 60, np.random.default_rng(0))
            after = {i["num_threads"] for i in threadpool_info() if i["user_api"] == "openmp"}
        assert set(threads) == {1}
        assert after == {2}

    @pytest.mark.parametrize(
        ("num_clusters", "most", "kind"),
        [(50, 199, "lloyd"), (51, 199, "MiniBatchKMeans"), (51, 200, "lloyd")],
    )
    def test_batches_for_many_clusters_of_many_points(
        self, num_clusters: int, most: int, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        monkeypatch.setattr(clustering, "FULL_POINTS", most)
        for name in ("lloyd", "MiniBatchKMeans"):
            model = getattr(clustering, name)

            def make(*arguments: Any, name: str = name, model: Any = model, **named: Any) -> Any:
                made.append(name)
                return model(*arguments, **named)

            monkeypatch.setattr(clustering, name, make)
        k_means(
            torch.tensor(np.random.default_rng(0).normal(size=(200, 2))),
            num_clusters,
            np.random.default_rng(0),
        )
        assert made == [kind]
