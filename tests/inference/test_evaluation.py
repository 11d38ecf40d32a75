"""Figures of a model on labelled images: by hand, by other software, and the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.saved_models import KINDS, QUICK, digits
from support.simulation import SharedRuns

from ahfal_app.cli import main
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.inference import load_model
from ahfal_app.inference.evaluation import (
    checked_split,
    evaluate_on,
)
from ahfal_app.inference.predicting import Predictor
from ahfal_app.results.reading import read_metrics


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["network", "head"])
def test_a_runs_own_data_give_its_own_accuracy(
    shared_runs: SharedRuns, kind: str, data_dir: Path
) -> None:
    whole = {key: value for key, value in KINDS[kind].items() if key != "max-test-samples"}
    folder = shared_runs(whole).folder
    predictor = Predictor(load_model(folder), torch.device("cpu"))
    found = evaluate_on(predictor, "digits", "test", str(data_dir))
    assert found.figures.accuracy.of == 359
    assert found.figures.accuracy.share == read_metrics(folder).cycles[-1].accuracy
    assert evaluate_on(predictor, "digits", "all", str(data_dir)).figures.accuracy.of == 1797


def folder_of(path: Path, classes: list[str], size: int = 8, channels: int = 1) -> str:
    for name in classes:
        (path / name).mkdir(parents=True)
        for number, image in enumerate(digits(3)):
            pixels = np.repeat(image[:, :, 0][:, :, None], channels, axis=2).squeeze()
            Image.fromarray(pixels).resize((size, size)).save(path / name / f"{number}.png")
    return str(path)


def test_folders_of_images(
    shared_runs: SharedRuns, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_runs(QUICK).folder
    data = folder_of(tmp_path / "data", ["7", "3"], size=20)
    out = tmp_path / "evaluation.json"
    more = ["--split", "all", "--out", str(out), "--data-dir", str(data_dir)]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), data, *more])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "6 images" in printed
    found = json.loads(out.read_text())
    assert [sum(row) for row in found["confusion"]] == [0, 0, 0, 3, 0, 0, 0, 3, 0, 0]
    assert found["accuracy"]["of"] == 6
    assert found["classes"][0]["recall"]["share"] is None


def test_what_cannot_be_evaluated(shared_runs: SharedRuns, tmp_path: Path, data_dir: Path) -> None:
    predictor = Predictor(load_model(shared_runs(QUICK).folder), torch.device("cpu"))
    other = folder_of(tmp_path / "other", ["7", "cat"])
    with pytest.raises(DatasetError, match="'cat' is none of them"):
        evaluate_on(predictor, other, "all", str(data_dir))
    coloured = folder_of(tmp_path / "coloured", ["7", "3"], channels=3)
    with pytest.raises(DatasetError, match="are images of 8x8 pixels and 1 channels"):
        evaluate_on(predictor, coloured, "all", str(data_dir))
    with pytest.raises(ConfigError, match=r"split='tests': allowed is test \| train \| all"):
        checked_split("tests")
