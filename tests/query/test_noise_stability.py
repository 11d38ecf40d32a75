"""Noise stability against cases by hand, and against copies of a network and plain loops."""

from __future__ import annotations

import copy
import functools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.fake_models import FakeModels
from support.strategy_cases import context_for, pool_of, random_pool
from torch import Tensor, nn

from ahfal_app.models import build_model
from ahfal_app.query import Outputs, PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.noise_stability import NoiseStability, add_weight_noise


def slow_furthest_first(vectors: list[list[float]], start: list[float], count: int) -> list[int]:
    """Gonzalez's traversal in exact order of its definition."""
    nearest = [float(value) for value in start]
    taken: list[int] = []
    for _ in range(count):
        free = [i for i in range(len(vectors)) if i not in taken]
        pick = max(free, key=lambda i: (nearest[i], -i))
        taken.append(pick)
        for i, vector in enumerate(vectors):
            squares = ((a - b) ** 2 for a, b in zip(vector, vectors[pick], strict=True))
            nearest[i] = min(nearest[i], math.fsum(squares))
    return taken


def squares(vectors: Tensor) -> Tensor:
    return vectors.double().square().sum(dim=1)


def furthest_first(vectors: Tensor, start: Tensor, count: int) -> NDArray[np.int64]:
    return greedy_k_center(EmbeddingPoints(vectors), start.double(), count)


class TestFurthestFirst:
    def test_case_by_hand(self) -> None:
        """After (3, 4) is taken the distances are 0, -, 1 and 0.1."""
        vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [3.0, 3.9]])
        assert furthest_first(vectors, squares(vectors), 3).tolist() == [1, 2, 3]

    def test_equal_vectors_are_taken_once_each_in_order(self) -> None:
        vectors = torch.ones(7, 3)
        assert furthest_first(vectors, squares(vectors), 7).tolist() == list(range(7))
        assert furthest_first(torch.zeros(5, 2), torch.zeros(5), 4).tolist() == [0, 1, 2, 3]

    def test_the_given_distances_are_not_changed(self) -> None:
        vectors, distances = torch.eye(4), torch.ones(4, dtype=torch.float64)
        furthest_first(vectors, distances, 3)
        assert torch.equal(distances, torch.ones(4, dtype=torch.float64))

    def test_near_vectors_far_from_the_origin_are_told_apart(self) -> None:
        """By inner products in float32 all of these would coincide."""
        vectors = torch.tensor([[4096.0], [4096.5], [4099.0], [4097.0]])
        distances = (vectors[:, 0] - 4096.0).square()
        assert furthest_first(vectors, distances, 4).tolist() == [2, 3, 1, 0]

    @settings(deadline=None)
    @given(data=st.data(), size=st.integers(1, 30), width=st.integers(1, 4))
    def test_equals_the_definition(self, data: st.DataObject, size: int, width: int) -> None:
        """On small integers, where every distance is exact and ties are frequent."""
        numbers = st.lists(st.integers(-4, 4), min_size=width, max_size=width)
        rows = data.draw(st.lists(numbers, min_size=size, max_size=size))
        start = data.draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
        count = data.draw(st.integers(0, size))
        vectors = torch.tensor(rows, dtype=torch.float32)
        positions = furthest_first(vectors, torch.tensor(start), count)
        assert positions.dtype == np.int64
        assert positions.tolist() == slow_furthest_first(rows, start, count)


class TestNoise:
    @pytest.mark.parametrize("name", ["resnet8", "small-cnn"])
    @pytest.mark.parametrize("scale", [1e-3, 0.25])
    def test_each_weight_moves_by_its_share_and_nothing_else_moves(
        self, name: str, scale: float
    ) -> None:
        model = build_model(name, (16, 16, 3), 10, 0)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        add_weight_noise(model, scale, np.random.default_rng(0))
        weights = {
            f"{path}.weight" for path, module in model.named_modules() if hasattr(module, "weight")
        }
        assert any("bn" in key for key in weights)
        for key, value in model.state_dict().items():
            if key in weights:
                moved = (value - before[key]).norm() / before[key].norm()
                assert float(moved) == pytest.approx(scale, abs=1e-6), key
            else:
                assert torch.equal(value, before[key]), key

    def test_weights_of_zero_stay_zero(self) -> None:
        model = build_model("small-cnn", (8, 8, 1), 3, 0)
        with torch.no_grad():
            model.head.weight.zero_()
        add_weight_noise(model, 0.1, np.random.default_rng(0))
        assert not model.head.weight.any()

    def test_noise_is_gaussian_in_direction(self) -> None:
        """Its coordinates, scaled to unit variance, have the fourth moment of a Gaussian."""
        model = nn.Linear(200, 200)
        before = model.weight.detach().clone()
        add_weight_noise(model, 1.0, np.random.default_rng(0))
        noise = (model.weight.detach() - before).flatten()
        noise = noise / noise.square().mean().sqrt()
        assert float(noise.pow(4).mean()) == pytest.approx(3.0, abs=0.15)
        assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)


class RealModels:
    """A network on random images, perturbed in place and restored from a copy."""

    def __init__(self) -> None:
        self.model = build_model("small-cnn", (6, 6, 1), 4, 0).eval()
        self.images = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))

    def outputs(self, model: nn.Module) -> Outputs:
        with torch.no_grad():
            return Outputs(model(self.images), model.features(self.images))  # type: ignore[operator]

    def perturbed(self, perturb) -> Outputs:  # type: ignore[no-untyped-def]
        before = copy.deepcopy(self.model.state_dict())
        perturb(self.model)
        outputs = self.outputs(self.model)
        self.model.load_state_dict(before)
        return outputs

    def local_only(self, training) -> Outputs:  # type: ignore[no-untyped-def]
        raise AssertionError("not asked for")

    def pool(self) -> PoolView:
        clean = self.outputs(self.model)
        signals = {
            Signal.LOCAL_LOGITS: clean.logits_NC,
            Signal.LOCAL_EMBEDDINGS: clean.embeddings_ND,
        }
        return pool_of(signals, self)


def slow_deviations(models: RealModels, draws: int, scale: float, target: str) -> list[list[float]]:
    """One deep copy for each draw, and one sample at a time, in float64 throughout."""
    context = context_for(5, 4)

    def watched(model: nn.Module, image: Tensor) -> list[float]:
        with torch.no_grad():
            if target == "feature":
                return model.features(image[None])[0].double().tolist()  # type: ignore[operator]
            return torch.softmax(model(image[None])[0].double(), 0).tolist()

    rows: list[list[float]] = [[] for _ in models.images]
    for draw in range(draws):
        generator = context.generator(f"noise-stability.{draw}")
        noisy = copy.deepcopy(models.model)
        with torch.no_grad():
            for module in noisy.modules():
                if hasattr(module, "weight"):
                    weight = module.weight
                    noise = torch.from_numpy(generator.standard_normal(weight.shape, np.float32))
                    weight += scale * noise / noise.norm() * weight.norm()
        for row, image in zip(rows, models.images, strict=True):
            clean, moved = watched(models.model, image), watched(noisy, image)
            length = math.sqrt(math.fsum(value**2 for value in clean))
            row.extend((a - b) / length for a, b in zip(moved, clean, strict=True))
    return rows


@pytest.mark.parametrize("target", ["softmax", "feature"])
@pytest.mark.parametrize("selection", ["k-center", "top-k"])
def test_equals_deep_copies_and_plain_loops(target: str, selection: str) -> None:
    models = RealModels()
    rows = slow_deviations(models, 3, 0.05, target)
    lengths = [math.fsum(value**2 for value in row) for row in rows]
    strategy = make_strategy(
        "noise-stability",
        {"draws": 3, "noise-scale": 0.05, "target": target, "selection": selection},
    )
    assert isinstance(strategy, NoiseStability)
    scores = strategy.scores(models.pool(), context_for(5, 4))
    np.testing.assert_allclose(scores.numpy(), lengths, rtol=1e-4)
    expected = sorted(range(40), key=lambda i: (-lengths[i], i))[:5]
    if selection == "k-center":
        expected = slow_furthest_first(rows, lengths, 5)
    selected = checked_select(strategy, models.pool(), context_for(5, 4))
    assert selected.tolist() == expected


def test_the_model_is_left_as_it_was() -> None:
    models = RealModels()
    before = copy.deepcopy(models.model.state_dict())
    checked_select(make_strategy("noise-stability"), models.pool(), context_for(5, 4))
    assert all(torch.equal(value, before[key]) for key, value in models.model.state_dict().items())


@pytest.mark.parametrize("selection", ["k-center", "top-k"])
def test_without_noise_the_order_is_drawn(selection: str, caplog: pytest.LogCaptureFixture) -> None:
    pool, _ = random_pool(20, 3, 4, 0)
    strategy = make_strategy("noise-stability", {"noise-scale": 0, "selection": selection})
    selected = checked_select(strategy, pool, context_for(6, 3)).tolist()
    assert len(set(selected)) == 6
    assert selected != list(range(6))
    assert "noise moves no output, so the order is random" in caplog.text


def test_features_of_zero_have_finite_deviations() -> None:
    models = FakeModels(torch.linspace(0, 1, 60).view(20, 3), torch.zeros(20, 4))
    signals = {Signal.LOCAL_LOGITS: models.logits, Signal.LOCAL_EMBEDDINGS: models.embeddings}
    strategy = make_strategy("noise-stability", {"target": "feature"})
    pool = pool_of(signals, models)
    assert isinstance(strategy, NoiseStability)
    assert strategy.scores(pool, context_for(6, 3)).tolist() == [0.0] * 20
    assert len(set(checked_select(strategy, pool, context_for(6, 3)).tolist())) == 6


def test_each_draw_is_one_pass_however_often_scores_are_asked_for() -> None:
    pool, models = random_pool(20, 3, 4, 0)
    strategy, context = make_strategy("noise-stability", {"draws": 7}), context_for(6, 3)
    first = checked_select(strategy, pool, context)
    assert isinstance(strategy, NoiseStability)
    strategy.scores(pool, context)
    assert checked_select(strategy, pool, context).tolist() == first.tolist()
    assert models.perturbations == 7
    strategy.scores(pool, context_for(6, 3, cycle=9))
    assert models.perturbations == 14


def test_draws_differ_from_each_other() -> None:
    pool, _ = random_pool(20, 3, 4, 0)
    strategy = make_strategy("noise-stability", {"draws": 2})
    assert isinstance(strategy, NoiseStability)
    first, second = strategy._deviations(pool, context_for(6, 3)).split(3, dim=1)
    assert not torch.allclose(first, second)


def exact_softmax(logits: list[float]) -> list[Decimal]:
    with localcontext() as digits:
        digits.prec = 80
        weights = [(Decimal(logit) - Decimal(max(logits))).exp() for logit in logits]
        return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("gap", [3.0, 12.0, 20.0, 40.0, 70.0])
def test_confident_samples_keep_their_deviations(gap: float) -> None:
    """In half precision, beside one unsure sample, all of a gap above 17 had none."""
    logits = torch.tensor([[0.1, 0.0, -0.2]] + [[gap + k / 4, 0.0, -1.0] for k in range(5)])
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    signals = {Signal.LOCAL_LOGITS: logits, Signal.LOCAL_EMBEDDINGS: embeddings}
    strategy = make_strategy("noise-stability", {"draws": 3})
    assert isinstance(strategy, NoiseStability)
    models, context = FakeModels(logits, embeddings), context_for(3, 3)
    scores = strategy.scores(pool_of(signals, models), context).tolist()
    draws = [
        models.perturbed(
            functools.partial(
                add_weight_noise,
                scale=1e-3,
                generator=context.generator(f"noise-stability.{draw}"),
            )
        ).logits_NC.tolist()
        for draw in range(3)
    ]
    for sample, row in enumerate(logits.tolist()):
        clean = exact_softmax(row)
        length = sum(p * p for p in clean)
        moved = [
            (after - before) ** 2
            for noisy in draws
            for after, before in zip(exact_softmax(noisy[sample]), clean, strict=True)
        ]
        assert scores[sample] == pytest.approx(float(sum(moved) / length), rel=1e-5, abs=0)


def test_a_tiny_feature_vector_may_move_by_more_than_can_be_kept() -> None:
    embeddings = torch.full((4, 3), 1e-44)
    embeddings[2:] = 1.0
    signals = {Signal.LOCAL_LOGITS: torch.zeros(4, 2), Signal.LOCAL_EMBEDDINGS: embeddings}
    moved = FakeModels(torch.zeros(4, 2), torch.full((4, 3), 3e4))
    strategy = make_strategy("noise-stability", {"target": "feature", "draws": 2})
    selected = checked_select(strategy, pool_of(signals, moved), context_for(3, 2))
    assert selected.tolist() == [0, 2, 1]
