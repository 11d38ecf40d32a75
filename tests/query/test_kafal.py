from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference_baselines as reference
from support.pools import chi_square, context_of, pool_of

from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.kafal import Kafal

Rows = list[tuple[float, ...]]


def kafal(missing_classes: str = "drop") -> Kafal:
    strategy = make_strategy("kafal", {"missing-classes": missing_classes})
    assert isinstance(strategy, Kafal)
    return strategy


def pool(local: Rows, global_: Rows) -> PoolView:
    return pool_of({Signal.LOCAL_LOGITS: local, Signal.GLOBAL_LOGITS: global_})


def random_logits(size: int, num_classes: int, seed: int = 0) -> PoolView:
    local, global_ = np.random.default_rng(seed).normal(size=(2, size, num_classes))
    return pool(local, global_)


def test_by_hand() -> None:
    both = pool([(2, 1, 0), (0.5, 0.4, 3)], [(1.0, 1, 1), (0, 2, 0)])
    context = context_of(1, [10, 5, 0])
    assert kafal().scores(both, context).tolist() == pytest.approx([0.0889855, 0.4992674], abs=1e-7)
    assert checked_select(kafal(), both, context).tolist() == [1]


@pytest.mark.parametrize(
    ("counts", "expected", "first"),
    [([1, 1, 0], [0.0, math.log(2) / 3], 1), ([1, 1, 1], [4.8171, 0.1733], 0)],
)
def test_classes_without_labels_do_not_count(
    counts: list[int], expected: list[float], first: int
) -> None:
    ln2 = math.log(2)
    both = pool([(1, 1, 5), (ln2, 0, 0)], [(1, 1, -5.0), (0, ln2, 0)])
    context = context_of(1, counts)
    assert kafal().scores(both, context).tolist() == pytest.approx(expected, abs=5e-5)
    assert checked_select(kafal(), both, context).tolist() == [first]


def test_a_missing_class_gives_no_nan_and_no_random_order() -> None:
    # The divergence written with logarithms is NaN for all samples of such a client.
    both = random_logits(30, 4)
    orders = [
        checked_select(kafal(), both, context_of(7, [30, 0, 5, 1], client=client)).tolist()
        for client in range(3)
    ]
    assert orders[0] == orders[1] == orders[2]


class TestUndecided:
    """Clients for which the order is random."""

    @pytest.mark.parametrize("counts", [[7, 0, 0], [0, 0, 0]])
    def test_fewer_than_two_known_classes(
        self, counts: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        both = random_logits(50, 3)
        answers = set()
        for client in range(3):
            context = context_of(10, counts, client=client)
            assert torch.isfinite(kafal().scores(both, context)).all()
            answers.add(tuple(checked_select(kafal(), both, context)))
        assert len(answers) == 3
        known = sum(count > 0 for count in counts)
        assert f"client 2: labels of {known} of 3 classes, so the order is random" in caplog.text

    def test_models_that_agree(self, caplog: pytest.LogCaptureFixture) -> None:
        """As with a single client: sorted data must not give a single class."""
        logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        both = pool_of({Signal.LOCAL_LOGITS: logits, Signal.GLOBAL_LOGITS: logits.clone()})
        answers = {
            tuple(checked_select(kafal(), both, context_of(10, [5, 3, 1], client=client)))
            for client in range(3)
        }
        assert len(answers) == 3
        assert "client 2: both models agree, order is random" in caplog.text

    def test_two_known_classes_are_enough(self, caplog: pytest.LogCaptureFixture) -> None:
        kafal().scores(random_logits(5, 3), context_of(1, [7, 0, 1]))
        assert not caplog.text

    def test_nan_as_random_ignores_the_models(self) -> None:
        context = context_of(10, [5, 0, 3])
        orders = [
            checked_select(kafal("nan-as-random"), random_logits(50, 3, seed), context).tolist()
            for seed in (0, 1)
        ]
        assert orders[0] == orders[1]

    @pytest.mark.slow
    def test_nan_as_random_is_uniform(self) -> None:
        strategy, both = kafal("nan-as-random"), random_logits(4, 3)
        drawn = Counter(
            int(checked_select(strategy, both, context_of(1, [5, 0, 3], cycle=cycle))[0])
            for cycle in range(2000)
        )
        # With 3 degrees of freedom, exceeded once in a thousand.
        assert chi_square(drawn, dict.fromkeys(range(4), 0.25)) < 16.3

    def test_nan_as_random_is_the_same_where_no_class_is_missing(self) -> None:
        both, context = random_logits(50, 3), context_of(10, [5, 1, 3])
        orders = [checked_select(s, both, context) for s in (kafal(), kafal("nan-as-random"))]
        assert orders[0].tolist() == orders[1].tolist()


@given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.integers(2, 8),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
)
def test_agrees_with_the_slow_version(seed: int, num_classes: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    local, global_ = scale * random.normal(size=(2, 15, num_classes))
    counts = random.integers(0, 30, num_classes) * random.integers(0, 2, num_classes)
    counts[:2] += 1
    scores = kafal().scores(pool(local, global_), context_of(1, counts.tolist()))
    expected = [
        reference.discrepancy(z, t, counts.tolist())
        for z, t in zip(local.tolist(), global_.tolist(), strict=True)
    ]
    assert scores.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
