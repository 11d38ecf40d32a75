from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference_baselines as reference
from support.pools import context_of, log, pool_of
from support.reference_ahfal import softmax
from torch import Tensor

from ahfal_app.query import ScoringStrategy, Signal, checked_select, make_strategy

ROWS = [(0.5, 0.5, 0.0), (0.6, 0.3, 0.1), (0.4, 0.3, 0.3), (1.0, 0.0, 0.0)]


def scores(name: str, logits: Tensor) -> list[float]:
    strategy = make_strategy(name)
    assert isinstance(strategy, ScoringStrategy)
    pool = pool_of({Signal.LOCAL_LOGITS: logits})
    values: list[float] = strategy.scores(pool, context_of(1, [1] * logits.shape[1])).tolist()
    return values


@pytest.mark.parametrize(
    ("name", "expected", "order"),
    [
        ("margin", [1.0, 0.7, 0.9, 0.0], [0, 2, 1]),
        ("least-confidence", [0.5, 0.4, 0.6, 0.0], [2, 0, 1]),
    ],
)
def test_by_hand(name: str, expected: list[float], order: list[int]) -> None:
    assert scores(name, log(*ROWS)) == pytest.approx(expected)
    pool = pool_of({Signal.LOCAL_LOGITS: log(*ROWS)})
    selected = checked_select(make_strategy(name), pool, context_of(3, [1, 1, 1]))
    assert selected.tolist() == order


@pytest.mark.parametrize("name", ["margin", "least-confidence"])
def test_either_model(name: str) -> None:
    logits = log((0.9, 0.1), (0.6, 0.4), (0.99, 0.01))
    pool = pool_of({Signal.LOCAL_LOGITS: logits, Signal.GLOBAL_LOGITS: logits.flip(0)})
    context = context_of(2, [1, 1])
    assert checked_select(make_strategy(name), pool, context).tolist() == [1, 0]
    strategy = make_strategy(name, {"model": "global"})
    assert checked_select(strategy, pool, context).tolist() == [1, 2]


@pytest.mark.parametrize("name", ["margin", "least-confidence"])
def test_confident_samples_are_not_rounded_to_ties(name: str) -> None:
    very, most = scores(name, torch.tensor([[60.0, 0.0], [70.0, 0.0]]))
    assert very > most > 0


@given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.integers(2, 9),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_agrees_with_the_slow_version(seed: int, num_classes: int, scale: float) -> None:
    logits = scale * np.random.default_rng(seed).normal(size=(20, num_classes))
    margins = [1 - reference.margin(row) for row in logits.tolist()]
    assert scores("margin", torch.tensor(logits)) == pytest.approx(margins, abs=1e-12)
    unsure = [1 - max(softmax(row)) for row in logits.tolist()]
    assert scores("least-confidence", torch.tensor(logits)) == pytest.approx(unsure, abs=1e-12)
