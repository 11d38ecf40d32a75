"""Whole runs with a backbone: frozen, tuned, with every strategy, on a model that is there."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from safetensors.numpy import load_file
from support.hearing import Hearing
from support.simulation import Simulation
from support.small_backbone import SETTINGS, features_in, small_backbone, write_weights
from support.strategy_cases import NEEDED

from ahfal_app.backbones.core.base import digest_of
from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.client_app import app as client_app
from ahfal_app.config import parse_settings
from ahfal_app.config_sources import read_settings_file
from ahfal_app.data.features import digest_of as image_digest
from ahfal_app.errors import ConfigError, QuorumNotReached
from ahfal_app.labels.store import LabelStore
from ahfal_app.query import (
    PoolView,
    QueryContext,
    Signal,
    checked_select,
    make_strategy,
    strategy_names,
)
from ahfal_app.server.preflight import check_settings
from ahfal_app.training.resources import Resources

SMALL: dict[str, object] = {
    **SETTINGS,
    "model": "linear",
    "max-train-samples": 120,
    "max-test-samples": 40,
    "model.normalise": "unit",
}
FEATURES = 256


@pytest.mark.parametrize(("precision", "ending"), [("auto", ""), ("fp32", ""), ("bf16", "-bf16")])
def test_features_are_in_bf16_where_somebody_says_so(
    simulation: Simulation, tmp_path: Path, precision: str, ending: str
) -> None:
    own = tmp_path / "data"
    simulation(SMALL, strategy="entropy", cycles=1, precision=precision, **{"data-dir": str(own)})
    (folder,) = (path for path in (own / "features").iterdir() if path.is_dir())
    assert folder.name == small_backbone().computation[:32] + ending


@pytest.mark.slow
def test_only_the_head_is_trained_and_travels(simulation: Simulation) -> None:
    outcome = simulation(SMALL, strategy="entropy")
    model = load_file(outcome.folder / "model.safetensors")
    assert {name: value.shape for name, value in model.items()} == {
        "head.weight": (10, FEATURES),
        "head.bias": (10,),
    }
    # Three clients get and give 10 (D + 1) numbers, and a little around them.
    head = 3 * 4 * 10 * (FEATURES + 1)
    for round_ in outcome.metrics.rounds:
        assert head < round_.bytes_up < 1.2 * head
    backbone = json.loads((outcome.folder / "environment.json").read_text())["backbone"]
    assert backbone["sha256"] == small_backbone().digest
    assert backbone["features"] == FEATURES


@pytest.mark.slow
def test_features_are_computed_once_for_all_runs(simulation: Simulation, tmp_path: Path) -> None:
    settings = {**SMALL, "data-dir": str(tmp_path / "data"), "cycles": 1}
    folders = [simulation(settings, seed=seed).folder for seed in (0, 1)]
    computed = [
        json.loads((folder / "environment.json").read_text())["backbone"]["extracted"]
        for folder in folders
    ]
    counts = [{split: each["images"] for split, each in found.items()} for found in computed]
    assert counts == [{"test": 40, "train": 120}, {"test": 0, "train": 0}]


@pytest.mark.parametrize(
    "strategy",
    [
        name if name in ("badge", "feal") else pytest.param(name, marks=pytest.mark.slow)
        for name in strategy_names()
    ],
)
def test_every_strategy_chooses_by_features(simulation: Simulation, strategy: str) -> None:
    outcome = simulation(SMALL, strategy=strategy, cycles=2, **NEEDED.get(strategy, {}))
    assert [cycle.labels for cycle in outcome.metrics.cycles] == [6, 12]


def first_choice(strategy: str, loaded: Resources, data_dir: Path, client: int) -> list[int]:
    """Return ten samples of a client as a query strategy chooses them on the stored features."""
    kept = features_in(data_dir)
    ids_N = loaded.partition.indices[client]
    images_NHWC = loaded.dataset.train.images_NHWC[ids_N]
    features_ND = [np.frombuffer(kept[image_digest(image)], np.float16) for image in images_NHWC]
    embeddings_ND = torch.from_numpy(np.array(features_ND, np.float32))
    none_0D, zeros_C = embeddings_ND[:0], np.zeros(10)
    pool = PoolView(
        ids_N,
        {
            Signal.LOCAL_EMBEDDINGS: lambda: embeddings_ND,
            Signal.GLOBAL_EMBEDDINGS: lambda: embeddings_ND,
            Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: none_0D,
            Signal.LABELLED_GLOBAL_EMBEDDINGS: lambda: none_0D,
        },
    )
    context = QueryContext(
        budget=10,
        num_classes=10,
        class_counts_C=np.zeros(10, np.int64),
        statistics=ClassStatistics(zeros_C, zeros_C, zeros_C.astype(bool)),
        seed=0,
        client=client,
        cycle=0,
        labels_L=np.zeros(0, np.int64),
    )
    return sorted(checked_select(make_strategy(strategy, {}), pool, context).tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["typicality", "core-set", "prob-cover", "max-herding", "centroids"]
)
def test_first_labels_are_those_that_the_strategy_chooses_on_the_features(
    tmp_path: Path, strategy: str
) -> None:
    few = {"initial-labels": 10, "query-labels": 1, "target-labels": 10, "rounds": 1}
    simulation = Simulation(tmp_path / "runs", tmp_path / "data")
    folder = simulation({**SMALL, **few}, **{"initial-strategy": strategy}).folder
    loaded = Resources(parse_settings(read_settings_file(folder / "config.yaml")))
    for client in range(3):
        with closing(LabelStore.open_existing(folder / f"clients/{client}/labels.sqlite")) as store:
            labelled = store.labelled().samples_N.tolist()
        assert len(loaded.partition.indices[client]) > 20
        assert sorted(labelled) == first_choice(strategy, loaded, tmp_path / "data", client)


def test_a_backbone_that_is_trained_has_no_features_to_choose_first_labels_by(
    simulation: Simulation,
) -> None:
    with pytest.raises(ConfigError, match="initial-strategy='typicality': allowed is 'random'"):
        simulation(SMALL, tune="all", **{"initial-strategy": "typicality"})


#: What some runs have in common, and what each has besides.
WHATEVER_ELSE: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"model": "mlp"}, {"local-update": "kcfu", "privacy": "secure-aggregation"}),
    ({}, {"aggregation": "fedadam"}),
    ({}, {"model.dropout": 0.5}),
    # Which is nothing in the first step of a round.
    ({"local-epochs": 3}, {"aggregation": "fedprox", "aggregation.proximal-mu": 1.0}),
    ({}, {"model.normalise": "batch"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("common", "settings"), WHATEVER_ELSE)
def test_whatever_else_a_run_has(
    simulation: Simulation, common: dict[str, object], settings: dict[str, object]
) -> None:
    """It counts, and the labels that are due are bought, in equal runs alike."""
    without = simulation({**SMALL, **common}, cycles=2, name="without")
    one, other = (
        simulation({**SMALL, **common, **settings}, cycles=2, name=name)
        for name in ("one", "other")
    )
    for outcome in (without, one):
        assert [cycle.labels for cycle in outcome.metrics.cycles] == [6, 12]
    assert other.result == one.result
    assert one.result[2] != without.result[2]


@pytest.mark.slow
def test_histograms_of_runs_on_features_are_noisy(simulation: Simulation) -> None:
    """What is trained before they are told is the same."""
    noise = {"privacy": "local-dp", "privacy.epsilon": 0.1}
    outcome, without = simulation(SMALL, cycles=2, **noise), simulation(SMALL, cycles=2)
    first, second = outcome.metrics.cycles
    assert (first.labels, second.labels) == (6, 12)
    assert (first.epsilon_spent, second.epsilon_spent) == (0.1, None)
    assert first.mean != without.metrics.cycles[0].mean
    assert first.loss == without.metrics.cycles[0].loss


VIEWS = {"feature-views": 2, "augment": "crop"}


@pytest.mark.slow
@pytest.mark.parametrize("local_update", ["plain", "kcfu"])
def test_views_are_drawn_alike_together_and_in_turns(
    simulation: Simulation, local_update: str
) -> None:
    same = {**SMALL, **VIEWS, "cycles": 2, "strategy": "random", "local-update": local_update}
    turns = simulation(same, name="turns")
    together = simulation(same, name="together", **{"client-batching": "always"})
    losses = [[round_.train_loss for round_ in each.metrics.rounds] for each in (turns, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    backbone = json.loads((turns.folder / "environment.json").read_text())["backbone"]
    assert backbone["views"] == 2
    without = simulation(same, name="without", **{"feature-views": 0})
    assert [round_.train_loss for round_ in without.metrics.rounds] != losses[0]


def test_nothing_to_view_is_refused_by_name(simulation: Simulation) -> None:
    said = "feature-views=1: allowed is 0 with augment='auto', which augments nothing of digits"
    with pytest.raises(ConfigError, match=said):
        simulation(SMALL, **{"feature-views": 1})


def test_parts_of_a_backbone_are_trained_and_the_rest_stays(simulation: Simulation) -> None:
    outcome = simulation(SMALL, tune="conv_head,bn2,head", cycles=1, rounds=1, strategy="entropy")
    names = set(load_file(outcome.folder / "model.safetensors"))
    assert {name.split(".")[1] for name in names if name.startswith("backbone.")} == {
        "conv_head",
        "bn2",
    }
    assert {"head.weight", "head.bias"} < names


def differing(one: ArrayRecord, other: dict[str, np.ndarray]) -> set[str]:
    """Return the names of arrays that two models do not have alike."""
    assert one.keys() == other.keys()
    return {name for name, array in one.items() if (array.numpy() != other[name]).any()}


@pytest.mark.slow
@pytest.mark.parametrize("reset", [True, False])
def test_a_cycle_of_a_whole_backbone_opens_with_its_weights_and_a_new_head(
    simulation: Simulation, tmp_path: Path, reset: bool
) -> None:
    weights = write_weights(tmp_path / "weights.safetensors", change=0.1)
    pretrained = {f"backbone.{name}": value for name, value in load_file(weights).items()}
    hearing = Hearing()
    settings = {**SMALL, "tune": "all", "cycles": 2, "rounds": 1, "reset-model": reset}
    simulation(settings, handler=hearing, **{"backbone-weights": str(weights)})

    def sent(kind: str) -> list[ArrayRecord]:
        return [
            content.array_records["arrays"] for each, _, content, _ in hearing.heard if each == kind
        ]

    openings, chosen_by = sent("train"), sent("query.select")
    assert (len(openings), len(chosen_by)) == (6, 3)
    head = {"head.weight", "head.bias"}
    first = {name: array.numpy() for name, array in openings[0].items()}
    assert first.keys() == pretrained.keys() | head
    assert differing(openings[0], {**first, **pretrained}) == set()
    trained = {name: array.numpy() for name, array in chosen_by[0].items()}
    assert {"backbone.conv_stem.weight", "head.weight"} <= differing(openings[0], trained)
    for opening in openings[3:]:
        if reset:
            assert differing(opening, first) == head
            assert differing(opening, trained) > head
        else:
            assert differing(opening, trained) == set()


@pytest.mark.slow
def test_what_is_frozen_of_a_backbone_never_travels_and_stays(simulation: Simulation) -> None:
    """In two cycles and both directions, whatever is asked."""
    own = small_backbone()
    hearing = Hearing()
    simulation(
        SMALL, handler=hearing, tune="conv_head,bn2,head", cycles=2, rounds=1, strategy="feal"
    )
    states = {
        f"backbone.{name}"
        for name in own.network.state_dict()
        if name.partition(".")[0] in ("conv_head", "bn2")
    }
    told = set()
    for kind, _, content, reply in hearing.heard:
        for record in [*content.array_records.values(), *reply.array_records.values()]:
            told.add(kind)
            assert record.keys() == states | {"head.weight", "head.bias"}
    assert told == {"train", "query.select"}
    assert digest_of(own.name, own.network, own.preprocessing) == own.digest


def test_another_backbone_than_the_servers_is_refused_by_name(simulation: Simulation) -> None:
    def other(message: Message, context: Context) -> Message:
        message.content.config_records["config"]["backbone"] = "0" * 64
        return client_app(message, context)

    with pytest.raises(QuorumNotReached) as error:
        simulation(SMALL, handler=other)
    assert (
        f"backbone='timm/test_efficientnet': weights and preprocessing have the hash "
        f"{small_backbone().digest[:12]} here, and 000000000000 at the server"
    ) in str(error.value)


def test_a_run_goes_on_with_a_model_that_is_there(simulation: Simulation, tmp_path: Path) -> None:
    before = simulation(SMALL, strategy="entropy", cycles=1).folder
    told: list[dict[str, object]] = []

    def first_round(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            arrays = message.content.array_records["arrays"]
            told.append({name: array.numpy() for name, array in arrays.items()})
        return client_app(message, context)

    simulation(
        SMALL,
        handler=first_round,
        strategy="entropy",
        cycles=2,
        rounds=1,
        name="after",
        **{"initial-model": str(before)},
    )
    model = load_file(before / "model.safetensors")
    assert len(told) == 6
    for arrays in told:
        assert {name: value.tolist() for name, value in arrays.items()} == {  # type: ignore[attr-defined]
            name: value.tolist() for name, value in model.items()
        }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tune": "all"}, "tune='all': allowed with a backbone alone"),
        ({**SETTINGS, "model": "resnet8"}, "allowed with backbone='timm/test_efficientnet' is a"),
        ({"backbone": "timm/efficientnet"}, "allowed is timm/ with one of timm.list_models()"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_settings(settings)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tune": "layer4,head"}, "'layer4' is no part of timm/test_efficientnet"),
        ({"tune": "conv_head"}, "allowed are parts with 'head' among them"),
        ({"backbone-weights": "nowhere.pth"}, "no such file"),
        ({"initial-model": "nowhere"}, "no such file or folder"),
    ],
)
def test_what_shows_when_the_backbone_is_there(
    simulation: Simulation, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        simulation(SMALL, **settings)
    assert said in str(error.value)


@pytest.mark.slow
def test_a_model_of_another_backbone_is_refused(simulation: Simulation, tmp_path: Path) -> None:
    before = simulation(SMALL, cycles=1, rounds=1).folder
    weights = write_weights(tmp_path / "weights.safetensors", change=0.1)
    with pytest.raises(ConfigError, match="it was trained on the backbone"):
        simulation(SMALL, **{"initial-model": str(before), "backbone-weights": str(weights)})
