"""At a run's end each site has its model, and its own beside it where it wants that."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from safetensors import safe_open
from safetensors.numpy import load_file
from statsmodels.stats.proportion import proportion_confint
from support.killing import Killed
from support.simulation import Handler, Outcome, Simulation
from support.site_images import digits, write_images, write_labels
from support.small_backbone import SETTINGS as BACKBONE
from support.small_backbone import write_weights

from ahfal_app.cli import main
from ahfal_app.client_app import app as client_app
from ahfal_app.inference import load_model
from ahfal_app.inference.evaluation import evaluate_on
from ahfal_app.inference.predicting import Predictor
from ahfal_app.labels.store import LabelStore

DIGITS = tuple("0123456789")

RUN: dict[str, object] = {
    "partition": "sites",
    "num-clients": 2,
    "rounds": 1,
    "cycles": 2,
    "initial-fraction": 0.3,
    "query-fraction": 0.1,
    "target-fraction": 0.4,
    "strategy": "random",
}


class Sites:
    """Two sites with digits as files."""

    def __init__(self, root: Path) -> None:
        self.nodes: list[dict[str, object]] = []
        for number, rows in enumerate((range(60), range(60, 100))):
            data = root / f"data-{number}"
            truth = write_images(data, rows, DIGITS)
            write_labels(root / f"truth-{number}.csv", truth)
            self.nodes.append(
                {
                    "partition-id": number,
                    "num-partitions": 2,
                    "data": str(data),
                    "state-dir": str(root / f"state-{number}"),
                    "truth": str(root / f"truth-{number}.csv"),
                }
            )

    def handler(self, message: Message, context: Context) -> Message:
        number = int(str(context.node_config["partition-id"]))
        context.node_config = dict(self.nodes[number])  # type: ignore[arg-type]
        return client_app(message, context)

    def models(self, number: int) -> Path:
        return Path(str(self.nodes[number]["state-dir"])) / "model"


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path)


def at_the_model(sites: Sites, client: int, error: BaseException) -> Handler:
    """Return a handler that fails where one client is sent the run's model."""

    def handler(message: Message, context: Context) -> Message:
        is_model = message.metadata.message_type == "query.model"
        if is_model and context.node_config["partition-id"] == client:
            raise error
        return sites.handler(message, context)

    return handler


def classes_of(path: Path, images: Path, out: Path) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(path), str(images), "--out", str(out), "--device", "cpu"])
    assert not ended.value.code
    with out.open(encoding="utf-8-sig", newline="") as file:
        return [",".join(row.values()) for row in csv.DictReader(file)]


def test_each_site_has_the_runs_model_and_can_use_it(
    simulation: Simulation, sites: Sites, tmp_path: Path
) -> None:
    outcome = simulation(RUN, handler=sites.handler)
    own = outcome.folder / "model.safetensors"
    for number in range(2):
        folder = sites.models(number)
        assert sorted(p.name for p in folder.iterdir()) == ["model-card.md", "model.safetensors"]
        assert (folder / "model.safetensors").read_bytes() == own.read_bytes()
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "the run's model is at 2 of 2 sites" in outcome.log
    card = (sites.models(0) / "model-card.md").read_text()
    assert f"with {outcome.metrics.cycles[-1].labels} labels" in card
    assert "cycle 2, round 1" in card
    assert "personal.safetensors" not in card
    images = Path(str(sites.nodes[1]["data"]))
    found = classes_of(sites.models(0) / "model.safetensors", images, tmp_path / "site.csv")
    assert len(found) == 40
    assert found == classes_of(outcome.folder, images, tmp_path / "run.csv")
    # Of the server's data all are for testing, as in the run.
    predictor = Predictor(load_model(sites.models(0) / "model.safetensors"), torch.device("cpu"))
    data_dir = str(simulation.base["data-dir"])
    tested = evaluate_on(predictor, "digits", "test", data_dir)
    assert tested.figures.accuracy.share == outcome.metrics.cycles[-1].accuracy
    assert (tested.figures.accuracy.of, tested.note) == (1797, "")
    every = evaluate_on(predictor, "digits", "all", data_dir)
    assert (every.figures.accuracy.of, every.note) == (1797, "")


def test_the_sites_own_lies_beside_it_where_it_wants_that(
    simulation: Simulation, sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    sites.nodes[0]["keep-personal"] = True
    simulation(RUN, handler=sites.handler, evaluate="both", **{"validation-fraction": 0.4})
    folder = sites.models(0)
    (state,) = Path(str(sites.nodes[0]["state-dir"])).glob("*/0")
    local = load_file(state / "local-model-1.safetensors")
    # As whoever uses both would find it.
    store = LabelStore.open_existing(state / "labels.sqlite")
    trained_on, held_out = len(store.labelled().samples_N), store.held_out()
    store.close()
    size = len(held_out.samples_N)
    assert (trained_on + size, size > 5) == (24, True)
    with safe_open(folder / "personal.safetensors", "np") as file:
        use = json.loads(file.metadata()["ahfal"])["use"]
        for name, array in local.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    learnt = (use["personal"], use["labels"], use["accuracy"], use["cycle"])
    assert learnt == (True, trained_on, None, 1)
    by_path = np.array(sorted(range(60), key=lambda row: (row % 3, row)))
    pixels = digits()[0][by_path[held_out.samples_N], :, :, None]
    said = json.loads((folder / "comparison.json").read_text())
    assert (said["images"], said["cycle"]) == (size, 1)
    for name, told in said["models"].items():
        shares = Predictor(load_model(folder / name), torch.device("cpu")).probabilities(pixels)
        right = int((shares.argmax(axis=1) == held_out.labels_N).sum())
        assert (told["right"], told["accuracy"]) == (right, right / size)
        expected = proportion_confint(right, size, method="wilson")
        assert told["interval"] == pytest.approx(expected, abs=1e-9)
        line = f"{name}: accuracy {100 * right / size:.2f} % on {size} held-out images of this site"
        assert line in caplog.text
    assert set(said["models"]) == {"model.safetensors", "personal.safetensors"}
    assert not (sites.models(1) / "personal.safetensors").exists()
    assert "`personal.safetensors` beside it" in (folder / "model-card.md").read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_site_that_refuses_keeps_nothing(simulation: Simulation, sites: Sites) -> None:
    """And one whose answer is none is told of, too."""
    sites.nodes[1]["keep-model"] = False

    def handler(message: Message, context: Context) -> Message:
        is_first = context.node_config["partition-id"] == 0
        reply = sites.handler(message, context)
        if is_first and message.metadata.message_type == "query.model":
            reply.content.metric_records["metrics"]["kept"] = -1
        return reply

    outcome = simulation(RUN, handler=handler)
    assert outcome.summary["complete"]
    assert not sites.models(1).exists()
    assert (sites.models(0) / "model.safetensors").exists()
    assert "client 1 keeps no model (keep-model=false)" in outcome.log
    assert "client 0 has not got the model: unusable answer: kept=-1" in outcome.log
    assert "the run's model is at 0 of 2 sites" in outcome.log


def test_a_site_that_is_away_misses_it_and_gets_it_when_the_run_is_resumed(
    simulation: Simulation, sites: Sites
) -> None:
    outcome = simulation(RUN, handler=at_the_model(sites, 1, RuntimeError("away")))
    assert outcome.summary["complete"]
    assert "client 1 has not got the model: error 2" in outcome.log
    assert not sites.models(1).exists()
    again = simulation.resume(outcome.folder, sites.handler)
    _same(again, sites)
    assert again.result == outcome.result


@pytest.mark.parametrize("client", [0, 1])
def test_it_goes_on_after_a_kill(client: int, simulation: Simulation, sites: Sites) -> None:
    with pytest.raises(Killed):
        simulation(RUN, handler=at_the_model(sites, client, Killed()), name="killed")
    folder = Path(str(simulation.base["output-dir"])) / "killed"
    (sites.models(0)).mkdir(exist_ok=True)
    (sites.models(0) / ".model.safetensors.0f.tmp").write_bytes(b"half of it")
    _same(simulation.resume(folder, sites.handler), sites)


def _same(outcome: Outcome, sites: Sites) -> None:
    content = (outcome.folder / "model.safetensors").read_bytes()
    for number in range(2):
        folder = sites.models(number)
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model-card.md"}
        assert (folder / "model.safetensors").read_bytes() == content


@pytest.mark.slow
def test_of_earlier_runs_nothing_is_left(
    simulation: Simulation, sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    sites.nodes[0]["keep-personal"] = True
    simulation(RUN, handler=sites.handler)
    assert (sites.models(0) / "personal.safetensors").exists()
    said = json.loads((sites.models(0) / "comparison.json").read_text())
    assert said == {"images": 0, "cycle": 1, "note": "no held-out images"}
    assert "not compared: no held-out images" in caplog.text
    del sites.nodes[0]["keep-personal"]
    _same(simulation(RUN, handler=sites.handler, seed=1), sites)


@pytest.mark.slow
def test_the_sites_own_is_the_head_where_that_was_trained(
    simulation: Simulation, sites: Sites, tmp_path: Path
) -> None:
    """Each says for itself where the backbone's weights are; the server's folder means nothing."""
    weights = [str(write_weights(tmp_path / f"{name}.safetensors")) for name in ("a", "b")]
    sites.nodes[0] |= {"keep-personal": True, "backbone-weights": weights[0]}
    sites.nodes[1]["backbone-weights"] = weights[0]
    few = {"max-train-samples": 40, "max-test-samples": 20, "cycles": 1}
    run = {**RUN, **BACKBONE, **few, "model": "linear", "backbone-weights": weights[1]}
    outcome = simulation(run, handler=sites.handler)
    folder = sites.models(0)
    with safe_open(folder / "model.safetensors", "np") as file:
        said = json.loads(file.metadata()["ahfal"])
    with safe_open(outcome.folder / "model.safetensors", "np") as file:
        there = json.loads(file.metadata()["ahfal"])
    assert said["use"]["backbone"].pop("weights") == weights[0]
    assert there["use"]["backbone"].pop("weights") == weights[1]
    assert said == there
    names = set(load_file(folder / "personal.safetensors"))
    assert names == set(load_file(folder / "model.safetensors"))
    network = load_model(folder / "personal.safetensors").network
    assert network(torch.zeros((2, 8, 8, 1), dtype=torch.uint8)).shape == (2, 10)
