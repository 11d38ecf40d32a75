"""Whole runs in this process whose server has no data: sites alone have any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, Message
from support.simulation import Simulation
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
        self.nodes: list[dict[str, object]] = []
        for number, rows in enumerate(ROWS):
            truth = write_images(root / f"data-{number}", rows)
            write_labels(root / f"truth-{number}.csv", truth)
            first = 200 + 10 * number
            tests = write_images(root / f"tests-{number}", range(first, first + 10))
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
        context.node_config = dict(self.nodes[int(context.node_config["partition-id"])])  # type: ignore[arg-type]
        return client_app(message, context)


@pytest.fixture
def wards(tmp_path: Path) -> Wards:
    return Wards(tmp_path)


def test_pixels_are_normalised_by_all_sites_images(simulation: Simulation, wards: Wards):
    outcome = simulation(SETTINGS, handler=wards.handler, cycles=1)
    kept = json.loads((outcome.folder / "standardisation.json").read_text())
    pixels_NHW = digits()[0][:120] / 255
    assert kept["samples"] == 120
    assert kept["mean"] == [pytest.approx(pixels_NHW.mean(), rel=1e-5)]
    assert kept["deviation"] == [pytest.approx(pixels_NHW.std(), rel=1e-5)]
    (cycle,) = outcome.metrics.cycles
    # Each site tests with its folder, and holds out nothing of what it has paid for.
    assert [site.test.samples for site in cycle.sites] == [10, 10, 10]
    assert cycle.held_out == 0
    assert cycle.labels == cycle.ledger.spent
    # What the server says of the model's input is what each site knows of it.
    assert "the run's model is at 3 of 3 sites" in outcome.log
