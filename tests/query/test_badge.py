from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference_baselines as reference
from support.pools import chi_square, context_of, log, pool_of

from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.badge import Badge


def badge(**parameters: Any) -> Badge:
    strategy = make_strategy("badge", parameters)
    assert isinstance(strategy, Badge)
    return strategy


def pool(logits: Any, embeddings: Any) -> PoolView:
    return pool_of({Signal.LOCAL_LOGITS: logits, Signal.LOCAL_EMBEDDINGS: embeddings})


def by_hand() -> PoolView:
    embeddings = torch.tensor([[2.0], [1.0], [2.0], [0.0]])
    return pool(log((0.5, 0.5), (0.9, 0.1), (0.1, 0.9), (0.5, 0.5)), embeddings)


def random_pool(seed: int = 0, size: int = 40) -> PoolView:
    random = np.random.default_rng(seed)
    return pool(3 * random.normal(size=(size, 5)), random.normal(size=(size, 7)))


class TestGradientEmbeddings:
    def test_by_hand(self) -> None:
        gradients = badge().gradient_embeddings(by_hand())
        assert gradients.squared_norms_N.tolist() == pytest.approx([2, 0.02, 0.08, 0])
        distances = gradients.squared_distances(slice(None), torch.tensor([0]))[:, 0]
        assert distances.tolist() == pytest.approx([0, 1.62, 2.88, 2])

    @pytest.mark.parametrize("bias", [False, True])
    def test_distances_are_those_of_the_embeddings(self, bias: bool) -> None:
        both = random_pool()
        logits = both.signal(Signal.LOCAL_LOGITS).tolist()
        embeddings = both.signal(Signal.LOCAL_EMBEDDINGS).tolist()
        dense = np.array(
            [reference.gradient(*row, bias) for row in zip(logits, embeddings, strict=True)]
        )
        assert dense.shape == (40, 5 * (8 if bias else 7))
        gradients = badge(bias=bias).gradient_embeddings(both)
        distances = gradients.squared_distances(slice(None), torch.arange(40))
        expected = ((dense[:, None] - dense) ** 2).sum(axis=2)
        np.testing.assert_allclose(distances, expected, rtol=1e-9, atol=1e-13)

    def test_confident_samples_have_gradients(self) -> None:
        confident = pool([[50.0, 0.0], [0.0, 60.0]], [[1.0], [1.0]])
        norms = badge().gradient_embeddings(confident).squared_norms_N
        expected = [2 * np.exp(-100.0), 2 * np.exp(-120.0)]
        assert norms.tolist() == pytest.approx(expected, rel=1e-6, abs=0)

    def test_of_the_global_model(self) -> None:
        random = np.random.default_rng(0)
        logits, embeddings = random.normal(size=(9, 3)), random.normal(size=(9, 2))
        both = pool_of({Signal.GLOBAL_LOGITS: logits, Signal.GLOBAL_EMBEDDINGS: embeddings})
        norms = badge(model="global").gradient_embeddings(both).squared_norms_N
        local = badge().gradient_embeddings(pool(logits, embeddings)).squared_norms_N
        assert norms.tolist() == local.tolist()


class TestSelection:
    def test_first_is_the_largest_gradient(self) -> None:
        for client in range(5):
            assert checked_select(badge(), by_hand(), context_of(2, [1, 1], client=client))[0] == 0

    def test_first_drawn_uniformly(self) -> None:
        strategy, both = badge(first="uniform"), by_hand()
        drawn = Counter(
            int(checked_select(strategy, both, context_of(1, [1, 1], cycle=cycle))[0])
            for cycle in range(600)
        )
        # With 3 degrees of freedom, exceeded once in a thousand.
        assert chi_square(drawn, dict.fromkeys(range(4), 0.25)) < 16.3

    @pytest.mark.slow
    def test_second_by_squared_distance(self) -> None:
        strategy, both = badge(), by_hand()
        drawn = Counter(
            int(checked_select(strategy, both, context_of(2, [1, 1], cycle=cycle))[1])
            for cycle in range(700)
        )
        probabilities = {1: 1.62 / 6.5, 2: 2.88 / 6.5, 3: 2 / 6.5}
        # With 2 degrees of freedom, exceeded once in a thousand.
        assert chi_square(drawn, probabilities) < 13.8

    def test_another_sample_is_preferred_to_a_duplicate(self) -> None:
        logits = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.2]]
        both = pool(logits, [[1.0], [1.0], [1.0], [0.5]])
        for cycle in range(20):
            assert 3 in checked_select(badge(), both, context_of(2, [1, 1], cycle=cycle))

    def test_more_samples_than_distinct_ones(self) -> None:
        both = pool([[1.0, 0.0]] * 9, [[0.3, 0.7]] * 9)
        answers = {
            tuple(checked_select(badge(), both, context_of(3, [1, 1], cycle=cycle)))
            for cycle in range(10)
        }
        assert {len(set(answer)) for answer in answers} == {3}
        assert len(answers) > 1

    def test_gradients_that_are_all_zero(self) -> None:
        both = pool([[2000.0, 0.0, 0.0]] * 9, np.random.default_rng(0).normal(size=(9, 4)))
        assert len(set(checked_select(badge(), both, context_of(5, [9, 0, 0])))) == 5

    @pytest.mark.slow
    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**32 - 1), bias=st.booleans())
    def test_agrees_with_the_slow_version_on_equal_draws(self, seed: int, bias: bool) -> None:
        both = random_pool(seed, size=25)
        context = context_of(12, [1] * 5, cycle=seed % 1000)
        rows = zip(
            both.signal(Signal.LOCAL_LOGITS).tolist(),
            both.signal(Signal.LOCAL_EMBEDDINGS).tolist(),
            strict=True,
        )
        dense = [reference.gradient(logits, embedding, bias) for logits, embedding in rows]
        origin = [0.0] * len(dense[0])
        norms = [reference.squared_distance(g, origin) for g in dense]
        uniform = context.generator("badge").random
        expected = reference.rejection_seeding(dense, norms.index(max(norms)), 12, uniform)
        assert checked_select(badge(bias=bias), both, context).tolist() == expected
