"""FEAL against cases by hand, torch's Dirichlet, numerical integrals and the dense matrix."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulation import Simulation
from support.strategy_cases import context_for, pool_of, random_signals
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from ahfal_app.query import Signal, TrainingContext, checked_select, make_strategy
from ahfal_app.query.core import relaxation
from ahfal_app.query.core.evidence import (
    aleatoric_uncertainty,
    concentration,
    divergence_from_uniform,
    epistemic_uncertainty,
)
from ahfal_app.query.core.relaxation import relaxed_picks
from ahfal_app.query.feal import Feal

#: Logits of three samples: no evidence, much for the first class, a little for both.
A, B, C = [0.0, 0.0], [9.0, -1.0], [1.0, 1.0]


def signals_of(logits: list[list[float]], features: list[list[float]]) -> dict[Signal, Tensor]:
    return {
        Signal.LOCAL_LOGITS: torch.tensor(logits),
        Signal.GLOBAL_LOGITS: torch.tensor(logits),
        Signal.LOCAL_FEATURE_MAPS: torch.tensor(features),
    }


FAR_APART = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class TestUncertainty:
    def test_case_by_hand(self) -> None:
        alpha = concentration(torch.tensor([A, B, C]))
        assert alpha.tolist() == [[1, 1], [10, 1], [2, 2]]
        aleatoric = aleatoric_uncertainty(alpha).tolist()
        assert aleatoric == pytest.approx([0.5, 0.266270, 0.583333], abs=1e-6)
        epistemic = epistemic_uncertainty(alpha).tolist()
        assert epistemic == pytest.approx([0.0, -1.402585, -0.125093], abs=1e-6)
        pool = pool_of(signals_of([A, B, C], FAR_APART))
        scores = Feal().scores(pool, context_for(1, 2))
        assert scores.tolist() == pytest.approx([1.0, 0.0, 1.062615], abs=1e-6)
        assert scores.dtype == torch.float64
        assert checked_select(Feal(), pool, context_for(2, 2)).tolist() == [2, 0]

    def test_epistemic_uncertainty_is_torchs_differential_entropy(self) -> None:
        alpha = concentration(random_signals(50, 7, 2, 0)[Signal.LOCAL_LOGITS] * 5)
        torch.testing.assert_close(epistemic_uncertainty(alpha), Dirichlet(alpha).entropy())

    def test_aleatoric_uncertainty_is_the_mean_entropy_of_draws(self) -> None:
        alpha = torch.tensor([3.0, 1.0, 1.5], dtype=torch.float64)
        draws = np.random.default_rng(0).dirichlet(alpha.numpy(), 200_000)
        mean = float(-(draws * np.log(draws)).sum(axis=1).mean())
        assert float(aleatoric_uncertainty(alpha[None])) == pytest.approx(mean, abs=2e-3)

    def test_only_the_global_model_is_epistemic(self) -> None:
        signals = signals_of([A, C, B], FAR_APART)
        signals[Signal.LOCAL_LOGITS] = torch.tensor([B, B, B])
        scores = Feal().scores(pool_of(signals), context_for(1, 2))
        expected = [0.5 + 0.266270, 0.910813 * (0.583333 + 0.266270), 0.0]
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)

    def test_epistemic_uncertainties_that_differ_by_rounding_weigh_1(self) -> None:
        """The same evidence for other classes: scaled to [0, 1] this was noise."""
        rows = list(itertools.permutations([0.3, 1.7, 2.9, 0.1]))
        signals = signals_of([list(row) for row in rows], [[1.0, 0.0]] * len(rows))
        scores = Feal().scores(pool_of(signals), context_for(1, 4))
        alpha = concentration(torch.tensor(rows[:1]))
        expected = 2 * float(aleatoric_uncertainty(alpha))
        assert scores.tolist() == pytest.approx([expected] * len(rows), rel=1e-12)

    def test_equal_epistemic_uncertainties_weigh_1(self) -> None:
        """No evidence anywhere: the highest entropy that there is, of a flat distribution."""
        signals = signals_of([[-1.0, -2.0]] * 3, FAR_APART)
        scores = Feal().scores(pool_of(signals), context_for(1, 2))
        assert scores.tolist() == pytest.approx([1.0] * 3)
        alpha = concentration(torch.tensor([[-1.0, -2.0, 0.0]]))
        assert float(epistemic_uncertainty(alpha)) == pytest.approx(-math.lgamma(3))


def slow_picks(features: Tensor, count: int, threshold: float, neighbours: int) -> list[int]:
    """The rule in plain loops over the matrix of all similarities."""
    rows = features.double().tolist()
    lengths = [math.sqrt(math.fsum(value**2 for value in row)) for row in rows]

    def cosine(i: int, j: int) -> float:
        if not lengths[i] or not lengths[j]:
            return 0.0
        product = math.fsum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        # Of small integers, so that what is equal on paper is so to nine digits.
        return round(product / lengths[i] / lengths[j], 9)

    taken: list[int] = []
    for i in range(len(rows)):
        others = sorted((-cosine(i, j), j) for j in range(len(rows)) if j != i)
        near = [j for similarity, j in others if -similarity > threshold][:neighbours]
        if len(taken) < count and (len(near) < neighbours or not set(near) & set(taken)):
            taken.append(i)
    return taken


class TestRelaxation:
    def test_with_fewer_neighbours_than_wanted_a_near_duplicate_passes(self) -> None:
        """C = (1, 0) and A = (1, 0.1) are neighbours, B = (0, 1) is far from both."""
        features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        assert relaxed_picks(features, 2, 0.85, 1).tolist() == [0, 2]
        assert relaxed_picks(features, 2, 0.85, 2).tolist() == [0, 1]

    def test_similarity_must_exceed_the_threshold(self) -> None:
        """The second sample's cosine with the first is 0.6."""
        features = torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
        assert relaxed_picks(features, 3, 0.59, 1).tolist() == [0, 2]
        assert relaxed_picks(features, 3, 0.61, 1).tolist() == [0, 1, 2]

    def test_vectors_of_zero_are_similar_to_nothing(self) -> None:
        features = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        assert relaxed_picks(features, 4, 0.85, 1).tolist() == [0, 1, 2]
        assert relaxed_picks(features, 4, 0.0, 1).tolist() == [0, 1, 2]

    def test_duplicates_do_not_stand_in_for_the_sample_itself(self) -> None:
        """Of six equal samples the others each have the first among their neighbours."""
        assert relaxed_picks(torch.ones(6, 3), 6, 0.85, 5).tolist() == [0]
        assert relaxed_picks(torch.ones(600, 3), 600, 0.85, 5).tolist() == [0]
        # With one neighbour, that of the first is the second and that of all others the first.
        assert relaxed_picks(torch.ones(4, 3), 4, 0.85, 1).tolist() == [0]

    def test_among_equally_similar_samples_the_first_are_neighbours(self) -> None:
        """Sample 1 is most similar to 3, then equally to 0 and 2; 0 is the one that counts."""
        features = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 0.0]])
        assert relaxed_picks(features, 4, 0.5, 2).tolist() == slow_picks(features, 4, 0.5, 2)
        assert relaxed_picks(features, 2, 0.5, 2).tolist() == [0, 2]

    def test_similarities_that_float32_cannot_tell_apart_are_told_apart(self) -> None:
        """Sample 3 is nearer to 2 than 0 and 1 are, by a hundred millionth, and 2 is its own."""
        angles = torch.tensor([0.4 + 2e-8, 0.4 + 2e-8, 0.0, 0.4], dtype=torch.float64)
        features = torch.stack([angles.cos(), angles.sin()], dim=1)
        [near] = relaxation._near(features, slice(2, 3), 0.85, 1)
        assert near == [3]

    def test_orthogonal_samples_are_no_neighbours_by_rounding(self) -> None:
        rows = [[0.1, 0.2, 0.3], [0.3, 0.6, -0.5], [-0.3, -0.6, 0.5]]
        features = torch.tensor(rows, dtype=torch.float64)
        directions = features / features.norm(dim=1, keepdim=True)
        assert 0 < float((directions @ directions.T)[0, 1]) < 1e-16
        assert relaxed_picks(features, 2, 0.0, 1).tolist() == [0, 1]

    @pytest.mark.parametrize("block", [1, 7, 512])
    @settings(deadline=None)
    @given(
        size=st.integers(1, 60),
        width=st.integers(1, 5),
        share=st.floats(0.01, 1),
        # No cosine of small integers is one of these, so rounding decides nothing.
        threshold=st.sampled_from([0.01, 0.41, 0.851]),
        neighbours=st.integers(1, 7),
        seed=st.integers(0, 10_000),
    )
    def test_equals_the_dense_matrix(
        self,
        block: int,
        size: int,
        width: int,
        share: float,
        threshold: float,
        neighbours: int,
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randint(-2, 3, (size, width), generator=generator).float()
        count = math.ceil(share * size)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relaxation, "_CANDIDATES", block)
            picks = relaxed_picks(features, count, threshold, neighbours)
        assert picks.dtype == torch.int64
        assert picks.tolist() == slow_picks(features, count, threshold, neighbours)


def published_picks(features: Tensor, count: int, threshold: float, neighbours: int) -> list[int]:
    """The rule of the published code: the most similar sample passes for the sample itself."""
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    taken: list[int] = []
    for i in range(len(features)):
        cosines = (directions @ directions[i]).float().tolist()
        order = sorted(range(len(features)), key=lambda j: (-cosines[j], j))
        near = [j for j in order if cosines[j] > threshold][1 : 1 + neighbours]
        if len(taken) < count and (not set(near) & set(taken) or len(near) < neighbours):
            taken.append(i)
    return taken


class TestPublishedRelaxation:
    def test_without_duplicates_both_rules_agree(self) -> None:
        for seed in range(5):
            features = random_signals(80, 2, 3, seed)[Signal.LOCAL_FEATURE_MAPS]
            picks = relaxed_picks(features, 30, 0.85, 5).tolist()
            assert picks == published_picks(features, 30, 0.85, 5)
            assert picks != list(range(30))

    def test_of_two_duplicates_only_the_published_rule_takes_both(self) -> None:
        """Samples 0 and 1 are equal; each has 2 as another neighbour, which is not taken."""
        features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
        assert published_picks(features, 2, 0.85, 1) == [0, 1]
        assert relaxed_picks(features, 2, 0.85, 1).tolist() == [0]


class TestSelection:
    def test_those_passed_over_follow_by_uncertainty(self) -> None:
        """All features are alike: the first is taken, and the rest fills up in order."""
        logits = [[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.5, 0.0], [9.0, 0.0], [4.0, 0.0]]
        pool = pool_of(signals_of(logits, [[1.0, 2.0]] * 6))
        scores = Feal().scores(pool, context_for(4, 2))
        strategy = make_strategy("feal", {"neighbours": 2})
        selected = checked_select(strategy, pool, context_for(4, 2)).tolist()
        assert selected == scores.argsort(descending=True)[:4].tolist() == [3, 1, 2, 0]

    def test_equals_plain_loops(self) -> None:
        for seed in range(5):
            signals = random_signals(120, 4, 3, seed)
            pool = pool_of(signals)
            scores = Feal().scores(pool, context_for(25, 4))
            order = scores.argsort(descending=True, stable=True).tolist()
            features = signals[Signal.LOCAL_FEATURE_MAPS][order]
            picks = slow_picks(features, 25, 0.85, 5)
            passed_over = [i for i in range(120) if i not in picks]
            expected = [order[i] for i in (picks + passed_over)[:25]]
            assert checked_select(Feal(), pool, context_for(25, 4)).tolist() == expected
            assert expected != order[:25]

    def test_a_limited_pool_is_drawn_by_key(self) -> None:
        signals = random_signals(200, 3, 4, 0)
        strategy = make_strategy("feal", {"pool-limit": 50})
        assert isinstance(strategy, Feal)
        answers = [
            checked_select(strategy, pool_of(signals), context_for(20, 3, **key)).tolist()
            for key in ({}, {}, {"client": 5}, {"cycle": 7}, {"seed": 8})
        ]
        assert answers[0] == answers[1]
        assert len({tuple(answer) for answer in answers}) == 4
        part = strategy._taking_part(pool_of(signals), context_for(20, 3)).tolist()
        assert len(set(part)) == 50
        assert set(answers[0]) <= set(part)

    def test_scores_are_scaled_over_those_that_take_part(self) -> None:
        signals = random_signals(200, 3, 4, 0)
        strategy = make_strategy("feal", {"pool-limit": 50})
        assert isinstance(strategy, Feal)
        pool, context = pool_of(signals), context_for(20, 3)
        part = strategy._taking_part(pool, context)
        small = pool_of({signal: values[part] for signal, values in signals.items()})
        torch.testing.assert_close(
            strategy.scores(pool, context)[part], Feal().scores(small, context)
        )
        assert not torch.allclose(Feal().scores(pool, context)[part], Feal().scores(small, context))

    def test_a_budget_above_the_limit_takes_all_that_take_part_first(self) -> None:
        pool, context = pool_of(random_signals(100, 3, 4, 0)), context_for(60, 3)
        strategy = make_strategy("feal", {"pool-limit": 40})
        assert isinstance(strategy, Feal)
        selected = checked_select(strategy, pool, context).tolist()
        part = strategy._taking_part(pool, context).tolist()
        assert set(selected[:40]) == set(part)
        scores = strategy.scores(pool, context)
        others = sorted(set(range(100)) - set(part), key=lambda i: (-float(scores[i]), i))
        assert selected[40:] == others[:20]

    def test_no_limit(self) -> None:
        pool = pool_of(random_signals(100, 3, 4, 0))
        answers = [
            checked_select(
                make_strategy("feal", {"pool-limit": limit}), pool, context_for(20, 3)
            ).tolist()
            for limit in (0, 100, 10_000)
        ]
        assert answers[0] == answers[1] == answers[2]


def loss_of(round_: int, counts: list[int], **parameters: float):
    strategy = make_strategy("feal", parameters)
    loss = strategy.training_loss(TrainingContext(len(counts), np.array(counts), round_))
    assert loss is not None
    return loss


class TestLoss:
    @pytest.mark.parametrize(
        ("round_", "expected"), [(11, 1.625319), (50, 1.625319), (6, 1.623160), (1, 1.621)]
    )
    def test_case_by_hand(self, round_: int, expected: float) -> None:
        """Rounds count from 1 here, from 0 in the published code; the first has no divergence."""
        loss = loss_of(round_, [7, 7])(torch.tensor([[2.0, 1.0]]), torch.tensor([1]))
        assert float(loss) == pytest.approx(expected, abs=1e-6)

    def test_divergence_is_torchs(self) -> None:
        alpha = 1 + 5 * torch.rand(40, 6, generator=torch.Generator().manual_seed(0)).double()
        expected = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
        torch.testing.assert_close(divergence_from_uniform(alpha), expected)
        hand = divergence_from_uniform(torch.tensor([[3.0, 1.0]]))
        assert float(hand) == pytest.approx(0.431946, abs=1e-6)

    def test_values_and_gradients_equal_a_sample_by_sample_sum(self) -> None:
        generator = torch.Generator().manual_seed(3)
        logits = 3 * torch.randn(12, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 5, (12,), generator=generator)
        counts = [3, 0, 5, 1, 11]
        results = []
        for function in (loss_of(4, counts), self.slow(counts, 0.3)):
            inputs = logits.clone().requires_grad_()
            value = function(inputs, labels)
            value.backward()
            assert inputs.grad is not None
            results.append((value.detach(), inputs.grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)

    @staticmethod
    def slow(counts: list[int], annealing: float):
        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for row, label in zip(logits, labels.tolist(), strict=True):
                alpha = row.clamp(min=0) + 1
                strength = alpha.sum()
                prior = counts[label] / sum(counts)
                cross = (2 - prior) * (strength.digamma() - alpha[label].digamma())
                wrong = torch.cat([alpha[:label], alpha.new_ones(1), alpha[label + 1 :]])
                divergence = kl_divergence(Dirichlet(wrong), Dirichlet(torch.ones_like(wrong)))
                correction = -(len(row) / strength.detach()) * row[label]
                total = total + cross + 0.01 * (annealing * divergence + correction)
            return total / len(logits)

        return loss

    def test_without_evidence_only_the_label_is_drawn_up(self) -> None:
        logits = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
        loss_of(1, [1, 1, 1])(logits, torch.tensor([2])).backward()
        assert logits.grad is not None
        assert logits.grad.tolist() == [[0.0, 0.0, pytest.approx(-0.01)]]

    def test_float32_is_close_to_float64(self) -> None:
        logits = random_signals(64, 10, 2, 0)[Signal.LOCAL_LOGITS] * 10
        labels = torch.arange(64) % 10
        loss = loss_of(11, [3] * 10)
        single, double = (loss(values, labels) for values in (logits, logits.double()))
        assert float(single) == pytest.approx(float(double), rel=1e-5)

    def test_a_client_of_one_class(self) -> None:
        loss = loss_of(3, [0, 9])(torch.tensor([[2.0, 1.0]]), torch.tensor([1]))
        assert math.isfinite(float(loss))

    def test_cross_entropy_instead(self) -> None:
        strategy = make_strategy("feal", {"loss": "ce"})
        assert not strategy.has_training_loss
        assert strategy.training_loss(TrainingContext(2, np.array([1, 1]), 1)) is None
        assert Feal().has_training_loss


@pytest.mark.slow
def test_a_run_with_the_evidential_loss_learns(simulation: Simulation) -> None:
    outcome = simulation(
        {"initial-fraction": 0.3, "target-fraction": 0.3, "local-epochs": 4, "batch-size": 32},
        strategy="feal",
        model="small-cnn",
        partition="iid",
        rounds=5,
    )
    # 93 % on one kind of processor, 88 % on another; a tenth by chance.
    assert outcome.summary["final_accuracy"] > 0.8


@pytest.mark.slow
def test_the_loss_of_training_is_the_setting_s(simulation: Simulation) -> None:
    losses = {
        loss: simulation({"strategy": "feal", "strategy.loss": loss}, cycles=1, name=loss).result[2]
        for loss in ("edl", "ce")
    }
    random = simulation({"strategy": "random"}, cycles=1).result[2]
    assert losses["ce"] == random
    assert losses["edl"] != random
