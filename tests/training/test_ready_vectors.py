"""Heads that train together on vectors that are made ready once, against heads that train alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.device import DeviceFeatures
from ahfal_app.data.features import Features
from ahfal_app.models import Classifier, build_model
from ahfal_app.query import SampleLoss, TrainingContext, make_strategy
from ahfal_app.training.local_updates.core.base import Objective
from ahfal_app.training.local_updates.kcfu import BalancedSoftmax, Compensation, CompensatoryLoss
from ahfal_app.training.penalties import PenaltySum
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.sgd import (
    LocalUpdate,
    Loss,
    Penalty,
    Recipe,
    TrainingResult,
    TrainingState,
    train_locally,
)
from ahfal_app.training.together import trainer, vectors
from ahfal_app.training.together.linear_heads import LinearHeadsStep
from ahfal_app.training.together.separable import StackedProximal, can_train_together
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.trainer import TogetherTrainer
from ahfal_app.training.together.vectors import ready_vectors

CPU = torch.device("cpu")
RECIPE = Recipe(2, 8, 0.05, 0.9, 5e-4, 3, 0.1, NO_AUGMENTATION, "fp32", False)
NUMBERS, CLASSES, IMAGES = 12, 4, 120
#: Full batches, fewer than one, and remainders.
SIZES = (16, 5, 20)


class CountedFeatures(DeviceFeatures):
    """Counts rows that are converted, in double precision, where rounding does not matter."""

    converted = 0

    def batch(self, rows_B: Tensor) -> Tensor:
        self.converted += len(rows_B)
        return super().batch(rows_B).double()


def _features(images: int = IMAGES) -> CountedFeatures:
    draw = np.random.default_rng(0)
    # The store has the rows of other splits, too, and in another order.
    values = draw.normal(size=(200, NUMBERS)).astype(np.float16)
    rows = draw.permutation(200)[:images]
    features = CountedFeatures(Features(values, rows), draw.integers(0, CLASSES, images), CPU)
    features.scale_C, features.shift_C = features.scale_C.double(), features.shift_C.double()
    return features


def _model(name: str, **parameters: object) -> Classifier:
    return build_model(name, (1, 1, NUMBERS), CLASSES, 0, parameters).double()


class _Clients:
    """A few clients that train round after round, from what they have come to."""

    def __init__(
        self,
        model: Classifier,
        images: DeviceFeatures,
        recipe: Recipe = RECIPE,
        sizes: tuple[int, ...] = SIZES,
    ) -> None:
        self.models = [copy.deepcopy(model) for _ in sizes]
        self.teacher, self.sizes = copy.deepcopy(model), sizes
        self.states: list[TrainingState | None] = [None] * len(sizes)
        self.images, self.recipe = images, recipe
        self.balanced = False
        # FEAL's loss, in its third round; FedProx's term, to where the teacher is.
        self.evidential = False
        self.mu = 0.0
        # By which names.
        self.anchored = [name for name, _ in model.named_parameters()]
        # Unlabelled samples of each client, for KCFU; none: plain.
        self.pools: tuple[int, ...] = (0,) * len(sizes)

    def updates(self, round_: int, more: int = 0) -> list[LocalUpdate]:
        return [self._update(client, size + more, round_) for client, size in enumerate(self.sizes)]

    def _update(self, client: int, size: int, round_: int) -> LocalUpdate:
        rows = torch.arange(40 * client, 40 * client + size).flip(0)
        draw = torch.Generator().manual_seed(10 * round_ + client)
        state = self.states[client]
        labels = self.images.labels_N[rows]
        counts_C = np.bincount(labels, minlength=CLASSES)
        # The second client keeps the plain loss.
        loss: Loss = cross_entropy
        if self.balanced and client != 1:
            loss = BalancedSoftmax(counts_C, CPU)
        if self.evidential:
            context = TrainingContext(CLASSES, counts_C, 3 + round_)
            loss = make_strategy("feal", {"kl-weight": 0.5}).training_loss(context) or loss
        return LocalUpdate(
            self.models[client],
            self.images,
            rows,
            labels,
            self.recipe,
            state,
            draw,
            Objective(loss, self._penalty(client, counts_C, round_)),
        )

    def _penalty(self, client: int, counts_C: NDArray[np.int64], round_: int) -> Penalty | None:
        anchors = {name: self.teacher.state_dict()[name] for name in self.anchored}
        near = ProximalTerm(self.mu, anchors, CPU) if self.mu else None
        if not self.pools[client]:
            return near
        compensatory = CompensatoryLoss(
            # All have the same.
            copy.deepcopy(self.teacher).eval(),
            self.images,
            torch.arange(40 * client, 40 * client + self.pools[client]),
            counts_C,
            Compensation("permutation", "eval", 8, NO_AUGMENTATION, "fp32"),
            np.random.default_rng(100 * round_ + client),
            torch.Generator().manual_seed(100 * round_ + client),
        )
        return PenaltySum(compensatory, near) if near else compensatory

    @property
    def weights(self) -> list[Tensor]:
        return [parameter for model in self.models for parameter in model.parameters()]


def _trained(
    clients: _Clients, together: TogetherTrainer | None, rows_of: tuple[int, ...]
) -> list[float]:
    """Train rounds in which the clients have so many samples more than at first; return losses."""
    losses = []
    for round_, more in enumerate(rows_of):
        updates = clients.updates(round_, more)
        done = together(updates) if together else [train_locally(update) for update in updates]
        clients.states = [each.state for each in done]
        losses += [each.loss for each in done]
    return losses


def _assert_as_alone(together: _Clients, alone: _Clients, rtol: float, atol: float) -> None:
    """Train three rounds, the last on more samples; compare weights, momentum and losses."""
    rounds = (0, 0, 9)
    losses = _trained(together, TogetherTrainer(graphs=False), rounds)
    assert losses == pytest.approx(_trained(alone, None, rounds), rel=rtol)
    for one, other in zip(together.weights, alone.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    for mine, wanted in zip(together.states, alone.states, strict=True):
        assert mine is not None
        assert wanted is not None
        assert mine.epochs == wanted.epochs
        assert mine.momentum.keys() == wanted.momentum.keys()
        for key, value in wanted.momentum.items():
            torch.testing.assert_close(mine.momentum[key], value, rtol=rtol, atol=atol)


MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "as they are": ("linear", {}),
    "of one length": ("linear", {"normalise": "unit", "scale": 4.0}),
    "hidden layer": ("mlp", {"normalise": "unit", "hidden": 6}),
    "dropout": ("linear", {"normalise": "unit", "dropout": 0.3}),
}


@pytest.mark.parametrize(("name", "parameters"), MODELS.values(), ids=MODELS)
def test_together_as_alone(name: str, parameters: dict[str, object]) -> None:
    model = _model(name, **parameters)
    together, alone = _Clients(model, _features()), _Clients(model, _features())
    _assert_as_alone(together, alone, 1e-9, 1e-12)


def test_a_balanced_softmax_is_each_clients_own() -> None:
    model = _model("linear", normalise="unit")
    together, alone = _Clients(model, _features()), _Clients(model, _features())
    together.balanced = alone.balanced = True
    _assert_as_alone(together, alone, 1e-9, 1e-12)


@pytest.fixture
def never_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the trainer does not train together."""

    def alone(update: LocalUpdate) -> TrainingResult:
        raise AssertionError("trained alone")

    monkeypatch.setattr(trainer, "_alone", alone)


@pytest.mark.parametrize(("evidential", "mu"), [(True, 0.0), (False, 0.3), (True, 0.3)])
@pytest.mark.parametrize(("name", "parameters"), MODELS.values(), ids=MODELS)
def test_own_losses_and_terms_that_hold_near(
    name: str, parameters: dict[str, object], evidential: bool, mu: float, never_alone: None
) -> None:
    model = _model(name, **parameters)
    together, alone = _Clients(model, _features()), _Clients(model, _features())
    for clients in (together, alone):
        clients.evidential, clients.mu = evidential, mu
    _assert_as_alone(together, alone, 1e-9, 1e-11)
    # They are what was minimised: without them weights are others.
    plain = _Clients(model, _features())
    _trained(plain, None, (0, 0, 9))
    assert not torch.allclose(
        torch.cat([w.flatten() for w in plain.weights]),
        torch.cat([w.flatten() for w in alone.weights]),
        rtol=1e-3,
    )


@pytest.mark.parametrize(("name", "parameters"), MODELS.values(), ids=MODELS)
def test_kcfu_that_is_held_near_too(
    name: str, parameters: dict[str, object], never_alone: None
) -> None:
    model = _model(name, **parameters)
    together, alone = _Clients(model, _features()), _Clients(model, _features())
    for clients in (together, alone):
        clients.pools, clients.balanced, clients.mu = (13, 0, 9), True, 0.3
    _assert_as_alone(together, alone, 1e-6, 1e-7)


def test_what_differs_in_more_than_constants_is_trained_alone() -> None:
    def doubled(logits: Tensor, labels: Tensor) -> Tensor:
        return 2 * cross_entropy(logits, labels, reduction="none")

    def term(model: Classifier) -> Tensor:
        return next(model.parameters()).square().sum()

    first, second, *_ = _Clients(_model("linear"), _features()).updates(0)
    one, other = SampleLoss(doubled), SampleLoss(lambda *given: 3 * doubled(*given))
    weights = dict(first.model.named_parameters())
    near = [ProximalTerm(mu, weights, CPU) for mu in (0.1, 0.2)]
    partly = ProximalTerm(0.1, {"head.bias": weights["head.bias"]}, CPU)
    for objectives, expected in (
        ((Objective(one), Objective(one)), True),
        ((Objective(one), Objective(other)), False),
        ((Objective(one), Objective(cross_entropy)), False),
        ((Objective(SampleLoss(doubled, torch.ones(2))), Objective(one)), False),
        ((Objective(one, near[0]), Objective(one, near[0])), True),
        ((Objective(one, near[0]), Objective(one, near[1])), False),
        ((Objective(one, near[0]), Objective(one)), False),
        ((Objective(one, partly), Objective(one, partly)), False),
        ((Objective(one, PenaltySum(near[0], near[1])), Objective(one, near[0])), False),
        ((Objective(one, term), Objective(one, term)), False),
        ((Objective(one, PenaltySum(near[0], term)), Objective(one, near[0])), False),
    ):
        pair = [replace(u, objective=o) for u, o in zip((first, second), objectives, strict=True)]
        assert can_train_together(pair) is expected, objectives


class _Tied(Classifier):
    """Two layers that share their weights."""

    def __init__(self, like: Classifier) -> None:
        super().__init__()
        self.vectors = copy.deepcopy(like.vectors)
        self.one, self.two = nn.Linear(NUMBERS, NUMBERS), nn.Linear(NUMBERS, NUMBERS)
        self.two.weight = self.one.weight
        self.head = nn.Linear(NUMBERS, CLASSES)

    def features(self, images_BCHW: Tensor) -> Tensor:
        hidden_BD = torch.relu(self.one(self.vectors(images_BCHW)))
        embeddings_BD: Tensor = self.two(hidden_BD)
        return embeddings_BD


def test_weights_that_layers_share_are_held_near_once(never_alone: None) -> None:
    model = _Tied(_model("linear")).double()
    together, alone = _Clients(model, _features()), _Clients(model, _features())
    # As a run has them: by all names.
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(model.parameters())) + 1
    for clients in (together, alone):
        clients.mu, clients.anchored = 0.3, names
    _assert_as_alone(together, alone, 1e-9, 1e-12)


def test_what_rests_in_a_network_rests_together_too() -> None:
    model = _model("mlp", hidden=6)
    resting = next(iter(dict(model.named_parameters())))
    dict(model.named_parameters())[resting].requires_grad_(False)
    clients = _Clients(model, _features())
    assert not can_train_together(clients.updates(0))
    _trained(clients, TogetherTrainer(graphs=False), (0,))
    for each in clients.models:
        assert torch.equal(each.state_dict()[resting], model.state_dict()[resting])
        assert not torch.equal(each.state_dict()["head.weight"], model.state_dict()["head.weight"])


@pytest.mark.parametrize("sizes", [SIZES, (*SIZES, 9)], ids=str)
def test_constants_may_have_another_shape_in_the_next_round(
    sizes: tuple[int, ...], never_alone: None
) -> None:
    """With as many clients as classes one shape would pass for the other."""

    def weighted(logits_BC: Tensor, labels_B: Tensor, weights: Tensor) -> Tensor:
        """One number for each client, or one for each of its classes."""
        losses_B = cross_entropy(logits_BC, labels_B, reduction="none")
        if weights.dim() == 1:
            return losses_B * weights
        return losses_B * weights.expand(len(labels_B), -1).gather(1, labels_B[:, None])[:, 0]

    def losses(together: TogetherTrainer | None) -> list[float]:
        clients = _Clients(_model("linear"), _features(40 * len(sizes)), sizes=sizes)
        found = []
        for round_ in range(2):
            updates = [
                replace(u, objective=Objective(SampleLoss(weighted, constant)))
                for client, u in enumerate(clients.updates(round_))
                for constant in [torch.full((CLASSES,) * (1 - round_), 1.0 + client).double()]
            ]
            done = together(updates) if together else [train_locally(u) for u in updates]
            clients.states = [each.state for each in done]
            found += [each.loss for each in done]
        return found

    assert losses(TogetherTrainer(graphs=False)) == pytest.approx(losses(None), rel=1e-9)


def test_a_term_of_millions_of_weights_keeps_its_digits() -> None:
    model = build_model("mlp", (32, 32, 3), 10, 0, {"hidden": 1024})
    stacked = StackedNetwork(model, 2, CPU)
    stacked.load([model.state_dict()] * 2)
    term = StackedProximal(1.0, stacked)
    anchors = {name: value.detach() - 1e-3 for name, value in model.named_parameters()}
    update = replace(
        _Clients(_model("linear"), _features()).updates(0)[0],
        objective=Objective(cross_entropy, ProximalTerm(1.0, anchors, CPU)),
    )
    term.load([update] * 2)
    distances = [value - anchors[name] for name, value in model.state_dict().items()]
    exact = 0.5 * sum(float(each.double().square().sum()) for each in distances)
    assert term.losses(2).tolist() == pytest.approx([exact] * 2, rel=1e-6)


@pytest.mark.parametrize("pools", [(13, 0, 9), (13, 9, 0), (0, 0, 5)], ids=str)
@pytest.mark.parametrize(("name", "parameters"), MODELS.values(), ids=MODELS)
def test_kcfu_of_clients_some_of_which_have_no_unlabelled_samples(
    name: str, parameters: dict[str, object], pools: tuple[int, ...]
) -> None:
    """One of them is the one with the most steps; dropout goes on where it was at each."""
    model = _model(name, **parameters)
    together, alone = _Clients(model, _features()), _Clients(model, _features())
    together.pools = alone.pools = pools
    together.balanced = alone.balanced = True
    # Together, shares of a mixture are kept in single precision.
    _assert_as_alone(together, alone, 1e-6, 1e-7)
    steps = [
        [b for n, b in m.named_buffers() if n.endswith("steps")]
        for m in together.models + alone.models
    ]
    assert steps[: len(SIZES)] == steps[len(SIZES) :]


def test_without_momentum_and_decay() -> None:
    plain = replace(RECIPE, momentum=0.0, weight_decay=0.0)
    model = _model("linear", normalise="unit")
    together, alone = (_Clients(model, _features(), plain) for _ in range(2))
    losses = _trained(together, TogetherTrainer(graphs=False), (0, 0, 9))
    assert losses == pytest.approx(_trained(alone, None, (0, 0, 9)), rel=1e-9)
    for one, other in zip(together.weights, alone.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_half_precision_stays_near() -> None:
    half = replace(RECIPE, precision="bf16")
    model = _model("linear", normalise="unit").float()
    features = [_features(), _features()]
    for each in features:
        each.scale_C, each.shift_C = each.scale_C.float(), each.shift_C.float()
    together, alone = (_Clients(model, each, half) for each in features)
    losses = _trained(together, TogetherTrainer(graphs=False), (0, 0, 9))
    assert losses == pytest.approx(_trained(alone, None, (0, 0, 9)), rel=0.02)
    # Not what single precision gives: the products were computed in half.
    exact = _Clients(_model("linear", normalise="unit"), _features())
    assert losses != pytest.approx(_trained(exact, None, (0, 0, 9)), rel=1e-6)
    for clients in (alone, exact):
        for one, other in zip(together.weights, clients.weights, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=0.05, atol=0.02)


def test_the_gradient_is_written_out_for_linear_heads_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    step = LinearHeadsStep.__call__

    def counted(self: LinearHeadsStep, *arguments: Any) -> Tensor:
        taken.append(self)
        return step(self, *arguments)

    monkeypatch.setattr(LinearHeadsStep, "__call__", counted)

    def is_taken(name: str, recipe: Recipe = RECIPE, **parameters: object) -> bool:
        taken.clear()
        clients = _Clients(_model(name, **parameters), _features(), recipe)
        _trained(clients, TogetherTrainer(graphs=False), (0,))
        return bool(taken)

    assert is_taken("linear")
    assert is_taken("linear", normalise="unit")
    assert not is_taken("linear", dropout=0.3)
    assert not is_taken("linear", normalise="batch")
    assert not is_taken("mlp", hidden=6)


def test_vectors_are_converted_when_the_samples_change_and_no_oftener() -> None:
    images = _features()
    clients, trainer = _Clients(_model("linear", normalise="unit"), images), TogetherTrainer(False)
    _trained(clients, trainer, (0, 0, 0))
    assert images.converted == sum(SIZES)
    _trained(clients, trainer, (4, 4))
    assert images.converted == 2 * sum(SIZES) + 4 * len(SIZES)


def test_more_than_the_memory_is_meant_for_is_converted_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _model("linear", normalise="unit")
    kept, made = _Clients(model, _features()), _Clients(model, _features())
    _trained(kept, TogetherTrainer(graphs=False), (0, 3))
    monkeypatch.setattr(vectors, "MOST_BYTES", 4 * NUMBERS * (sum(SIZES) + 3 * len(SIZES)) - 1)
    _trained(made, TogetherTrainer(graphs=False), (0, 3))
    assert made.images.converted > kept.images.converted  # type: ignore[attr-defined]
    for one, other in zip(kept.weights, made.weights, strict=True):
        assert torch.equal(one, other)


def test_what_changes_from_step_to_step_is_not_kept() -> None:
    (update, *_) = _Clients(_model("linear"), _features()).updates(0)
    assert ready_vectors([update]) is not None
    batch_norm = _Clients(_model("linear", normalise="batch"), _features()).updates(0)[0]
    assert ready_vectors([batch_norm]) is None
    views = replace(RECIPE, augmentation=Augmentation(0, False, views=2))
    assert ready_vectors([replace(update, recipe=views)]) is None
    with_pool = _Clients(_model("linear"), _features())
    with_pool.pools = (13, 0, 0)
    assert ready_vectors(with_pool.updates(0)[:1]) is None
    assert ready_vectors(with_pool.updates(0)) is None
    with_pool.mu = 0.3
    assert ready_vectors(with_pool.updates(0)) is None
    with_pool.pools = (0, 0, 0)
    assert ready_vectors(with_pool.updates(0)) is not None
    network = build_model("small-cnn", (8, 8, 1), CLASSES, 0)
    assert ready_vectors([replace(update, model=network)]) is None
