from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.pools import context_of

from ahfal_app.parameters import Scalar
from ahfal_app.query import PoolView, Signal, checked_select, drop_query, make_strategy
from ahfal_app.query.core import points
from ahfal_app.query.core.clustering import representatives
from ahfal_app.query.drop_query import DropQuery

IDENTITY = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


class Masks:
    """Stands in for a generator: the uniform numbers are given."""

    def __init__(self, uniform: Any) -> None:
        self._uniform = np.array(uniform, dtype=np.float32)

    def random(self, shape: tuple[int, int], dtype: Any) -> np.ndarray:
        assert shape == self._uniform.shape
        return self._uniform


def pool_of(embeddings: Any, head: torch.Tensor = IDENTITY, model: str = "local") -> PoolView:
    embeddings_ND = torch.as_tensor(embeddings, dtype=torch.float32)
    return PoolView(
        np.arange(len(embeddings_ND)),
        {
            Signal(f"{model}-embeddings"): lambda: embeddings_ND,
            Signal(f"{model}-head"): lambda: head,
        },
    )


def select(pool: PoolView, budget: int, **parameters: Scalar) -> list[int]:
    strategy = make_strategy("drop-query", parameters)
    return [int(i) for i in checked_select(strategy, pool, context_of(budget, [1, 1]))]


def candidates(changes: list[int], budget: int, **parameters: Scalar) -> list[int]:
    strategy = make_strategy("drop-query", parameters)
    assert isinstance(strategy, DropQuery)
    return strategy._candidates(torch.tensor(changes), budget).tolist()  # type: ignore[no-any-return]


def test_a_mask_by_hand() -> None:
    """Of (1, 2) the second entry is dropped and the first doubled: class 0 instead of 1."""
    embeddings = torch.tensor([[1.0, 2.0]])
    assert drop_query._predicted(embeddings, IDENTITY, 0.0, None).tolist() == [1]
    mask: Any = Masks([[0.6, 0.4]])
    assert drop_query._predicted(embeddings, IDENTITY, 0.5, mask).tolist() == [0]
    # With a bias of 3 for class 1 even the doubled first entry does not suffice.
    biased = IDENTITY + torch.tensor([[0, 0, 0], [0, 0, 3.0]])
    assert drop_query._predicted(embeddings, biased, 0.5, mask).tolist() == [1]


def test_how_often_a_prediction_must_change_by_hand() -> None:
    changes = [3, 2, 1, 0, 0]
    assert candidates(changes, 1) == [0, 1, 2]
    assert candidates(changes, 1, **{"candidates-per-label": 1}) == [0, 1]
    assert candidates(changes, 2, **{"candidates-per-label": 1}) == [0, 1]
    assert candidates(changes, 3, **{"candidates-per-label": 1}) == [0, 1, 2]
    assert candidates([0] * 5, 2) == []
    assert candidates([5, 4, 3, 2, 1], 1, passes=5, **{"candidates-per-label": 4}) == [0, 1, 2, 3]


def test_one_cluster_gives_the_nearest_to_its_mean() -> None:
    line = torch.tensor([[0.0], [4.0], [5.0]])
    assert representatives(line, 1, np.random.default_rng(0)).tolist() == [1]


def test_large_clusters_come_first_and_empty_ones_are_filled() -> None:
    line = torch.tensor([[0.0], [0.0], [9.0], [9.1], [8.9], [20.0]])
    assert representatives(line, 3, np.random.default_rng(0)).tolist() == [2, 0, 5]
    # Four distinct points, of which none is left for the fifth: then the lowest position.
    same = torch.tensor([[0.0], [0.0], [0.0], [7.0], [7.0]])
    assert sorted(representatives(same, 4, np.random.default_rng(0)).tolist()) == [0, 1, 2, 3]


def test_without_dropout_nothing_changes_and_all_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = pool_of(torch.randn(40, 2, generator=generator))
    draws = {
        tuple(
            checked_select(
                make_strategy("drop-query", {"dropout": 0.0}),
                pool,
                context_of(2, [1, 1], cycle=cycle),
            )
        )
        for cycle in range(30)
    }
    assert len(draws) > 25


def test_few_candidates_are_all_taken_before_the_draw() -> None:
    """Only samples near the border of the two classes change when an entry is dropped."""
    sure = [[9.0, 0.0]] * 30
    doubtful = [[1.0, 1.1], [1.2, 1.1]]
    head = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    pool = pool_of(sure[:10] + doubtful + sure[10:], head)
    chosen = select(pool, 4, passes=9)
    assert set(chosen[:1]) <= {10, 11}
    assert len(set(chosen)) == 4
    assert chosen[1:] != [0, 1, 2]


@pytest.mark.parametrize("model", ["local", "global"])
def test_one_model_alone_is_asked(model: str) -> None:
    embeddings = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    chosen = select(pool_of(embeddings, model=model), 3, model=model)
    assert chosen == select(pool_of(embeddings), 3)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(torch.randn(60, 2, generator=torch.Generator().manual_seed(0)))
    expected = select(pool, 9)
    monkeypatch.setattr(points, "ROWS", 7)
    assert select(pool, 9) == expected


def test_centroids_take_one_of_each_group() -> None:
    angles = np.repeat([0.1, 1.2, 2.9], [5, 9, 7]) + np.linspace(-0.02, 0.02, 21)
    lengths = np.random.default_rng(0).uniform(1, 5, 21)
    plane = np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
    pool = PoolView(np.arange(21), {Signal.LOCAL_EMBEDDINGS: lambda: torch.tensor(plane)})
    chosen = checked_select(make_strategy("centroids"), pool, context_of(3, [0, 0]))
    groups = np.repeat([0, 1, 2], [5, 9, 7])[chosen]
    assert groups.tolist() == [1, 2, 0]
    assert not make_strategy("centroids").needs_labels
