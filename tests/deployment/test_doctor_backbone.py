"""What `ahfal doctor` says of the backbone that a run is to have."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from support.site_images import write_images
from support.small_backbone import NAME, small_backbone, write_weights

from ahfal_app.backbones import Backbone, load_backbone
from ahfal_app.cli import main
from ahfal_app.data.features import extracting
from ahfal_app.deployment import doctor
from ahfal_app.deployment.doctor import backbone as module
from ahfal_app.deployment.doctor.backbone import check_backbone
from ahfal_app.deployment.doctor.finding import Finding, Verdict

RUN: dict[str, object] = {"backbone": NAME, "backbone-size": 32}

#: timm's test networks see whole images; this one was trained on their middle.
CROPPED = "torchvision/mobilenet_v3_small"

PLACE = ["--superlink", "127.0.0.1:1", "--node-config", "partition-id=0"]


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
    said = r"\d+ images a second on cpu, not compiled: 5 images take about \d+ s, once"
    assert re.search(said, timed.text)


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


def found_with(tmp_path: Path, run: dict[str, object], server_hash: str = "") -> Finding:
    """Return what is said of the backbone."""
    path = write_weights(tmp_path / "weights.safetensors")
    return next(check_backbone({"backbone-weights": str(path)}, run, server_hash))


def test_the_hash_is_that_of_the_run_s_crop() -> None:
    # Of a network whose library crops.
    cropped = load_backbone(CROPPED, "none", 32, crop=True).digest
    whole = load_backbone(CROPPED, "none", 32).digest
    assert cropped != whole
    run: dict[str, object] = {"backbone": CROPPED, "backbone-weights": "none", "backbone-size": 32}
    told = next(check_backbone({}, {**run, "backbone-crop": True}))
    assert cropped[:12] in told.text
    assert whole[:12] in next(check_backbone({}, run)).text
    told = next(check_backbone({}, run, cropped))
    assert told.verdict is Verdict.FAILURE
    assert "--backbone-crop" in told.text


@pytest.mark.parametrize("digits", [8, 12, 64])
def test_the_server_s_hash_or_its_beginning_is_that_of_the_site(
    tmp_path: Path, digits: int
) -> None:
    server_hash = small_backbone().digest[:digits]
    for given in (server_hash, server_hash.upper()):
        found = found_with(tmp_path, RUN, given)
        assert found.verdict is Verdict.GOOD
        assert f"its hash is the server's: {server_hash}" in found.text


def test_another_hash_is_a_failure_that_names_both(tmp_path: Path) -> None:
    own = small_backbone().digest
    last = "0" if own[-1] != "0" else "1"
    for server_hash in ("0" * 12, own[:-1] + last):
        found = found_with(tmp_path, RUN, server_hash)
        assert found.verdict is Verdict.FAILURE
        told = own[: len(server_hash)]
        assert f"have the hash {told} here, and {server_hash} at the server" in found.text


@pytest.mark.parametrize("server_hash", ["abcdef1", "g" * 12, "0" * 65, " "])
def test_what_is_no_hash_is_a_failure(tmp_path: Path, server_hash: str) -> None:
    found = found_with(tmp_path, RUN, server_hash)
    assert found.verdict is Verdict.FAILURE
    assert f"--backbone-hash {server_hash!r}: allowed is the server's hash" in found.text


@pytest.mark.parametrize(
    ("compiles_from", "views", "compiled_size"),
    [(5, 0, 32), (6, 0, None), (15, 2, 32), (16, 2, None), (None, 0, None)],
)
def test_the_forecast_is_made_as_a_run_would_compute_the_features(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiles_from: int | None,
    views: int,
    compiled_size: int | None,
) -> None:
    write_images(tmp_path / "images", range(5))
    node_config = {
        "data": str(tmp_path / "images"),
        "backbone-weights": str(write_weights(tmp_path / "weights.safetensors")),
    }
    sizes: list[int | None] = []

    def uncompiled(
        backbone: Backbone, device: torch.device, size: int | None
    ) -> AbstractContextManager[object]:
        sizes.append(size)
        return extracting(backbone, device)

    monkeypatch.setattr(module, "extraction_compiles_from", lambda _: compiles_from)
    monkeypatch.setattr(module, "extracting", uncompiled)
    _, timed = check_backbone(node_config, {**RUN, "feature-views": views})
    assert sizes == [compiled_size]
    assert f"on cpu, {'compiled' if compiled_size else 'not compiled'}: 5 images" in timed.text


def test_the_command_passes_on_what_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[doctor.Site] = []

    def examined(site: doctor.Site) -> list[Finding]:
        sites.append(site)
        return []

    monkeypatch.setattr(doctor, "examine", examined)
    options = ["--backbone", NAME, "--backbone-size", "32", "--backbone-crop"]
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", *PLACE, *options, "--backbone-hash", "0" * 12, "--feature-views", "2"])
    (site,) = sites
    assert site.run == {**RUN, "backbone-crop": True, "feature-views": 2}
    assert site.backbone_hash == "0" * 12


def test_what_says_something_of_no_backbone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *PLACE, "--backbone-hash", "0" * 12])
    assert stopped.value.code == 2
    assert "allowed with --backbone" in " ".join(capsys.readouterr().err.replace("│", "").split())
