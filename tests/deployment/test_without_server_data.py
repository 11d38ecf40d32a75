"""Two sites on real processes, a server without any data, and figures that the sites make.

One of them dies when its people have labelled and before the server knows of it: the fault that
could cost labels. The others are in `test_faults.py`.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score
from support.faults import COMPLETED, killed_after_the_answer
from support.hospitals import DIGITS, trial

from ahfal_app.cli import main
from ahfal_app.labels.store import LabelStore, find_store

pytestmark = pytest.mark.slow

SETTINGS: dict[str, object] = {
    "dataset": "none",
    "evaluate": "sites",
    "classes": ",".join(DIGITS),
    "image-size": 8,
    "image-channels": 1,
    # Each message is a process of its own, which imports torch: one cycle of one round.
    "initial-fraction": 0.4,
    "query-fraction": 0.1,
    "target-fraction": 0.4,
    "rounds": 1,
}


def predicted(model: Path, images: list[Path], out: Path) -> list[dict[str, str]]:
    """Return what `ahfal predict` writes of images, in their order."""
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(model), *map(str, images), "--out", str(out)])
    assert ended.value.code == 0
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    return [rows[image.name] for image in images]


def test_figures_from_the_sites_are_those_of_the_pooled_images(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHFAL_TEST", str(tmp_path))
    with trial(tmp_path, data_dir) as running:
        draw = random.Random("without data")
        assert killed_after_the_answer(running, draw, 0, **SETTINGS) == COMPLETED
        account = running.account()
        folder = running.run_folder
        images, truth, sizes = [], [], []
        for site in running.sites:
            store = LabelStore.open_existing(find_store(running.state(site)))
            held_out, files = store.held_out(), store.files()
            root = tmp_path / "sites" / site / "images"
            images += [root / files[sample] for sample in held_out.samples_N.tolist()]
            truth += held_out.labels_N.tolist()
            sizes.append(len(held_out.samples_N))
            assert store.ledger().spent == len(store.labelled().samples_N) + sizes[-1]
    assert account.answered > 0
    assert (account.lost, account.bought_twice) == (0, 0), account
    cycle = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    rows = predicted(folder, images, tmp_path / "predictions.csv")
    guesses = [DIGITS.index(row["class"]) for row in rows]
    (test,) = cycle["tests"]
    assert min(sizes) >= 5
    assert (test["where"], test["samples"]) == ("sites", len(images))
    assert test["confusion"] == confusion_matrix(truth, guesses, labels=range(10)).tolist()
    assert test["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, guesses))
    assert cycle["accuracy"] == test["metrics"]["accuracy"]
    occurs = sorted({*truth, *guesses})
    assert test["metrics"]["macro-f1"] == pytest.approx(
        f1_score(truth, guesses, labels=occurs, average="macro", zero_division=0)
    )
    for label in sorted(set(truth)):
        shares = [float(row[f"probability of {DIGITS[label]}"]) for row in rows]
        # By bins of log-odds, and by probabilities that were rounded for the file.
        exact = roc_auc_score(np.array(truth) == label, shares)
        assert abs(test["auroc"][label] - exact) <= test["auroc_resolution"][label] + 0.01
    assert [site["test"]["samples"] for site in cycle["sites"]] == sizes
