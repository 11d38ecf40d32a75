"""Models of vectors in use: predicted, evaluated and exported like those of images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from sklearn.datasets import load_breast_cancer
from support.simulation import Outcome, Simulation

from ahfal_app.errors import DatasetError
from ahfal_app.inference import exporting, load_model
from ahfal_app.inference.evaluation import evaluate_on
from ahfal_app.inference.predicting import Predictor, write_predictions

DATA = load_breast_cancer()
VECTORS = DATA.data.astype(np.float32)


def write_table(path: Path, rows: slice, labels: bool = True) -> Path:
    columns: dict[str, object] = {"vector": list(VECTORS[rows])}
    if labels:
        columns["label"] = DATA.target_names[DATA.target[rows]].tolist()
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("patients") / "patients.parquet", slice(0, 300))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, patients: Path) -> Outcome:
    simulation = Simulation(tmp_path_factory.mktemp("runs"), data_dir)
    settings = {"initial-labels": 10, "query-labels": 5, "target-labels": 15, "alpha": 10.0}
    return simulation(settings, dataset=str(patients), strategy="random", **{"learning-rate": 0.05})


@pytest.mark.slow
def test_vectors_are_used_as_in_the_run(
    outcome: Outcome, patients: Path, tmp_path: Path, data_dir: Path
) -> None:
    model = load_model(outcome.folder)
    predictor = Predictor(model, torch.device("cpu"))
    found = evaluate_on(predictor, str(patients), "test", str(data_dir))
    assert found.figures.accuracy.share == outcome.metrics.cycles[-1].accuracy
    unseen = write_table(tmp_path / "unseen.parquet", slice(300, 340), labels=False)
    write_predictions(predictor, [unseen], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"unseen.parquet#{i}" for i in range(40)]
    true = DATA.target_names[DATA.target[300:340]].tolist()
    assert sum(row["class"] == label for row, label in zip(rows, true, strict=True)) > 30
    exporting.export(model, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (shares,) = session.run(["probabilities"], {"images": VECTORS[300:340]})
    malignant = [float(row["probability of malignant"]) for row in rows]
    np.testing.assert_allclose(shares[:, model.classes.index("malignant")], malignant, atol=1e-5)


def test_other_vectors_and_images_are_refused(
    outcome: Outcome, tmp_path: Path, data_dir: Path
) -> None:
    predictor = Predictor(load_model(outcome.folder), torch.device("cpu"))
    short = tmp_path / "short.parquet"
    parquet.write_table(pa.table({"vector": [[1.0, 2.0]], "label": ["benign"]}), short)
    with pytest.raises(DatasetError, match="a vector of 2 numbers; 30 are needed"):
        write_predictions(predictor, [short], tmp_path / "out.csv")
    with pytest.raises(DatasetError, match="of the model: benign, malignant; the data set has 0,"):
        evaluate_on(predictor, "digits", "test", str(data_dir))
