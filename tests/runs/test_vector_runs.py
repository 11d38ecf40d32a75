"""Runs on vectors: simulated, at sites, resumed; and what chooses their first labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from flwr.app import Context, Message
from pyarrow import parquet
from safetensors import safe_open
from safetensors.numpy import load_file
from sklearn.datasets import load_breast_cancer
from support.killing import killed_at, killed_at_each, uninterrupted
from support.patients import patients as a_table
from support.patients import write_patients
from support.simulation import Simulation
from support.strategy_cases import NEEDED

from ahfal_app.client_app import app as client_app
from ahfal_app.config import parse_settings
from ahfal_app.data.sources import load_dataset
from ahfal_app.errors import ConfigError
from ahfal_app.labels.spreadsheet import write_csv
from ahfal_app.query import strategy_names

SETTINGS: dict[str, object] = {
    "model": "auto",
    "initial-labels": 6,
    "query-labels": 4,
    "target-labels": 14,
    "learning-rate": 0.05,
    "rounds": 3,
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    return write_patients(folder / "patients.parquet", slice(0, 300))


# With one label or none, every strategy is tried among the fast tests.
@pytest.mark.parametrize(
    "strategy",
    [
        name if name in ("ahfal", "badge", "feal") else pytest.param(name, marks=pytest.mark.slow)
        for name in strategy_names()
    ],
)
def test_every_strategy_does_with_ten_vectors_labelled_at_each_client(
    strategy: str, patients: Path, simulation: Simulation
):
    few = {"initial-labels": 10, "query-labels": 5, "target-labels": 15}
    outcome = simulation(
        SETTINGS | few | NEEDED.get(strategy, {}),
        dataset=str(patients),
        strategy=strategy,
        alpha=10.0,
    )
    labels = [cycle.labels_per_client for cycle in outcome.metrics.cycles]
    assert labels == [(10, 10, 10), (15, 15, 15)]
    assert outcome.metrics.cycles[-1].accuracy > 0.8


@pytest.mark.slow
def test_a_killed_run_on_vectors_ends_as_one_that_ran_through(
    patients: Path, simulation: Simulation
):
    few = {"initial-strategy": "typicality", "rounds": 1, "cycles": 2}
    settings = SETTINGS | {"dataset": str(patients), **few}
    straight = uninterrupted(simulation, **settings)
    # The first labels are bought in a message of their own: just before, within, and after it.
    for _, folder in killed_at_each((12, 15, straight.events // 2), simulation, **settings):
        assert simulation.resume(folder).result == straight.result


def test_first_labels_are_chosen_by_features(patients: Path, simulation: Simulation):
    settings = SETTINGS | {"dataset": str(patients), "cycles": 1, "strategy": "random"}
    by_chance = simulation(settings)
    typical = simulation(settings, **{"initial-strategy": "typicality"})
    assert by_chance.metrics.cycles[0].labels == typical.metrics.cycles[0].labels == 18
    assert by_chance.metrics.cycles[0].loss != typical.metrics.cycles[0].loss


def test_first_labels_of_images_are_chosen_by_chance_alone(simulation: Simulation):
    with pytest.raises(ConfigError, match="initial-strategy='typicality': allowed is 'random' for"):
        simulation(SETTINGS, **{"initial-strategy": "typicality"})
    with pytest.raises(ConfigError, match="initial-strategy='margin': allowed are those that need"):
        simulation(SETTINGS, **{"initial-strategy": "margin"})


class Clinics:
    """Four sites with parquet files of their own."""

    def __init__(self, root: Path) -> None:
        self.nodes = []
        self.server = write_patients(root / "test.parquet", slice(400, 569))
        for number, rows in enumerate(np.split(np.arange(400), (130, 240, 330))):
            table, folder = a_table(rows), root / f"site-{number}"
            folder.mkdir()
            parquet.write_table(table.drop_columns("label"), folder / "cases.parquet")
            truth = [
                (f"cases.parquet#{row}", label)
                for row, label in enumerate(table.column("label").to_pylist())
            ]
            write_csv(root / f"truth-{number}.csv", ("file", "label"), truth)
            self.nodes.append(
                {
                    "partition-id": number,
                    "num-partitions": 4,
                    "data": str(folder),
                    "state-dir": str(root / f"state-{number}"),
                    "truth": str(root / f"truth-{number}.csv"),
                }
            )

    def handler(self, message: Message, context: Context) -> Message:
        context.node_config = dict(self.nodes[int(context.node_config["partition-id"])])  # type: ignore[arg-type]
        return client_app(message, context)


@pytest.mark.slow
def test_sites_are_standardised_together_secretly_or_not(tmp_path: Path, simulation: Simulation):
    clinics = Clinics(tmp_path)
    settings = SETTINGS | {
        "dataset": str(clinics.server),
        "partition": "sites",
        "num-clients": 4,
        "initial-strategy": "typicality",
        "strategy": "entropy",
    }
    told = simulation(settings, handler=clinics.handler)
    summed = simulation(settings, handler=clinics.handler, privacy="secure-aggregation")
    kept = [json.loads((run.folder / "standardisation.json").read_text()) for run in (told, summed)]
    assert kept[0] == kept[1]
    values_ND = load_breast_cancer().data[:400]
    assert kept[0]["samples"] == 400
    np.testing.assert_allclose(kept[0]["mean"], values_ND.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(kept[0]["deviation"], values_ND.std(axis=0), rtol=1e-3)
    # Losses and the model are the same to the last bit; class statistics are rounded in a sum.
    assert told.result[2] == summed.result[2]
    models = [load_file(run.folder / "model.safetensors") for run in (told, summed)]
    assert models[0].keys() == models[1].keys()
    for name, values in models[0].items():
        np.testing.assert_array_equal(values, models[1][name])
    assert all("the run's model is at 4 of 4 sites" in run.log for run in (told, summed))
    assert told.metrics.cycles[-1].labels == 4 * 14
    assert told.metrics.cycles[-1].accuracy > 0.85


def _said_of(folder: Path) -> dict[str, Any]:
    """Return what a run's model says of its use."""
    with safe_open(folder / "model.safetensors", "np") as model:
        said: dict[str, Any] = json.loads(model.metadata()["ahfal"])["use"]
    return said


def test_a_model_on_vectors_can_be_used_by_what_its_file_says(
    patients: Path, simulation: Simulation
):
    outcome = simulation(SETTINGS, dataset=str(patients), cycles=1)
    said, arrays = _said_of(outcome.folder), load_file(outcome.folder / "model.safetensors")
    settings = {"dataset": str(patients), "data-dir": simulation.base["data-dir"]}
    test = load_dataset(parse_settings(settings)).test
    vectors_ND = test.images_NHWC.reshape(len(test), -1)
    standard_ND = (vectors_ND - np.array(said["mean"])) / np.array(said["deviation"])
    logits_NC = standard_ND @ arrays["head.weight"].T + arrays["head.bias"]
    accuracy = (logits_NC.argmax(axis=1) == test.labels_N).mean()
    assert accuracy == pytest.approx(outcome.metrics.cycles[-1].accuracy)
    assert accuracy > 0.8


@pytest.mark.slow
def test_a_run_that_goes_on_with_a_model_keeps_its_standardisation(
    patients: Path, tmp_path: Path, simulation: Simulation
):
    first = simulation(SETTINGS, dataset=str(patients), cycles=1)
    said = _said_of(first.folder)
    clinics = Clinics(tmp_path)
    going_on = SETTINGS | {"dataset": str(clinics.server), "initial-model": str(first.folder)}
    asked: set[str] = set()

    def watched(message: Message, context: Context) -> Message:
        asked.add(message.metadata.message_type)
        return clinics.handler(message, context)

    sites = {"partition": "sites", "num-clients": 4}
    at_sites = simulation(going_on | sites, handler=watched, cycles=1)
    assert "query.moments" not in asked
    assert "the run's model is at 4 of 4 sites" in at_sites.log
    simulated = simulation(going_on, cycles=1)
    for run in (at_sites, simulated):
        assert _said_of(run.folder)["mean"] == said["mean"]
        assert _said_of(run.folder)["deviation"] == said["deviation"]
        # It knows already what it is asked.
        assert run.metrics.rounds[0].train_loss < 0.7 * first.metrics.rounds[0].train_loss
    alone = simulation(SETTINGS | {"dataset": str(clinics.server)}, cycles=1)
    assert _said_of(alone.folder)["mean"] != said["mean"]
    with pytest.raises(ConfigError, match="standardise='none': allowed is 'federation'"):
        simulation(going_on, standardise="none")
    shorter = tmp_path / "shorter.parquet"
    few = load_breast_cancer().data[:, :5].astype(np.float32)
    parquet.write_table(pa.table({"vector": list(few), "label": ["a", "b"] * 284 + ["a"]}), shorter)
    with pytest.raises(ConfigError, match="it takes vectors of 30 numbers, and the data have 5"):
        simulation(going_on, dataset=str(shorter))


@pytest.mark.slow
def test_a_site_whose_sums_cannot_be_is_not_counted(tmp_path: Path, simulation: Simulation):
    clinics = Clinics(tmp_path)

    def lying(message: Message, context: Context) -> Message:
        kind, node = message.metadata.message_type, int(str(context.node_config["partition-id"]))
        reply = clinics.handler(message, context)
        if (kind, node) == ("query.moments", 1):
            reply.content.metric_records["metrics"]["sums"] = [110, *[2**61] * 60]
        return reply

    settings = SETTINGS | {"dataset": str(clinics.server), "partition": "sites", "num-clients": 4}
    outcome = simulation(settings, handler=lying, cycles=1, rounds=1)
    kept = json.loads((outcome.folder / "standardisation.json").read_text())
    assert kept["samples"] == 400 - 110
    assert "vectors are standardised without" in outcome.log
    assert "moments: sums that no samples have" in outcome.log


@pytest.mark.slow
def test_a_run_over_sites_keeps_its_standardisation_when_it_is_resumed(
    tmp_path: Path, simulation: Simulation
):
    clinics = Clinics(tmp_path)
    settings = SETTINGS | {"dataset": str(clinics.server), "partition": "sites", "num-clients": 4}
    straight = simulation(settings, handler=clinics.handler)
    folder = killed_at(48, simulation, watch=clinics.handler, **settings)
    path = folder / "standardisation.json"
    before = path.read_bytes()
    resumed = simulation.resume(folder, clinics.handler)
    assert path.read_bytes() == before
    assert resumed.result[1:] == straight.result[1:]
