"""A client asks its oracle, with images that come and go, and oracles that answer amiss."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.labelling import CLASSES, encoded

from ahfal_app.client import annotation
from ahfal_app.client.annotation import Annotation
from ahfal_app.labels.readings import Readers
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import Ledger


def _annotation(folder: Path, samples: Sequence[int]) -> Annotation:
    site = SimpleNamespace(
        names={sample: f"{sample}.png" for sample in samples},
        given={},
        content=lambda sample: encoded(sample).content,
    )
    dataset = SimpleNamespace(
        class_names=CLASSES, holds_vectors=False, train=SimpleNamespace(labels_N=np.full(9, -1))
    )
    loaded: Any = SimpleNamespace(
        site=site, dataset=dataset, client_rows=lambda _: np.array(samples)
    )
    state: Any = SimpleNamespace(holds=lambda _: True)
    options = {"oracle-dir": str(folder / "oracle")}
    return Annotation("files", {}, options, 0, "run", state, loaded, Readers())


def _look(folder: Path, *samples: int, buy: LabelRequest | None = None) -> LabelStore:
    """Ask as a client does that has these images; return its store."""
    samples_N = np.array(samples, np.int64)
    store = LabelStore.open_file(folder / "labels.sqlite", samples_N, len(CLASSES), grows=True)
    asking = _annotation(folder, samples)
    asking.describe(store)
    if buy is not None:
        store.allot(store.ledger().allotted + len(buy.samples))
        store.reserve(buy)
    asking.ask(store)
    return store


def _save(request_folder: Path, text: str) -> None:
    labels = request_folder / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    os.utime(labels, (time.time() - 60,) * 2)


def test_answers_to_a_request_count_though_an_image_of_it_went_and_came_back(tmp_path: Path):
    """The spreadsheet was opened before the image went: it has both lines."""
    _look(tmp_path, 1, 2, 3, buy=LabelRequest("a" * 32, 0, "random", (1, 2))).close()
    (folder,) = (tmp_path / "oracle").iterdir()
    _look(tmp_path, 2, 3).close()
    _look(tmp_path, 1, 2, 3, buy=LabelRequest("b" * 32, 1, "random", (1,))).close()
    _save(folder, "file,label\n1-1.png,benign\n2-2.png,malignant\n")
    for _ in range(2):
        store = _look(tmp_path, 1, 2, 3)
        assert store.labelled().samples_N.tolist() == [1, 2]
        assert store.labelled().labels_N.tolist() == [1, 2]
        # It was given back when the image went, and is spent on it now: three were allotted.
        assert store.ledger() == Ledger(allotted=3, spent=2, reserved=0, free=1)
        store.verify()
        store.close()


class _Astray:
    """Answers one request rightly, and the other with an image of the first."""

    def submit(self, request: LabelRequest) -> None:
        del request

    def collect(self, request_id: str) -> list[LabelReceipt]:
        return [LabelReceipt(request_id, 1, 0, "anna")]


def test_one_answer_astray_holds_up_no_other_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(annotation, "make_oracle", lambda *_: _Astray())
    store = LabelStore.open_file(tmp_path / "labels.sqlite", np.arange(9), len(CLASSES), grows=True)
    store.allot(2)
    store.reserve(LabelRequest("a" * 32, 0, "random", (2,)))
    store.reserve(LabelRequest("b" * 32, 1, "random", (1,)))
    with caplog.at_level(logging.WARNING):
        _annotation(tmp_path, range(9)).ask(store)
    assert store.labelled().samples_N.tolist() == [1]
    assert store.ledger() == Ledger(allotted=2, spent=1, reserved=1, free=0)
    (warning,) = caplog.messages
    assert f"sample 1: not part of request {'a' * 32}" in warning
    store.close()
