"""Figures of a model on labelled images: by hand, by other software, and the run's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from pydantic import ValidationError
from sklearn.datasets import load_digits
from support.saved_models import KINDS, QUICK, digits
from support.simulation import SharedRuns, Simulation

from ahfal_app.cli import main
from ahfal_app.data import sources
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.inference import load_model
from ahfal_app.inference.evaluation import (
    checked_split,
    evaluate_on,
)
from ahfal_app.inference.predicting import Predictor
from ahfal_app.results.reading import read_metrics
from ahfal_app.training.model_use import SplitUse

DIGITS = load_digits()


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


#: A run whose test split is not what any other run's would be.
SMALL_TEST = {key: value for key, value in QUICK.items() if not key.startswith("max-")} | {
    "test-fraction": 0.02
}


def test_a_test_split_is_the_one_of_the_models_run(shared_runs: SharedRuns, data_dir: Path) -> None:
    """Of 1,797 digits 36 are its tests, by which it is as good as the run has told."""
    folder = shared_runs(SMALL_TEST).folder
    predictor = Predictor(load_model(folder), torch.device("cpu"))
    found = evaluate_on(predictor, "digits", "test", str(data_dir))
    assert found.figures.accuracy.of == 36
    assert found.figures.accuracy.share == read_metrics(folder).cycles[-1].accuracy
    assert found.note == ""
    for split, images in (("train", 1761), ("all", 1797)):
        known = evaluate_on(predictor, "digits", split, str(data_dir))
        assert known.figures.accuracy.of == images
        assert "it was trained on some of these images" in known.note


def test_what_a_strategy_has_learned_by_is_no_test(shared_runs: SharedRuns, data_dir: Path) -> None:
    """Of 60 tests that a run is limited to 20 are held out; all others may be used without."""
    limited = shared_runs(QUICK).folder
    found = evaluate_on(
        Predictor(load_model(limited), torch.device("cpu")), "digits", "test", str(data_dir)
    )
    assert (found.figures.accuracy.of, found.note) == (359, "")
    folder = shared_runs({**QUICK, "held-out": 20}).folder
    predictor = Predictor(load_model(folder), torch.device("cpu"))
    found = evaluate_on(predictor, "digits", "test", str(data_dir))
    assert (found.figures.accuracy.of, found.note) == (40, "")
    assert found.figures.accuracy.share == read_metrics(folder).cycles[-1].accuracy


def test_a_file_that_says_nothing_of_its_tests_has_no_test_split(
    shared_runs: SharedRuns, data_dir: Path
) -> None:
    """As older versions wrote it, or a site its own."""
    model = load_model(shared_runs(QUICK).folder)
    older = replace(model, use=model.use.model_copy(update={"split": None}))
    predictor = Predictor(older, torch.device("cpu"))
    for split in ("test", "train"):
        with pytest.raises(ConfigError, match=f"split='{split}': allowed is all"):
            evaluate_on(predictor, "digits", checked_split(split), str(data_dir))
    found = evaluate_on(predictor, "digits", "all", str(data_dir))
    assert (found.figures.accuracy.of, found.note) == (1797, "")


def test_data_that_have_changed_since_are_told(
    simulation: Simulation, tmp_path: Path, data_dir: Path
) -> None:
    """A test image of the grown folder may have been one of the smaller folder's to train on."""
    data = tmp_path / "data"
    write_digits(data, range(200))
    folder = simulation({**SMALL_TEST, "test-fraction": 0.1}, dataset=str(data)).folder
    predictor = Predictor(load_model(folder), torch.device("cpu"))
    found = evaluate_on(predictor, str(data), "test", str(data_dir))
    assert (found.figures.accuracy.of, found.note) == (20, "")
    write_digits(data, range(200, 210))
    sources._load.cache_clear()  # As in another process.
    found = evaluate_on(predictor, str(data), "test", str(data_dir))
    assert "whether it was trained on some of these images is not known" in found.note
    assert found.to_json()["note"] == found.note


def test_columns_are_those_of_the_run_and_by_their_type_where_others_have_none_of_the_name(
    simulation: Simulation, tmp_path: Path, data_dir: Path
) -> None:
    """Beside the digit a column says whether it is odd, by which the split would be another."""
    found = {}
    for name in ("second", "target"):
        path = tmp_path / f"{name}.parquet"
        write_vectors(path, name)
        found[name] = str(path)
    settings = {**SMALL_TEST, "dataset": found["second"], "label-column": "second"}
    folder = simulation({**settings, "test-fraction": 0.3, "model": "mlp"}).folder
    predictor = Predictor(load_model(folder), torch.device("cpu"))
    own = evaluate_on(predictor, found["second"], "test", str(data_dir))
    assert own.figures.accuracy.share == read_metrics(folder).cycles[-1].accuracy
    assert own.note == ""
    other = evaluate_on(predictor, found["target"], "all", str(data_dir))
    assert (other.figures.accuracy.of, other.note) == (300, "")


def test_a_models_file_cannot_say_where_data_lie() -> None:
    for settings, said in (
        ({"data-dir": "/"}, "'data-dir' is none of what a test split hangs on"),
        ({"test-fraction": 7}, "less than 1"),
    ):
        with pytest.raises(ValidationError, match=said):
            SplitUse(fingerprint="0", settings=settings)


def write_digits(folder: Path, rows: range) -> None:
    """Write some of scikit-learn's digits into a folder for each class."""
    for row in rows:
        of_class = folder / str(DIGITS.target[row])
        of_class.mkdir(parents=True, exist_ok=True)
        Image.fromarray((DIGITS.images[row] * 15.9).astype(np.uint8)).save(of_class / f"{row}.png")


def write_vectors(path: Path, label: str) -> None:
    """Write 300 digits as vectors, with their labels and, where these are second, another one."""
    columns: dict[str, object] = {
        "vector": list(DIGITS.data[:300].astype(np.float32)),
        label: [f"d{target}" for target in DIGITS.target[:300]],
    }
    if label == "second":
        columns["label"] = ["odd" if target % 2 else "even" for target in DIGITS.target[:300]]
    parquet.write_table(pa.table(columns), path)


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
