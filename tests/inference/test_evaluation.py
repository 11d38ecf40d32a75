"""Figures of a model on labelled images: by hand, by other software, and the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.saved_models import KINDS, QUICK, digits
from support.simulation import SharedRuns

from ahfal_app.cli import main
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.inference import load_model
from ahfal_app.inference.evaluation import (
    Interval,
    calibration_error,
    checked_split,
    evaluate_on,
    measured,
)
from ahfal_app.inference.predicting import Predictor
from ahfal_app.results.reading import read_metrics

#: Four images of two classes, and a third class that nobody has.
LABELS = np.array([0, 0, 1, 1])
SHARES = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0], [0.4, 0.5, 0.1]])


def test_by_hand() -> None:
    found = measured(("a", "b", "c"), LABELS, SHARES)
    assert found.confusion_CC.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert found.accuracy == Interval(3, 4)
    assert found.recall_C == (Interval(1, 2), Interval(2, 2), Interval(0, 0))
    assert found.precision_C == (Interval(1, 1), Interval(2, 3), Interval(0, 0))
    # Of the pairs of one of `a` and one of another: 0.9 and 0.3 against 0.2 and 0.4.
    assert found.auroc_C == (0.75, 0.75, None)
    assert found.metrics["auroc"] == 0.75
    # Four bins with an image each: 0.1, 0.7, 0.2 and 0.5 of 4.
    assert found.calibration_error == pytest.approx((0.1 + 0.7 + 0.2 + 0.5) / 4)


def test_wilsons_interval_by_hand() -> None:
    """Centre (x + z²/2) / (n + z²) and half width z √(x (n - x) / n + z²/4) / (n + z²)."""
    z2 = 1.959964**2
    centre = (3 + z2 / 2) / (4 + z2)
    half = np.sqrt(z2) * np.sqrt(3 * 1 / 4 + z2 / 4) / (4 + z2)
    assert Interval(3, 4).bounds == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert Interval(0, 0).bounds is None
    assert Interval(0, 0).share is None


@given(
    pairs=st.lists(st.tuples(st.floats(0.1, 1), st.booleans()), min_size=1, max_size=40),
    bins=st.integers(1, 20),
)
def test_calibration_error_against_a_slow_one(pairs: list[tuple[float, bool]], bins: int) -> None:
    total = 0.0
    for k in range(bins):
        inside = [p for p in pairs if k < np.ceil(np.float64(p[0]) * bins) <= k + 1]
        total += abs(sum(right for _, right in inside) - sum(share for share, _ in inside))
    shares, right = (np.array(each) for each in zip(*pairs, strict=True))
    assert calibration_error(shares, right, bins) == pytest.approx(total / len(pairs))


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_areas_against_pairs(seed: int, size: int) -> None:
    """The share of pairs in order, a tie being half of one."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, size)
    shares = draw.integers(1, 5, (size, 3)) / 4
    found = measured(("a", "b", "c"), labels, shares).auroc_C
    for c in range(3):
        of, others = shares[labels == c, c], shares[labels != c, c]
        if not len(of) or not len(others):
            assert found[c] is None
            continue
        higher = (of[:, None] > others).mean() + 0.5 * (of[:, None] == others).mean()
        assert found[c] == pytest.approx(higher)


@pytest.mark.parametrize("kind", ["network", "head"])
def test_a_runs_own_data_give_its_own_accuracy(
    shared_runs: SharedRuns, kind: str, data_dir: Path
) -> None:
    whole = {key: value for key, value in KINDS[kind].items() if key != "max-test-samples"}
    folder = shared_runs(whole).folder
    predictor = Predictor(load_model(folder), torch.device("cpu"))
    found = evaluate_on(predictor, "digits", "test", str(data_dir))
    assert found.accuracy.of == 359
    assert found.accuracy.share == read_metrics(folder).cycles[-1].accuracy
    assert evaluate_on(predictor, "digits", "all", str(data_dir)).accuracy.of == 1797


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
    with pytest.raises(DatasetError, match="a class 'cat'"):
        evaluate_on(predictor, other, "all", str(data_dir))
    coloured = folder_of(tmp_path / "coloured", ["7", "3"], channels=3)
    with pytest.raises(DatasetError, match="are images of 8x8 pixels and 1 channels"):
        evaluate_on(predictor, coloured, "all", str(data_dir))
    with pytest.raises(ConfigError, match=r"split='tests': allowed is test \| train \| all"):
        checked_split("tests")
