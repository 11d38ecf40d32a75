"""Predictions of folders and files: what is written, and what is set aside."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from support.saved_models import KINDS, digits
from support.simulation import SharedRuns

from ahfal_app.cli import main
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.inference import load_model
from ahfal_app.inference.predicting import Predictor, write_predictions

CPU = torch.device("cpu")


@pytest.fixture
def predictor(shared_runs: SharedRuns) -> Predictor:
    return Predictor(load_model(shared_runs(KINDS["network"]).folder), CPU)


def write_images(folder: Path, names: list[str]) -> np.ndarray:
    pixels = digits(len(names))
    for name, image in zip(names, pixels, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(path)
    return pixels


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_has_its_probabilities(predictor: Predictor, tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in range(70)]  # More than two batches.
    pixels = write_images(tmp_path / "images", names)
    done = write_predictions(predictor, [tmp_path / "images"], tmp_path / "out.csv")
    assert (done.images, done.set_aside) == (70, {})
    with torch.inference_mode():
        expected = predictor.model.network(torch.from_numpy(pixels)).numpy()
    rows = rows_of(tmp_path / "out.csv")
    assert [row["file"] for row in rows] == names
    found = [[float(row[f"probability of {c}"]) for c in range(10)] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, atol=1e-5)
    assert [row["class"] for row in rows] == [str(c) for c in expected.argmax(axis=1)]
    assert [float(row["probability"]) for row in rows] == [max(row) for row in found]
    assert not (tmp_path / "out-not-used.csv").exists()


def test_the_most_probable_classes_alone(predictor: Predictor, tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    for top, out in ((0, "all.csv"), (3, "top.csv"), (99, "more.csv")):
        write_predictions(predictor, [tmp_path / "images"], tmp_path / out, top)
    every, three, more = (rows_of(tmp_path / f"{name}.csv") for name in ("all", "top", "more"))
    assert list(three[0]) == [
        *("file", "class", "probability"),
        *("class 2", "probability 2", "class 3", "probability 3"),
    ]
    assert len(more[0]) == 1 + 2 * 10
    for row, shares in zip(three, every, strict=True):
        by_share = sorted(range(10), key=lambda c: -float(shares[f"probability of {c}"]))
        assert [row["class"], row["class 2"], row["class 3"]] == [str(c) for c in by_share[:3]]


def test_what_is_no_image_is_set_aside_and_said(predictor: Predictor, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "out.csv"
    write_images(folder, ["fine.png", "below/fine too.png"])
    (folder / "=1+2.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("nor this")
    Image.fromarray(np.zeros((3000, 5), np.uint8)).save(folder / "long.png")
    done = write_predictions(predictor, [folder], out)
    assert done.images == len(rows_of(out)) == 3
    reasons = {row["file"]: row["reason"] for row in rows_of(tmp_path / "out-not-used.csv")}
    assert set(reasons) == {"./=1+2.png", "notes.txt"}
    assert all(reasons.values())
    # What was set aside before is not said of the next predictions.
    write_predictions(predictor, [folder / "below"], out)
    assert not (tmp_path / "out-not-used.csv").exists()


def test_several_paths_and_rows_of_parquet(predictor: Predictor, tmp_path: Path) -> None:
    write_images(tmp_path / "a", ["same.png", "0.png"])
    write_images(tmp_path / "b", ["same.png"])
    cells = [(tmp_path / "a" / "same.png").read_bytes(), b"no image"]
    table = pa.table({"image": [{"bytes": cell, "path": None} for cell in cells]})
    parquet.write_table(table, tmp_path / "c.parquet")
    paths = [tmp_path / "a" / "same.png", tmp_path / "b", tmp_path / "c.parquet"]
    done = write_predictions(predictor, paths, tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    expected = ["a/same.png", "b/same.png", "c.parquet#0"]
    assert [row["file"] for row in rows] == [f"{tmp_path}/{name}" for name in expected]
    assert rows[0]["probability"] == rows[2]["probability"]
    assert list(done.set_aside) == [f"{tmp_path}/c.parquet#1"]


def test_nothing_is_written_where_nothing_can_be_predicted(
    predictor: Predictor, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out.csv", tmp_path / "images"
    with pytest.raises(ConfigError, match="allowed is a folder or a file that is there"):
        write_predictions(predictor, [folder], out)
    folder.mkdir()
    with pytest.raises(DatasetError, match="no image was found"):
        write_predictions(predictor, [folder], out)
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"none of 1 images can be used; a\.png: "):
        write_predictions(predictor, [folder], out)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DatasetError, match="no image, by its name"):
        write_predictions(predictor, [tmp_path / "a.txt"], out)
    assert not out.exists()


def test_the_command(
    shared_runs: SharedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", ["a.png"])
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    folder, out = shared_runs(KINDS["network"]).folder, tmp_path / "p.csv"
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(folder), str(tmp_path / "images"), "--out", str(out), "--top", "1"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "1 samples, " in printed
    assert "not used: 1 no image of the formats that are read, such as b.png" in printed
    assert list(rows_of(out)[0]) == ["file", "class", "probability"]
    with pytest.raises(SystemExit):
        main(["predict", str(folder), str(tmp_path / "images"), "--out", str(tmp_path / "p.txt")])
    assert ".csv" in capsys.readouterr().err
