"""A saved model gives what the run's model gave, or is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.saved_models import KINDS
from support.simulation import SharedRuns
from support.small_backbone import write_weights

from ahfal_app.errors import ConfigError
from ahfal_app.inference import load_model
from ahfal_app.results.reading import read_metrics
from ahfal_app.server.start import prepare
from ahfal_app.training.prediction import predict

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_the_run_tested(
    shared_runs: SharedRuns, kind: str, tmp_path: Path, data_dir: Path
) -> None:
    """Logits by the path of training: cached features, standardised images."""
    folder = shared_runs(KINDS[kind]).folder
    saved = load_model(folder)
    values = {**KINDS[kind], "num-clients": 3, "data-dir": str(data_dir)}
    loaded = prepare({**values, "output-dir": str(tmp_path)}).loaded
    model = loaded.model_with(load_file(folder / "model.safetensors"))
    expected = predict(model, loaded.test_images, torch.arange(60)).logits_NC
    with torch.inference_mode():
        found = saved.network.logits(torch.from_numpy(loaded.dataset.test.images_NHWC.copy()))
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    right = (found.argmax(dim=1) == torch.from_numpy(loaded.dataset.test.labels_N.copy())).sum()
    assert int(right) / 60 == read_metrics(folder).cycles[-1].accuracy


@pytest.mark.slow
def test_it_says_what_it_is(shared_runs: SharedRuns) -> None:
    folder = shared_runs(KINDS["head"]).folder
    saved = load_model(folder / "model.safetensors")
    assert saved.classes == tuple("0123456789")
    assert saved.use.shape == (8, 8, 1)
    assert saved.use.network == "linear"
    assert saved.use.parameters["normalise"] == "unit"
    assert saved.use.labels == read_metrics(folder).cycles[-1].labels
    assert saved.use.accuracy == read_metrics(folder).cycles[-1].accuracy
    assert saved.use.backbone is not None
    assert saved.use.backbone.name == "timm/test_efficientnet"


def test_equal_runs_leave_equal_files(shared_runs: SharedRuns) -> None:
    again = {**KINDS["network"], "quorum": 0.31}
    files = [
        (shared_runs(settings).folder / "model.safetensors").read_bytes()
        for settings in (KINDS["network"], again)
    ]
    assert files[0] == files[1]


def rewritten(folder: Path, target: Path, **changes: Any) -> Path:
    """Write a run's model with another description; `use` is changed key by key."""
    from safetensors import safe_open

    file = folder / "model.safetensors"
    with safe_open(file, "pt") as found:
        said = json.loads(found.metadata()["ahfal"])
    use = {**said["use"], **changes.pop("use", {})}
    said = {**said, "use": use, **changes}
    said = {key: value for key, value in said.items() if value is not None}
    save_file(load_file(file), target, {"ahfal": json.dumps(said)})
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": None}, "it has no list of classes"),
        ({"classes": ["a", 1]}, "it has no list of classes"),
        ({"classes": ["a"]}, "'head.weight' is not as its network has it"),
        ({"use": {"mean": [0.5, 0.5]}}, "2 means for 1 channels; allowed is one each"),
        ({"use": {"deviation": [0.0]}}, "deviation.0: Input should be greater than 0"),
        ({"use": {"shape": [8, 8]}}, "shape"),
        ({"use": {"network": "resnet9"}}, "model='resnet9'"),
        ({"use": {"network": "resnet8"}}, "is not as its network has it"),
        ({"use": {"more": 1}}, "more: Extra inputs are not permitted"),
    ],
)
def test_another_description_is_refused_by_name(
    shared_runs: SharedRuns, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = shared_runs(KINDS["network"]).folder
    path = rewritten(folder, tmp_path / "model.safetensors", **changes)
    with pytest.raises(ConfigError) as error:
        load_model(path)
    assert said in str(error.value)
    assert str(path) in str(error.value) or "model=" in str(error.value)


def test_what_is_no_model_is_refused(shared_runs: SharedRuns, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_model(tmp_path)
    (tmp_path / "text.safetensors").write_text("no model")
    with pytest.raises(ConfigError, match="it cannot be read"):
        load_model(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="it has no list of classes"):
        load_model(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "old.safetensors", {"ahfal": '{"classes": ["a"]}'})
    with pytest.raises(ConfigError, match="it does not say how it is used"):
        load_model(tmp_path / "old.safetensors")
    half = tmp_path / "half.safetensors"
    shutil.copy(shared_runs(KINDS["network"]).folder / "model.safetensors", half)
    half.write_bytes(half.read_bytes()[:2000])
    with pytest.raises(ConfigError, match="it cannot be read"):
        load_model(half)


def test_another_backbone_is_refused_and_the_runs_own_taken_from_elsewhere(
    shared_runs: SharedRuns, tmp_path: Path
) -> None:
    folder = shared_runs(KINDS["head"]).folder
    changed = write_weights(tmp_path / "changed.safetensors", change=0.1)
    with pytest.raises(ConfigError, match="it was trained on the backbone"):
        load_model(folder, str(changed))
    same = write_weights(tmp_path / "same.safetensors")
    here, there = load_model(folder), load_model(folder, str(same))
    images = torch.zeros((2, 8, 8, 1), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(here.network(images), there.network(images))
