from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference_baselines as reference
from support.pools import context_of

from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.core import k_center


def select(embeddings: Any, labelled: Any, budget: int, model: str = "local") -> list[int]:
    pool_ND = torch.as_tensor(np.array(embeddings), dtype=torch.float32)
    labelled_LD = torch.as_tensor(np.array(labelled), dtype=torch.float32)
    pool = PoolView(
        np.arange(len(pool_ND)),
        {
            Signal(f"{model}-embeddings"): lambda: pool_ND,
            Signal(f"labelled-{model}-embeddings"): lambda: labelled_LD.reshape(
                -1, pool_ND.shape[1]
            ),
        },
    )
    strategy = make_strategy("core-set", {"model": model})
    return [int(i) for i in checked_select(strategy, pool, context_of(budget, [1, 1]))]


def test_by_hand() -> None:
    # The furthest from 0 is 10; then 4 and 6 are equally far, and the smaller id wins.
    assert select([[1], [4], [6], [10]], [[0]], 2) == [3, 1]


def test_the_global_model_alone_is_asked() -> None:
    assert select([[1], [4], [6], [10]], [[0]], 2, model="global") == [3, 1]
    assert select([[1], [4], [6], [10]], [], 2, model="global") == [2, 0]


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7, 6e-8])
def test_near_samples_are_not_duplicates(distance: float) -> None:
    """Down to neighbouring float32 numbers, relative to the length of an embedding."""
    labelled = [[1.0, 1.0]]
    pool = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0 + 2 * distance], [1.0, 1.0 - distance]]
    assert select(pool, labelled, 3) == [2, 3, 0]


def test_duplicates_of_what_was_chosen_come_last_and_only_once() -> None:
    assert select([[1], [4], [6], [10], [10], [10]], [[0]], 5) == [3, 1, 2, 0, 4]


def test_pool_of_duplicates_of_labelled_samples() -> None:
    assert select([[3.0, 1.0]] * 6, [[3.0, 1.0]], 4) == [0, 1, 2, 3]


def test_without_labelled_samples_it_begins_in_the_middle() -> None:
    assert select([[1], [4], [6], [10]], [], 2) == [2, 0]


def test_labelled_samples_are_covered_already() -> None:
    embeddings = [[0.0, 0.0], [9.0, 0.0], [0.0, 5.0], [0.0, 4.9]]
    assert select(embeddings, [[0.0, 0.0]], 1) == [1]
    assert select(embeddings, [[0.0, 0.0], [9.1, 0.0]], 1) == [2]


@pytest.mark.parametrize("candidates", [3, 512])
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 40),
    num_labelled=st.integers(1, 10),
    whole=st.booleans(),
)
def test_agrees_with_the_slow_version(
    candidates: int, seed: int, size: int, num_labelled: int, whole: bool
) -> None:
    random = np.random.default_rng(seed)
    # Whole numbers make exact ties and duplicates.
    values = (
        random.integers(0, 6, (size + num_labelled, 2))
        if whole
        else random.normal(size=(size + num_labelled, 5)).astype(np.float32)
    )
    pool, labelled = values[:size].tolist(), values[size:].tolist()
    budget = int(random.integers(1, size))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(k_center, "CANDIDATES", candidates)
        selected = select(pool, labelled, budget)
    assert selected == reference.k_center(pool, reference.nearest(pool, labelled), budget)
