from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference_baselines as reference
from support.pools import context_of
from torch import Tensor

from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.core import neighbourhood
from ahfal_app.query.typicality import Typicality


def typicality(**parameters: Any) -> Typicality:
    named = {key.replace("_", "-"): value for key, value in parameters.items()}
    strategy = make_strategy("typicality", {"normalise": False, **named})
    assert isinstance(strategy, Typicality)
    return strategy


def pool(embeddings: Any, labelled: Any = (), model: str = "local") -> PoolView:
    pool_ND = torch.as_tensor(np.array(embeddings), dtype=torch.float64)
    labelled_LD = torch.as_tensor(np.array(labelled), dtype=torch.float64)
    return PoolView(
        np.arange(len(pool_ND)),
        {
            Signal(f"{model}-embeddings"): lambda: pool_ND,
            Signal(f"labelled-{model}-embeddings"): lambda: labelled_LD.reshape(
                -1, pool_ND.shape[1]
            ),
        },
    )


def clustered_as(monkeypatch: pytest.MonkeyPatch, numbers: Any) -> None:
    """Have k-means answer with these clusters of the pool and of the labelled set."""

    def k_means(embeddings_ND: Tensor, num_clusters: int, generator: object) -> Any:
        assert len(embeddings_ND) == len(numbers)
        return np.asarray(numbers)

    monkeypatch.setattr("ahfal_app.query.typicality.k_means", k_means)


LINE = [[0.0], [4.0], [5.0], [5.5], [7.0], [11.0], [20.0]]
MEAN_DISTANCES = [4.5, 1.25, 0.75, 1.0, 1.75, 4.75, 11.0]
MEAN_SQUARES = [20.5, 1.625, 0.625, 1.25, 3.125, 26.0, 125.0]


class TestScores:
    @pytest.mark.parametrize(
        ("distance", "means"), [("euclidean", MEAN_DISTANCES), ("squared", MEAN_SQUARES)]
    )
    def test_by_hand(self, distance: str, means: list[float]) -> None:
        strategy = typicality(neighbours=2, max_clusters=1, distance=distance)
        scores = strategy.scores(pool(LINE), context_of(1, [1, 1]))
        if distance == "squared":
            means = [sum(sorted((x - y) ** 2 for [y] in LINE)[1:3]) / 2 for [x] in LINE]
        assert scores.tolist() == pytest.approx([1 / (mean + 1e-5) for mean in means])
        assert checked_select(strategy, pool(LINE), context_of(1, [1, 1])).tolist() == [2]

    def test_of_unit_vectors_by_hand(self) -> None:
        """Chord distances between 0°, 2°, 3°, 7° and 30°; then without the one that was taken."""
        degrees = np.radians([0, 2, 3, 7, 30])
        circle = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
        strategy = typicality(neighbours=2, max_clusters=1, normalise=True)
        scores = strategy.scores(pool(circle.tolist()), context_of(1, [1, 1]))
        expected = [22.9151, 38.1841, 28.6422, 12.7342, 2.3104]
        assert scores.tolist() == pytest.approx(expected, abs=1e-3)
        chosen = checked_select(strategy, pool(circle.tolist()), context_of(2, [1, 1]))
        assert chosen.tolist() == [1, 2]
        left = circle[[0, 2, 3, 4]].tolist()
        again = strategy.scores(pool(left), context_of(1, [1, 1]))
        assert again.tolist() == pytest.approx([11.4632, 16.3702, 10.4212, 2.3104], abs=1e-3)

    def test_of_the_global_model(self) -> None:
        local, global_ = typicality(max_clusters=1), typicality(max_clusters=1, model="global")
        context, labelled = context_of(2, [1, 1]), [[5.2]]
        scores = global_.scores(pool(LINE, labelled, model="global"), context)
        assert torch.equal(scores, local.scores(pool(LINE, labelled), context))

    def test_half_of_a_small_cluster(self) -> None:
        # Of seven samples three neighbours count, although twenty are allowed.
        scores = typicality(max_clusters=1).scores(pool(LINE), context_of(1, [1, 1]))
        assert scores[0].item() == pytest.approx(1 / ((4 + 5 + 5.5) / 3 + 1e-5))

    def test_only_within_the_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clustered_as(monkeypatch, [0, 1, 0, 1, 2])
        embeddings = [[0.0], [0.1], [1.0], [3.0], [0.2]]
        scores = typicality().scores(pool(embeddings), context_of(3, [1, 1]))
        assert scores.tolist() == pytest.approx([1, 1 / 2.9, 1, 1 / 2.9, 0], rel=1e-4)

    def test_labelled_samples_are_no_neighbours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clustered_as(monkeypatch, [0, 0, 0])
        scores = typicality().scores(pool([[0.0], [4.0]], [[0.1]]), context_of(1, [1, 1]))
        assert scores.tolist() == pytest.approx([0.25, 0.25], rel=1e-4)

    def test_length_does_not_count_where_it_is_normalised(self) -> None:
        random = np.random.default_rng(0)
        directions, lengths = random.normal(size=(40, 3)), random.uniform(0.1, 9, (40, 1))
        scores = [
            typicality(normalise=True).scores(pool(values), context_of(4, [1, 1]))
            for values in (directions, directions * lengths)
        ]
        torch.testing.assert_close(scores[0], scores[1])

    def test_zero_embeddings_stay_zero(self) -> None:
        strategy = typicality(normalise=True)
        scores = strategy.scores(pool([[0.0, 0.0]] * 4 + [[1.0, 0.0]] * 4), context_of(2, [1, 1]))
        assert scores.tolist() == pytest.approx([1e5] * 8)

    def test_without_budget_and_labels(self) -> None:
        scores = typicality().scores(pool(LINE), context_of(0, [1, 1]))
        assert scores[2].item() == pytest.approx(1 / ((0.5 + 1 + 2) / 3 + 1e-5))

    @pytest.mark.parametrize("block", [1, 50, 2**21])
    @pytest.mark.parametrize("distance", ["euclidean", "squared"])
    def test_agrees_with_the_slow_version(
        self, block: int, distance: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(neighbourhood, "BLOCK", block)
        values = np.random.default_rng(0).normal(size=(70, 3))
        scores = typicality(max_clusters=1, distance=distance).scores(
            pool(values), context_of(5, [1, 1])
        )
        expected = reference.typicalities(values.tolist(), range(70), 20, distance == "squared")
        assert scores.tolist() == pytest.approx(list(expected.values()))


class TestTurns:
    def test_fewest_labels_then_largest_and_small_ones_left_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A has 10 samples, one of them labelled, B has 8, D has 4.
        numbers = [0] * 9 + [1] * 8 + [2] * 4
        clustered_as(monkeypatch, [*numbers, 0])
        values = np.random.default_rng(0).normal(size=(21, 2))
        context = context_of(3, [1, 1])
        selected = checked_select(typicality(), pool(values, [[0.0, 0.0]]), context)
        assert [numbers[i] for i in selected] == [1, 0, 1]

    def test_exhausted_clusters_are_skipped_and_small_ones_come_last(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        numbers = [0] * 6 + [1] * 8 + [2] * 4 + [3]
        clustered_as(monkeypatch, numbers)
        values = np.random.default_rng(0).normal(size=(19, 2))
        selected = checked_select(typicality(), pool(values), context_of(18, [1, 1]))
        assert [numbers[i] for i in selected] == [1, 0] * 6 + [1, 1] + [2, 3, 2, 2]

    def test_all_clusters_too_small(self) -> None:
        values = [[0.0], [2.0], [3.0], [90.0], [91.0], [50.0]]
        selected = checked_select(typicality(), pool(values), context_of(3, [1, 1]))
        # Of the largest, whose last two are the nearest; of the next; of the smallest.
        assert selected.tolist() == [1, 3, 5]

    def test_samples_that_were_taken_are_no_neighbours(self) -> None:
        # Without 5, the nearest to its neighbours is 5.5, and after that 7.
        strategy = typicality(neighbours=2, max_clusters=1)
        selected = checked_select(strategy, pool(LINE), context_of(4, [1, 1]))
        taken: list[int] = []
        for position in selected.tolist():
            left = [i for i in range(7) if i not in taken]
            scores = reference.typicalities(LINE, left, 2, squared=False)
            assert scores[position] == max(scores.values())
            taken.append(position)

    @pytest.mark.slow
    def test_equal_samples_are_not_searched_again_for_each_that_is_taken(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with a network whose features have died: all have the same neighbours."""
        searched = []
        original = neighbourhood.Neighbourhood._search

        def search(self: neighbourhood.Neighbourhood, rows: Tensor) -> None:
            searched.append(len(rows))
            original(self, rows)

        monkeypatch.setattr(neighbourhood.Neighbourhood, "_search", search)
        equal = pool(np.zeros((2000, 2)))
        selected = checked_select(typicality(), equal, context_of(40, [1, 1]))
        assert selected.tolist() == list(range(40))
        assert sum(searched) <= 2000 + 10 * 40

    def test_more_clusters_wanted_than_samples_differ(self) -> None:
        selected = checked_select(
            typicality(), pool([[1.0, 2.0]] * 5 + [[3.0, 1.0]] * 5), context_of(7, [1, 1])
        )
        assert sorted(selected.tolist())[:1] == [0]
        assert len(set(selected.tolist())) == 7

    def test_clusters_are_of_labelled_set_and_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = []

        def k_means(embeddings_ND: Tensor, num_clusters: int, generator: object) -> Any:
            wanted.append(num_clusters)
            return np.arange(len(embeddings_ND)) % num_clusters

        monkeypatch.setattr("ahfal_app.query.typicality.k_means", k_means)
        values = np.random.default_rng(0).normal(size=(30, 2))
        for limit in (500, 6):
            strategy = typicality(max_clusters=limit)
            checked_select(strategy, pool(values[:20], values[20:]), context_of(4, [1, 1]))
        assert wanted == [14, 6]


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 50),
    num_labelled=st.integers(0, 12),
    num_clusters=st.integers(1, 8),
    min_size=st.integers(0, 8),
    neighbours=st.integers(1, 6),
    distance=st.sampled_from(["euclidean", "squared"]),
)
def test_agrees_with_the_slow_version(
    seed: int,
    size: int,
    num_labelled: int,
    num_clusters: int,
    min_size: int,
    neighbours: int,
    distance: str,
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 9, (size + num_labelled, 2)).astype(float)
    num_clusters = min(num_clusters, size)
    numbers = random.integers(0, num_clusters, size + num_labelled).tolist()
    budget = int(random.integers(1, size))
    strategy = typicality(
        min_cluster_size=min_size,
        neighbours=neighbours,
        distance=distance,
        max_clusters=num_clusters,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        clustered_as(monkeypatch, numbers)
        both = pool(values[:size], values[size:])
        # As many clusters as are numbered, whatever the budget.
        context = context_of(max(budget, num_clusters - num_labelled), [1, 1])
        selected = checked_select(strategy, both, context).tolist()
    order = reference.turns(numbers[:size], numbers[size:], min_size)
    left = set(range(size))
    if len(selected) == size:
        return
    for position, cluster in zip(selected, order, strict=False):
        members = sorted(i for i in left if numbers[i] == cluster)
        scores = reference.typicalities(values.tolist(), members, neighbours, distance == "squared")
        # Sums of the same distances in another order may differ in the last digit.
        assert scores[position] >= max(scores.values()) * (1 - 1e-12)
        left.remove(position)
