"""Whole runs in this process whose server has no data: sites alone have any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from flwr.app import Context, Message
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open
from safetensors.numpy import load_file
from sklearn.datasets import load_breast_cancer
from support.killing import Killed, killed_at
from support.simulation import Outcome, Simulation
from support.site_images import CLASSES, digits, write_images, write_labels
from support.small_backbone import SETTINGS as BACKBONE
from support.small_backbone import small_backbone

from ahfal_app.client_app import app as client_app
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.images import Images
from ahfal_app.data.moments import OfPixels
from ahfal_app.data.pixels import pixels
from ahfal_app.errors import QuorumNotReached, SecureAggregationFailed
from ahfal_app.inference import load_model
from ahfal_app.inference.predicting import Predictor
from ahfal_app.training import resources

ROWS = (range(0, 60), range(60, 100), range(100, 120))

SETTINGS: dict[str, object] = {
    "dataset": "none",
    "evaluate": "sites",
    "partition": "sites",
    "classes": ",".join(CLASSES),
    "image-size": 8,
    "image-channels": 1,
    "initial-fraction": 0.3,
    "query-fraction": 0.1,
    "target-fraction": 0.5,
}

AT_ALL_SITES = "the run's model is at 3 of 3 sites"


class Wards:
    """Three sites with digits, and a folder each for testing."""

    def __init__(self, root: Path) -> None:
        self.asked: list[str] = []
        self.nodes: list[dict[str, object]] = []
        for number, rows in enumerate(ROWS):
            truth = write_images(root / f"data-{number}", rows)
            write_labels(root / f"truth-{number}.csv", truth)
            first = 200 + 20 * number
            tests = write_images(root / f"tests-{number}", range(first, first + 20))
            write_labels(root / f"tests-{number}" / "labels.csv", tests)
            self.nodes.append(
                {
                    "partition-id": number,
                    "num-partitions": 3,
                    "data": str(root / f"data-{number}"),
                    "state-dir": str(root / f"state-{number}"),
                    "truth": str(root / f"truth-{number}.csv"),
                    "validation": str(root / f"tests-{number}"),
                    "data-dir": str(root / "decoded"),
                }
            )

    def handler(self, message: Message, context: Context) -> Message:
        self.asked.append(message.metadata.message_type)
        context.node_config = dict(self.nodes[int(context.node_config["partition-id"])])  # type: ignore[arg-type]
        return client_app(message, context)


@pytest.fixture
def wards(tmp_path: Path) -> Wards:
    return Wards(tmp_path)


def _kept(outcome: Outcome) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((outcome.folder / "standardisation.json").read_text())
    return kept


def _use(outcome: Outcome) -> dict[str, Any]:
    with safe_open(outcome.folder / "model.safetensors", "np") as model:
        said: dict[str, Any] = json.loads(model.metadata()["ahfal"])["use"]
    return said


@pytest.mark.slow
def test_pixels_are_normalised_by_all_sites_images_and_all_is_tested_at_sites(
    simulation: Simulation, wards: Wards
):
    outcome = simulation(SETTINGS, handler=wards.handler, **{"local-epochs": 20, "batch-size": 16})
    kept, pixels_NHW = _kept(outcome), digits()[0][:120] / 255
    assert kept["samples"] == 120
    assert kept["mean"] == [pytest.approx(pixels_NHW.mean(), rel=1e-5)]
    assert kept["deviation"] == [pytest.approx(pixels_NHW.std(), rel=1e-5)]
    assert (_use(outcome)["mean"], _use(outcome)["deviation"]) == (kept["mean"], kept["deviation"])
    assert _use(outcome)["shape"] == [8, 8, 1]
    # What the server says of the model's input is what each site knows of it.
    assert AT_ALL_SITES in outcome.log
    last = outcome.metrics.cycles[-1]
    # All labels are trained on: the sites bring what they test with.
    assert last.labels_per_client == (30, 20, 10)
    assert last.held_out == 0
    assert [test.where for test in last.tests] == ["sites"]
    assert [site.test.samples for site in last.sites] == [20, 20, 20]
    # The model by another way: an MLP of numpy on the sites' test images, normalised as is said.
    arrays = load_file(outcome.folder / "model.safetensors")
    tests_NHW, labels_N = digits()[0][200:260] / 255, digits()[1][200:260]
    normal_ND = (tests_NHW.reshape(60, 64) - kept["mean"][0]) / kept["deviation"][0]
    weights = [arrays[name] for name in sorted(arrays) if name.endswith("weight")]
    biases = [arrays[name] for name in sorted(arrays) if name.endswith("bias")]
    assert len(weights) == 2, sorted(arrays)
    head, hidden = (0, 1) if len(biases[0]) == 10 else (1, 0)
    logits = np.maximum(normal_ND @ weights[hidden].T + biases[hidden], 0)
    logits = logits @ weights[head].T + biases[head]
    assert last.accuracy == pytest.approx((logits.argmax(axis=1) == labels_N).mean())
    assert last.accuracy > 0.6


@pytest.mark.slow
def test_what_is_kept_is_the_same_in_secret_and_after_a_kill(simulation: Simulation, wards: Wards):
    straight = simulation(SETTINGS, handler=wards.handler)
    summed = simulation(SETTINGS, handler=wards.handler, privacy="secure-aggregation")
    assert _kept(summed) == _kept(straight)
    assert summed.result[2] == straight.result[2]
    folder = killed_at(40, simulation, watch=wards.handler, **SETTINGS)
    before = (folder / "standardisation.json").read_bytes()
    wards.asked.clear()
    resumed = simulation.resume(folder, wards.handler)
    assert (folder / "standardisation.json").read_bytes() == before
    assert "query.moments" not in wards.asked
    assert resumed.result[1:] == straight.result[1:]


@pytest.mark.slow
def test_what_the_run_says_of_data_that_the_server_has_not(simulation: Simulation, wards: Wards):
    outcome = simulation(SETTINGS, handler=wards.handler, cycles=1)
    data = json.loads((outcome.folder / "environment.json").read_text())["data"]
    assert (data["fingerprint"], data["train"], data["test"]) == (None, 0, 0)
    assert data["class_names"] == list(CLASSES)
    # Photographs of 8 pixels would be moved by one; grey ones are not mirrored.
    resolved = json.loads((outcome.folder / "environment.json").read_text())["resolved"]
    assert Augmentation(**resolved["augmentation"]) == Augmentation(padding=1, flip=False)
    report = (outcome.folder / "report.html").read_text()
    assert "the server has none: classes and format are those of the settings" in report
    card = (outcome.folder / "model-card.md").read_text()
    assert "The sites' own images; the server has none; 36 labels over 3 sites." in card
    assert "60 images that the sites hold out of their labels" in card
    assert "ahfal on the sites' own data" in outcome.log


@pytest.mark.slow
def test_a_model_that_is_there_says_how_its_images_are_normalised(
    simulation: Simulation, wards: Wards
):
    first = simulation(SETTINGS, handler=wards.handler, cycles=1, rounds=1)
    wards.asked.clear()
    again = simulation(
        SETTINGS, handler=wards.handler, cycles=1, rounds=1, **{"initial-model": str(first.folder)}
    )
    assert "query.moments" not in wards.asked
    assert _kept(again) == {key: _kept(first)[key] for key in ("mean", "deviation")}
    assert _use(again)["mean"] == _use(first)["mean"]
    assert AT_ALL_SITES in again.log


def test_sites_without_images_to_test_with_hold_some_of_their_labels_out(
    simulation: Simulation, wards: Wards
):
    for node in wards.nodes[1:]:
        del node["validation"]
    outcome = simulation(SETTINGS, handler=wards.handler, cycles=1, rounds=1)
    last = outcome.metrics.cycles[-1]
    assert last.labels_per_client[0] == 18
    assert 0 < last.held_out == 12 + 6 - sum(last.labels_per_client[1:])
    assert next(site.test.samples for site in last.sites) == 20


def test_a_site_whose_folder_for_testing_cannot_be_used_does_not_join(
    simulation: Simulation, wards: Wards, tmp_path: Path
):
    (tmp_path / "tests-1" / "labels.csv").write_text("file,label\nward-0/0222.png,ten\n")
    outcome = simulation(SETTINGS, handler=wards.handler, cycles=1, rounds=1)
    assert "[label-file]" in outcome.log
    assert _kept(outcome)["samples"] == 80


def test_a_site_whose_sums_cannot_be_is_not_counted(simulation: Simulation, wards: Wards):
    def lying(message: Message, context: Context) -> Message:
        kind, node = message.metadata.message_type, context.node_config["partition-id"]
        reply = wards.handler(message, context)
        if (kind, node) == ("query.moments", 1):
            sums = reply.content.metric_records["metrics"]["sums"]
            # White all over, and whiter than that.
            reply.content.metric_records["metrics"]["sums"] = [*sums[:3], 41, *sums[4:]]  # type: ignore[index]
        return reply

    outcome = simulation(SETTINGS, handler=lying, cycles=1, rounds=1)
    assert _kept(outcome)["samples"] == 80
    assert "pixels are standardised without client 1: moments: sums that no samples" in outcome.log


@pytest.mark.slow
def test_sums_that_no_sites_have_end_a_run_whose_sums_are_secret(
    simulation: Simulation, wards: Wards, monkeypatch: pytest.MonkeyPatch
):
    honest = OfPixels.of

    def lying(self: OfPixels, images: Images, rows_N: np.ndarray) -> np.ndarray:
        sums = honest(self, images, rows_N)
        return np.array([*sums[:3], 10**6, *sums[4:]]) if len(rows_N) == 40 else sums

    monkeypatch.setattr(OfPixels, "of", lying)
    with pytest.raises(SecureAggregationFailed, match="no sum over 3 sites' samples"):
        simulation(SETTINGS, handler=wards.handler, privacy="secure-aggregation", cycles=1)


@pytest.mark.slow
def test_a_backbone_says_how_images_are_normalised(
    simulation: Simulation, wards: Wards, tmp_path: Path
):
    wanted = small_backbone().preprocessing
    own = {"image-size": 0, "image-channels": 3, "model": "linear", "cycles": 1}
    outcome = simulation({**SETTINGS, **BACKBONE}, handler=wards.handler, **own)
    assert "query.moments" not in wards.asked
    assert not (outcome.folder / "standardisation.json").exists()
    assert AT_ALL_SITES in outcome.log
    use = _use(outcome)
    assert use["shape"] == [wanted.size, wanted.size, 3]
    assert (tuple(use["mean"]), tuple(use["deviation"])) == (wanted.mean_C, wanted.std_C)
    # Of an image for testing the features are kept like those of any other, in a place of its own.
    stores = (tmp_path / "decoded" / "features").glob("site-*/features.f16")
    counts = sorted(path.stat().st_size // (2 * small_backbone().features) for path in stores)
    assert counts == [20, 20, 20, 20, 40, 60]
    # The figures are those of the saved model, on the images as its file says they are brought in.
    shape = (wanted.size, wanted.size, 3)
    tests_NHWC = np.stack([pixels(Image.fromarray(digits()[0][i]), shape) for i in range(200, 260)])
    predictor = Predictor(load_model(outcome.folder), torch.device("cpu"))
    predicted_N = predictor.probabilities(tests_NHWC).argmax(axis=1)
    accuracy = (predicted_N == digits()[1][200:260]).mean()
    assert outcome.metrics.cycles[-1].accuracy == pytest.approx(accuracy)


@pytest.mark.slow
def test_vectors_of_any_scale_are_standardised_over_all_sites(
    simulation: Simulation, tmp_path: Path
):
    """Measurements from 0.001 to 4254, whose means are no scale that a server could know."""
    values, target = load_breast_cancer(return_X_y=True)
    nodes: list[dict[str, object]] = []
    for number, rows in enumerate(np.split(np.arange(300), (100, 170))):
        data, tests = tmp_path / f"site-{number}", tmp_path / f"tests-{number}"
        for folder, chosen in ((data, rows), (tests, np.arange(300, 340) + 40 * number)):
            folder.mkdir()
            vectors = list(values[chosen].astype(np.float32))
            parquet.write_table(pa.table({"vector": vectors}), folder / "cases.parquet")
            labels = {f"cases.parquet#{i}": "ab"[target[row]] for i, row in enumerate(chosen)}
            write_labels(folder.with_suffix(".csv"), labels)
        write_labels(tests / "labels.csv", labels)
        nodes.append(
            {
                "partition-id": number,
                "num-partitions": 3,
                "data": str(data),
                "state-dir": str(tmp_path / f"state-{number}"),
                "truth": str(tmp_path / f"site-{number}.csv"),
                "validation": str(tests),
                "data-dir": str(tmp_path / "decoded"),
            }
        )

    def handler(message: Message, context: Context) -> Message:
        context.node_config = dict(nodes[int(context.node_config["partition-id"])])  # type: ignore[arg-type]
        return client_app(message, context)

    settings = {
        "dataset": "none",
        "evaluate": "sites",
        "partition": "sites",
        "classes": "a,b",
        "vector-length": 30,
        "model": "auto",
        "learning-rate": 0.05,
        "initial-labels": 20,
        "query-labels": 10,
        "target-labels": 30,
        "initial-strategy": "typicality",
        "rounds": 3,
    }
    outcome = simulation(settings, handler=handler)
    kept = _kept(outcome)
    assert kept["samples"] == 300
    np.testing.assert_allclose(kept["mean"], values[:300].mean(axis=0), rtol=5e-6)
    np.testing.assert_allclose(kept["deviation"], values[:300].std(axis=0), rtol=5e-6)
    assert _use(outcome)["mean"] == kept["mean"]
    assert [site.test.samples for site in outcome.metrics.cycles[-1].sites] == [40, 40, 40]
    assert outcome.metrics.cycles[-1].accuracy > 0.85
    assert AT_ALL_SITES in outcome.log
    with pytest.raises(QuorumNotReached, match="images"):
        simulation(settings, handler=handler, quorum=1.0, **{"vector-length": 29})


@pytest.mark.slow
def test_what_a_site_has_told_stays_though_the_server_has_forgotten_it(
    simulation: Simulation, wards: Wards, tmp_path: Path
):
    """It is killed before it has kept anything; until it is back, an image more has come."""
    told: list[object] = []

    def killing(message: Message, context: Context) -> Message:
        reply = wards.handler(message, context)
        if message.metadata.message_type == "query.moments":
            told.append(context.node_config["partition-id"])
            if len(told) == 2:
                raise Killed
        return reply

    with pytest.raises(Killed):
        simulation(SETTINGS, handler=killing, name="killed", cycles=1, rounds=1)
    folder = Path(str(simulation.base["output-dir"])) / "killed"
    assert not (folder / "standardisation.json").exists()
    write_images(tmp_path / f"data-{told[0]}", [300])
    resources._sites.clear()  # As in deployment, where each message has a process of its own.
    assert _kept(simulation.resume(folder, wards.handler))["samples"] == 120


@pytest.mark.slow
def test_what_sites_test_decides_when_a_run_ends(simulation: Simulation, wards: Wards):
    enough = {"stopping": "target", "stopping.accuracy": 0.001, "stopping.after": 1}
    cycles = simulation(SETTINGS, handler=wards.handler, rounds=1, **enough).metrics.cycles
    # A share of sixty images is above that, whatever is right, unless none is.
    assert cycles[0].accuracy > 0
    assert len(cycles) == 1
    assert cycles[0].stopped_by
