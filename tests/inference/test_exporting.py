"""Exported models give what ours give, in software that has none of our code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.saved_models import KINDS, QUICK, digits
from support.simulation import SharedRuns

from ahfal_app.cli import main
from ahfal_app.errors import ConfigError
from ahfal_app.inference import exporting, load_model
from ahfal_app.models import model_names


def assert_same_in_onnx(folder: Path, target: Path) -> None:
    saved = load_model(folder)
    exporting.export(saved, "onnx", target)
    session = onnxruntime.InferenceSession(target.read_bytes())
    for size in (1, 2, 5):
        images = digits(size, seed=size)
        (found,) = session.run(["probabilities"], {"images": images})
        with torch.inference_mode():
            expected = saved.network(torch.from_numpy(images)).numpy()
        assert found.shape == (size, 10)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["network", "head", "tuned"])
def test_onnx_of_each_kind(shared_runs: SharedRuns, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    assert_same_in_onnx(shared_runs(KINDS[kind]).folder, target)
    proto = onnx.load(target)
    onnx.checker.check_model(proto)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == exporting.OPSET
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(facts["classes"]) == list("0123456789")
    assert facts["input"] == "uint8 (B, 8, 8, 1), pixels from 0 to 255"


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in model_names() if name != "small-cnn"])
def test_onnx_of_every_network(shared_runs: SharedRuns, model: str, tmp_path: Path) -> None:
    settings = {**QUICK, "model": model, "max-train-samples": 60}
    assert_same_in_onnx(shared_runs(settings).folder, tmp_path / "model.onnx")


READER = """
import sys, numpy, torch
extra = {"ahfal.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
print(extra["ahfal.json"])
images = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], program(images).detach().numpy())
assert not any(name.startswith("ahfal") for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_torch_export_is_read_without_our_code(
    shared_runs: SharedRuns, kind: str, tmp_path: Path
) -> None:
    saved = load_model(shared_runs(KINDS[kind]).folder)
    exporting.export(saved, "torch-export", tmp_path / "model.pt2")
    images = digits(5)
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("model.pt2", "images.npy", "out.npy")]
    printed = subprocess.run(
        [sys.executable, "-c", READER, *files],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(json.loads(printed)["classes"]) == list("0123456789")
    with torch.inference_mode():
        expected = saved.network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported(
    shared_runs: SharedRuns, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_runs(KINDS["network"]).folder
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--format", "onxx"])
    assert "allowed is onnx | torch-export; did you mean 'onnx'?" in capsys.readouterr().err
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="onnx is not installed; `uv sync --extra onnx`"):
        exporting.export(load_model(folder), "onnx", folder / "never.onnx")
