"""Whole runs in this process whose server has no data: sites alone have any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from safetensors import safe_open
from safetensors.numpy import load_file
from support.killing import killed_at
from support.simulation import Outcome, Simulation
from support.site_images import CLASSES, digits, write_images, write_labels

from ahfal_app.client_app import app as client_app

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
