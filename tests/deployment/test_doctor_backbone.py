"""What `ahfal doctor` says of the backbone that a run is to have."""

from __future__ import annotations

import re
from pathlib import Path

from support.site_images import write_images
from support.small_backbone import NAME, small_backbone, write_weights

from ahfal_app.deployment.doctor.backbone import check_backbone
from ahfal_app.deployment.doctor.finding import Verdict

RUN = {"backbone": NAME, "backbone-size": 32}


def test_it_is_loaded_and_timed(tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(5))
    node_config = {
        "data": str(tmp_path / "images"),
        "state-dir": str(tmp_path / "state"),
        "backbone-weights": str(write_weights(tmp_path / "weights.safetensors")),
    }
    loaded, timed = check_backbone(node_config, RUN)
    assert loaded.verdict is Verdict.GOOD
    assert small_backbone().digest[:12] in loaded.text
    assert re.search(r"\d+ images a second on cpu: 5 images take about \d+ s", timed.text)


def test_views_take_their_time(tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(5))
    node_config = {
        "data": str(tmp_path / "images"),
        "backbone-weights": str(write_weights(tmp_path / "weights.safetensors")),
    }
    _, timed = check_backbone(node_config, {**RUN, "feature-views": 2})
    assert "5 images and 2 views of each take about" in timed.text


def test_weights_that_are_not_there_are_told() -> None:
    (found,) = check_backbone({"backbone-weights": "/nowhere.pth"}, RUN)
    assert found.verdict is Verdict.FAILURE
    assert "no such file" in found.text
