"""CHASe and TM-FAL, which watch the pool during the training."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from support.pools import context_of, log, pool_of

from ahfal_app.parameters import Scalar
from ahfal_app.query import (
    Moment,
    Outputs,
    Signal,
    Watched,
    WatchingStrategy,
    checked_select,
    make_strategy,
)
from ahfal_app.query.temporal import in_turns


def made(name: str, **parameters: Scalar) -> WatchingStrategy:
    strategy = make_strategy(name, parameters)
    assert isinstance(strategy, WatchingStrategy)
    return strategy


def epoch(number: int, round_: int = 1, rounds: int = 1) -> Moment:
    return Moment("local", round_, rounds, number, 4)


class TestChase:
    #: Predictions of four samples after each of four epochs.
    PREDICTED = ((0, 0, 1, 0), (1, 1, 1, 1), (2, 0, 2, 0), (0, 0, 0, 1))

    def flips(self, strategy: WatchingStrategy, epochs: int = 4, rounds: int = 1) -> list[int]:
        watched: Watched | None = None
        for round_ in range(1, rounds + 1):
            for number in range(1, epochs + 1):
                classes = torch.tensor([row[number - 1] for row in self.PREDICTED])
                outputs = Outputs(torch.eye(3)[classes], torch.zeros(4, 2))
                moment = epoch(number, round_, rounds)
                if strategy.watches(moment):
                    watched = strategy.watch(watched, outputs, moment)
        assert watched is not None
        flips = strategy.watched_signals(watched)[Signal.LOCAL_FLIPS]
        return [int(flip) for flip in flips[:, 0]]

    def test_flips_by_hand(self) -> None:
        assert self.flips(made("chase")) == [2, 0, 3, 1]
        assert self.flips(made("chase"), epochs=1) == [0, 0, 0, 0]

    def test_rounds_are_not_compared_with_each_other(self) -> None:
        assert self.flips(made("chase"), rounds=3) == [2, 0, 3, 1]
        assert self.flips(made("chase", window="cycle"), rounds=3) == [6, 0, 9, 3]

    def test_the_global_model_is_not_watched(self) -> None:
        assert not made("chase").watches(Moment("global", 1, 1, 4, 4))

    @staticmethod
    def select(flips: list[int], budget: int, cycle: int = 0, **parameters: Scalar) -> list[int]:
        size = len(flips)
        # The lower an id, the less certain the local model; the global one is even.
        signals: dict[Signal, Any] = {
            Signal.LOCAL_FLIPS: torch.tensor(flips, dtype=torch.float32)[:, None],
            Signal.LOCAL_LOGITS: torch.tensor([[0.0, 0.5 + i] for i in range(size)]),
            Signal.GLOBAL_LOGITS: torch.zeros(size, 2),
        }
        context = context_of(budget, [1, 1], cycle=cycle)
        chosen = checked_select(make_strategy("chase", parameters), pool_of(signals), context)
        return [int(i) for i in chosen]

    def test_most_flips_first_by_hand(self) -> None:
        for ties in ("random", "entropy", "id"):
            assert self.select([2, 0, 3, 1], 2, ties=ties) == [2, 0]

    def test_ties(self) -> None:
        assert self.select([1, 3, 1, 1, 0], 3, ties="id") == [1, 0, 2]
        assert self.select([0, 3, 1, 1, 1], 3, ties="entropy") == [1, 2, 3]
        drawn = {tuple(self.select([0] * 9, 2, cycle)) for cycle in range(40)}
        assert len(drawn) > 20
        first = {self.select([1, 3, 1, 1], 2, cycle)[0] for cycle in range(9)}
        assert first == {1}

    def test_flips_and_entropy(self) -> None:
        """Both models' entropies differ most at the highest id, whose local model is surest."""
        assert self.select([1, 1, 1, 0], 1, score="flips-and-entropy") == [2]
        assert self.select([0, 0, 0, 0], 1, score="flips-and-entropy") == [3]

    def test_a_part_of_the_pool_is_looked_at(self) -> None:
        flips = list(range(20))
        seen = [self.select(flips, 3, cycle, **{"look-at": 3}) for cycle in range(9)]
        assert all(each == sorted(each, reverse=True) for each in seen)
        assert len({tuple(each) for each in seen}) > 5
        assert len(set(self.select(flips, 8, **{"look-at": 3}))) == 8
        assert self.select(flips, 3, **{"look-at": 20}) == [19, 18, 17]


class TestTemporal:
    @staticmethod
    def watched(
        strategy: WatchingStrategy, embeddings: Any, probabilities: Any
    ) -> dict[Signal, torch.Tensor]:
        watched = None
        for snapshot, p in zip(embeddings, probabilities, strict=True):
            outputs = Outputs(log(*np.array(p).tolist()), torch.as_tensor(snapshot).float())
            watched = strategy.watch(watched, outputs, Moment("local", 2, 4, 1, 1))
        assert watched is not None
        return dict(strategy.watched_signals(watched))

    def scores(self, **parameters: Scalar) -> list[float]:
        """Return the score of a sample at (1, 2) and (3, 2), whose mean probability is .8."""
        strategy: Any = made("temporal", **parameters)
        signals = self.watched(strategy, [[[1, 2]], [[3, 2]]], [[[0.9, 0.1]], [[0.7, 0.3]]])
        context = context_of(1, [1, 1])
        return [float(u) for u in strategy.scores(pool_of(signals), context)]

    def test_scores_by_hand(self) -> None:
        assert self.scores() == pytest.approx([0.883883], abs=1e-6)
        assert self.scores(deviation="population") == pytest.approx([0.625])

    def test_one_model_has_no_deviation(self) -> None:
        for deviation in ("sample", "population"):
            strategy = made("temporal", deviation=deviation)
            signals = self.watched(strategy, [[[1, 2]]], [[[0.9, 0.1]]])
            assert signals[Signal.TEMPORAL_SPREAD].tolist() == [[0]]

    def test_running_sums_agree_with_two_passes_in_any_order(self) -> None:
        random = np.random.default_rng(0)
        embeddings = random.normal(5, 1, (17, 6, 4)).astype(np.float32)
        probabilities = random.dirichlet([1, 1, 1], (17, 6))
        expected = embeddings.astype(np.float64).std(axis=0, ddof=1).mean(axis=1)
        for order in (np.arange(17), random.permutation(17)):
            signals = self.watched(made("temporal"), embeddings[order], probabilities[order])
            spread = signals[Signal.TEMPORAL_SPREAD][:, 0].numpy()
            np.testing.assert_allclose(spread, expected, rtol=1e-12)
            mean = signals[Signal.TEMPORAL_PROBABILITIES].numpy()
            np.testing.assert_allclose(mean, probabilities.mean(axis=0), rtol=1e-12)

    def test_nothing_is_kept_of_embeddings_that_no_model_changes(self) -> None:
        strategy = made("temporal")
        probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 6))
        embeddings = np.tile(np.random.default_rng(1).normal(size=(6, 50)), (4, 1, 1))
        moment = Moment("local", 2, 4, 1, 1)
        watched = None
        for p in probabilities:
            outputs = Outputs(log(*p.tolist()), torch.tensor(embeddings[0]).float(), True)
            watched = strategy.watch(watched, outputs, moment)
        assert watched is not None
        assert sum(kept.numel() for kept in watched.values()) == 1 + 6 * 3
        expected = self.watched(strategy, embeddings, probabilities)
        for signal, values in strategy.watched_signals(watched).items():
            torch.testing.assert_close(values, expected[signal])

    def test_classes_in_turn_by_hand(self) -> None:
        scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], dtype=torch.float64)
        assert in_turns(scores, torch.tensor([0, 0, 1, 0, 2]))[:4].tolist() == [0, 2, 4, 1]

    def test_classes_are_those_of_the_global_model(self) -> None:
        signals: dict[Signal, Any] = {
            Signal.TEMPORAL_SPREAD: [[0.9], [0.8], [0.7], [0.6], [0.5]],
            Signal.TEMPORAL_PROBABILITIES: [[0.5, 0.5, 0.0]] * 5,
            Signal.GLOBAL_LOGITS: torch.eye(3)[[0, 0, 1, 0, 2]],
        }
        chosen = checked_select(made("temporal"), pool_of(signals), context_of(4, [1, 1, 1]))
        assert chosen.tolist() == [0, 2, 4, 1]

    @pytest.mark.parametrize(
        ("parameters", "rounds", "expected"),
        [
            ({}, 100, list(range(2, 41, 2))),
            ({"snapshots": "last"}, 100, list(range(62, 101, 2))),
            ({"snapshots": "spread", "size": 3}, 100, [2, 50, 100]),
            ({"step": 3, "size": 2}, 10, [3, 6]),
            ({}, 5, [2, 4]),
            ({}, 1, [1]),
            ({"models": "global"}, 4, [2, 4]),
        ],
    )
    def test_rounds_that_are_watched(
        self, parameters: dict[str, Scalar], rounds: int, expected: list[int]
    ) -> None:
        strategy = made("temporal", **parameters)
        moment = functools.partial(Moment, rounds=rounds, epochs=2)
        every = range(1, rounds + 1)
        assert [r for r in every if strategy.watches(moment("global", r, epoch=2))] == expected
        local = [r for r in every if strategy.watches(moment("local", r, epoch=2))]
        assert local == ([] if parameters.get("models") == "global" else expected)
        assert not any(strategy.watches(moment("local", r, epoch=1)) for r in every)
