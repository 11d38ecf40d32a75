"""What a client's models give to query strategies, and whole runs of those that ask for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support.simulation import Simulation
from support.strategy_cases import context_for
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ahfal_app.client import pool as pool_models
from ahfal_app.client.pool import ClientModels, PoolSituation, make_pool
from ahfal_app.config import Settings, parse_settings
from ahfal_app.models import build_model, model_names
from ahfal_app.query import LocalOnlyTraining, PoolView, Signal, checked_select, make_strategy
from ahfal_app.training.prediction import Predictions, predict
from ahfal_app.training.resources import Resources, resources

TRAINING = LocalOnlyTraining(
    epochs=3,
    batch_size=16,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=0.0,
    decay_after=3,
    decay_counts_steps=False,
    stop_accuracy=1.0,
)
IDS = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])
LABELLED = np.arange(100, 140)


#: The default network, a head alone, for which what all models see is computed once, and one
#: whose vectors are standardised by statistics that each model has of its own.
MODELS: dict[str, dict[str, str]] = {
    "network": {},
    "head": {"model": "linear"},
    "head on standardised vectors": {"model": "linear", "model.normalise": "batch"},
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=list(MODELS))
def settings(request: pytest.FixtureRequest, data_dir: Path) -> Settings:
    given = {"data-dir": str(data_dir), "num-clients": 3, "seed": 5}
    return parse_settings(given | request.param)


@pytest.fixture(scope="module")
def loaded(settings: Settings) -> Resources:
    return resources(settings)


@pytest.fixture
def situation(loaded: Resources) -> PoolSituation:
    return PoolSituation(
        client=1,
        cycle=2,
        ids_N=IDS,
        labelled_ids_L=LABELLED,
        labels_L=loaded.dataset.train.labels_N[LABELLED].astype(np.int64),
        local_tensors=learned(loaded, 0),
        global_tensors=learned(loaded, 1),
    )


def learned(loaded: Resources, number: int) -> dict[str, Tensor]:
    """Tensors of a model of which none is as it was made, running statistics neither."""
    generator = torch.Generator().manual_seed(number)
    return {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in loaded.new_model(number).state_dict().items()
    }


def whole_pool(settings: Settings, loaded: Resources, situation: PoolSituation) -> PoolView:
    pool = make_pool(settings, loaded, make_strategy("feal"), situation)
    return pool.declaring(Signal)


def outputs_of(loaded: Resources, tensors: dict[str, Tensor], ids: np.ndarray) -> Predictions:
    model = loaded.new_model(7)
    model.load_state_dict(tensors)
    return predict(model, loaded.train_images, torch.from_numpy(ids), feature_maps=True)


def test_each_signal_comes_from_its_model_and_rows(
    settings: Settings, loaded: Resources, situation: PoolSituation
) -> None:
    pool = whole_pool(settings, loaded, situation)
    local = outputs_of(loaded, situation.local_tensors, IDS)
    global_ = outputs_of(loaded, situation.global_tensors, IDS)
    labelled = outputs_of(loaded, situation.local_tensors, LABELLED)
    labelled_by_global = outputs_of(loaded, situation.global_tensors, LABELLED)
    assert local.feature_maps_NF is not None
    for signal, expected in {
        # In an order that makes the models take turns.
        Signal.GLOBAL_LOGITS: global_.logits_NC,
        Signal.LABELLED_LOCAL_EMBEDDINGS: labelled.embeddings_ND,
        Signal.LABELLED_GLOBAL_EMBEDDINGS: labelled_by_global.embeddings_ND,
        Signal.LOCAL_FEATURE_MAPS: local.feature_maps_NF,
        Signal.GLOBAL_EMBEDDINGS: global_.embeddings_ND,
        Signal.LOCAL_LOGITS: local.logits_NC,
        Signal.LOCAL_EMBEDDINGS: local.embeddings_ND,
    }.items():
        torch.testing.assert_close(pool.signal(signal), expected)


def test_feature_maps_are_averaged_to_three_by_three_unless_they_are_a_pixel(
    loaded: Resources, situation: PoolSituation
) -> None:
    model = loaded.loaded_model(situation.local_tensors).eval()
    maps = outputs_of(loaded, situation.local_tensors, IDS).feature_maps_NF
    with torch.no_grad():
        images = loaded.train_images.batch(torch.from_numpy(IDS))
        expected = model.feature_map(images)
    assert maps is not None
    if expected.shape[2:] == (1, 1):
        torch.testing.assert_close(maps, expected.flatten(1))
        return
    expected = adaptive_avg_pool2d(expected, 3)
    assert maps.shape == (len(IDS), 9 * expected.shape[1])
    torch.testing.assert_close(maps.view_as(expected), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_each_networks_feature_maps_lead_to_its_logits(name: str) -> None:
    model = build_model(name, (32, 32, 3), 10, 0).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = model.feature_map(images)
        torch.testing.assert_close(model.features_of_map(maps), model.features(images))
        torch.testing.assert_close(model.head(model.features_of_map(maps)), model(images))
    assert maps.ndim == 4
    # A vector has no places; every other network's map has some.
    assert min(maps.shape[2:]) >= 3 or name in {"linear", "mlp"}


@pytest.mark.parametrize(("strategy", "passes"), [("feal", 2), ("entropy", 1), ("ahfal", 2)])
def test_one_forward_pass_for_each_model(
    strategy: str,
    passes: int,
    settings: Settings,
    loaded: Resources,
    situation: PoolSituation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = []

    def counting(*arguments: object) -> Predictions:
        predictions = predict(*arguments)  # type: ignore[arg-type]
        kept.append(predictions.feature_maps_NF is not None)
        return predictions

    monkeypatch.setattr(pool_models, "predict", counting)
    made = make_strategy(strategy)
    pool = make_pool(settings, loaded, made, situation)
    checked_select(made, pool, context_for(5, loaded.num_classes))
    is_head = loaded.new_model(0).has_fixed_features
    assert len(kept) == (1 if is_head else passes)
    # Only who asks for feature maps has them kept, and only of the local model; of a head's vectors
    # they are these themselves.
    assert sum(kept) == (strategy == "feal" and not is_head)


class TestPerturbed:
    def test_each_call_starts_from_the_local_model(
        self, settings: Settings, loaded: Resources, situation: PoolSituation
    ) -> None:
        models = ClientModels(settings, loaded, situation)

        def no_head(model: nn.Module) -> None:
            assert isinstance(model.head, nn.Linear)
            model.head.weight.zero_()
            model.head.bias.fill_(2.5)

        perturbed = models.perturbed(no_head)
        assert torch.equal(perturbed.logits_NC, torch.full((len(IDS), 10), 2.5))
        local = outputs_of(loaded, situation.local_tensors, IDS)
        torch.testing.assert_close(perturbed.embeddings_ND, local.embeddings_ND)
        torch.testing.assert_close(models.perturbed(lambda model: None).logits_NC, local.logits_NC)
        pool = whole_pool(settings, loaded, situation)
        pool.perturbed(no_head)
        torch.testing.assert_close(pool.signal(Signal.LOCAL_LOGITS), local.logits_NC)


class TestLocalOnly:
    def test_learns_this_clients_labels(
        self, settings: Settings, loaded: Resources, situation: PoolSituation
    ) -> None:
        """Selecting from its own labelled set shows that it knows them."""
        known = dataclasses.replace(situation, ids_N=LABELLED)
        training = dataclasses.replace(TRAINING, epochs=40, decay_after=40)
        outputs = ClientModels(settings, loaded, known).local_only(training)
        right = outputs.logits_NC.argmax(dim=1) == torch.from_numpy(situation.labels_L)
        assert float(right.float().mean()) > 0.9

    def test_trained_once_and_equal_again(
        self,
        settings: Settings,
        loaded: Resources,
        situation: PoolSituation,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trainings = []

        def counting(*arguments: object) -> int:
            trainings.append(arguments)
            return train_local_only_model(*arguments)  # type: ignore[arg-type]

        train_local_only_model = pool_models.train_local_only_model
        monkeypatch.setattr(pool_models, "train_local_only_model", counting)
        models = ClientModels(settings, loaded, situation)
        first = models.local_only(TRAINING)
        assert models.local_only(TRAINING) is first
        assert len(trainings) == 1
        models.local_only(dataclasses.replace(TRAINING, epochs=1))
        assert len(trainings) == 2
        again = ClientModels(settings, loaded, situation).local_only(TRAINING)
        assert torch.equal(again.logits_NC, first.logits_NC)

    def test_embeddings_alone_are_those_of_the_trained_model(
        self,
        settings: Settings,
        loaded: Resources,
        situation: PoolSituation,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """And where training cannot change them, nothing is trained."""
        models = ClientModels(settings, loaded, situation)
        expected = models.local_only(TRAINING), models.local_only_labelled(TRAINING)
        trainings = []
        train_local_only_model = pool_models.train_local_only_model

        def counting(*arguments: object) -> int:
            trainings.append(arguments)
            return train_local_only_model(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(pool_models, "train_local_only_model", counting)
        found = ClientModels(settings, loaded, situation).local_only_embeddings(TRAINING)
        for embeddings, outputs in zip(found, expected, strict=True):
            torch.testing.assert_close(embeddings, outputs.embeddings_ND)
        assert len(trainings) == (0 if loaded.new_model(0).has_fixed_features else 1)

    def test_starts_from_weights_of_the_cycle_that_no_other_model_has(
        self, settings: Settings, loaded: Resources, situation: PoolSituation
    ) -> None:
        def untrained(client: int, cycle: int) -> Tensor:
            none = np.empty(0, dtype=np.int64)
            changed = dataclasses.replace(
                situation, client=client, cycle=cycle, labelled_ids_L=none, labels_L=none
            )
            return ClientModels(settings, loaded, changed).local_only(TRAINING).logits_NC

        assert torch.equal(untrained(1, 2), untrained(0, 2))
        assert not torch.equal(untrained(1, 2), untrained(1, 3))
        for cycle in (1, 2, 3):
            run = outputs_of(loaded, loaded.new_model(cycle).state_dict(), IDS).logits_NC
            assert not torch.allclose(untrained(1, 2), run)

    def test_clients_draw_their_own_batches(
        self, settings: Settings, loaded: Resources, situation: PoolSituation
    ) -> None:
        other = dataclasses.replace(situation, client=2)
        answers = [
            ClientModels(settings, loaded, each).local_only(TRAINING).logits_NC
            for each in (situation, other)
        ]
        assert not torch.equal(*answers)


# Convolutions, and choices of parameters: tests of whole runs have every strategy as it is.
@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": "noise-stability", "strategy.draws": 3, "model": "small-cnn"},
        {"strategy": "logo", "strategy.epochs": 3, "model": "small-cnn"},
        {"strategy": "logo", "strategy.macro": "client"},
        {"strategy": "uncertainty-herding", "strategy.calibration": "labelled"},
        {"strategy": "feal", "strategy.loss": "ce", "strategy.pool-limit": 100},
    ],
    ids=lambda settings: " ".join(str(value) for value in settings.values()),
)
def test_whole_runs_are_equal_with_any_number_of_workers(
    strategy: dict[str, object], simulation: Simulation
) -> None:
    small: dict[str, object] = {"cycles": 2, "max-train-samples": 450}
    outcomes = [simulation({**small, **strategy}, workers=workers) for workers in (1, 3)]
    assert outcomes[0].result == outcomes[1].result
    assert len(outcomes[0].selections) > 0
    labels = [sum(cycle.labels_per_client) for cycle in outcomes[0].metrics.cycles]
    assert labels == sorted(set(labels))
