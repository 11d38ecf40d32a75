"""Who has said what, and when: the audit trail of a label store."""

from __future__ import annotations

import csv
import datetime as dt
import os
import re
from pathlib import Path

import numpy as np
import pytest

from ahfal_app.cli import main
from ahfal_app.errors import LabelFileError
from ahfal_app.labels.exchange import Imported, import_labels, label_history, write_history
from ahfal_app.labels.records import parse_utc, utc_text
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore

CLASSES = ("cat", "dog", "owl")
TEN = "2026-01-02T10:00:00.000Z"
ELEVEN = "2026-01-02T11:00:00.000Z"
NOON = "2026-01-02T12:00:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "labels.sqlite"


@pytest.fixture
def store(path: Path) -> LabelStore:
    store = LabelStore.open_file(path, np.arange(5), 3, grows=True)
    store.describe(CLASSES, {i: f"ward/{i}.png" for i in range(5)})
    store.allot(3)
    store.reserve(LabelRequest("r0", 0, "random", (0, 1, 2)))
    return store


def told(store: LabelStore, sample: int | None = None) -> list[tuple[object, ...]]:
    return [(e.sample, e.what, e.label, e.annotator, e.at, e.stands) for e in store.history(sample)]


def test_an_answer_is_told_as_of_when_it_was_given(store: LabelStore):
    """It may have been collected days later."""
    store.commit([LabelReceipt("r0", 0, 1, "anna", TEN), LabelReceipt("r0", 1, None, "ben", NOON)])
    assert told(store) == [
        (0, "answer", 1, "anna", TEN, True),
        (1, "skip", None, "ben", NOON, True),
    ]
    first, second = store.history()
    assert first.received > TEN
    assert (first.unsure, first.comment) == (False, "")
    entries = {entry.sample: entry for entry in store.entries()}
    assert (entries[0].answered, entries[1].answered) == (TEN, NOON)
    assert second.received > NOON


def test_what_is_said_besides_is_kept(store: LabelStore):
    store.commit(
        [LabelReceipt("r0", 0, 1, "anna", TEN, unsure=True, comment="a shadow; left\nsee 2")]
    )
    (event,) = store.history(0)
    assert (event.unsure, event.comment) == (True, "a shadow; left\nsee 2")


def test_a_repeated_answer_is_told_once(store: LabelStore):
    for given in (TEN, NOON):
        store.commit([LabelReceipt("r0", 0, 1, "anna", given)])
    assert told(store) == [(0, "answer", 1, "anna", TEN, True)]


def test_an_answer_that_was_changed_before_it_was_collected(store: LabelStore):
    receipts = [
        LabelReceipt("r0", 0, 1, "anna", TEN, taken_back=ELEVEN),
        LabelReceipt("r0", 0, 2, "anna", ELEVEN),
    ]
    for _ in range(2):
        store.commit(receipts)
    assert told(store) == [
        (0, "answer", 1, "anna", TEN, False),
        (0, "answer", 2, "anna", ELEVEN, True),
        (0, "taken back", 1, "anna", ELEVEN, False),
    ]
    assert store.labelled().labels_N.tolist() == [2]
    assert store.conflicts() == ()
    store.verify()


def test_every_correction_has_its_own_time_and_author(store: LabelStore):
    """Also several before the next cycle, of which the last one counts."""
    store.commit([LabelReceipt("r0", 0, 1, "anna", TEN)])
    store.correct({0: 2}, "dora", ELEVEN, comment="see the biopsy")
    store.correct({0: 0}, "emil", NOON)
    store.correct({0: 0}, "frida")  # Nothing is changed by that.
    assert told(store) == [
        (0, "answer", 1, "anna", TEN, False),
        (0, "correction", 2, "dora", ELEVEN, False),
        (0, "correction", 0, "emil", NOON, True),
    ]
    assert store.history()[1].comment == "see the biopsy"
    (entry,) = [entry for entry in store.entries() if entry.sample == 0]
    assert (entry.label, entry.annotator, entry.answered) == (0, "emil", NOON)
    assert store.labelled().labels_N.tolist() == [0]
    store.verify()


def test_what_a_cycle_was_trained_on_stays_when_corrections_follow(store: LabelStore):
    store.commit([LabelReceipt("r0", 0, 1, "anna", TEN)])
    store.freeze(0)
    store.correct({0: 2}, "dora")
    store.freeze(1)
    store.correct({0: 0}, "emil")
    assert [store.labelled(cycle).labels_N.tolist() for cycle in (0, 1, 2)] == [[1], [2], [0]]


def test_a_contradiction_after_a_correction_is_a_new_one(store: LabelStore):
    store.commit([LabelReceipt("r0", 0, 1, "anna", TEN), LabelReceipt("r0", 0, 2, "ben", TEN)])
    assert len(store.conflicts()) == 1
    store.correct({0: 2}, "dora")
    assert store.conflicts() == ()
    store.commit([LabelReceipt("r0", 0, 0, "carl", NOON)])
    (conflict,) = store.conflicts()
    assert (conflict.label, conflict.annotator, conflict.standing_label) == (0, "carl", 2)


def test_labels_from_before_the_run_are_told(store: LabelStore):
    store.give({3: 2}, "labels.csv")
    (event,) = store.history(3)
    assert (event.what, event.label, event.annotator, event.stands) == (
        "given",
        2,
        "labels.csv",
        True,
    )


# --- imports --------------------------------------------------------------------------------


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["file,label", *lines]) + "\n")
    return path


def test_contradictions_that_an_import_settles_are_no_negative_ones(
    store: LabelStore, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store.commit([LabelReceipt("r0", 0, 1, "anna", TEN), LabelReceipt("r0", 0, 0, "ben", TEN)])
    store.close()
    source = _write(tmp_path / "in.csv", "ward/0.png,cat")
    with pytest.raises(SystemExit):
        main(["labels", "import", str(path), str(source), "--annotator", "dora", "--correct"])
    out = " ".join(capsys.readouterr().out.split())
    assert out == "0 labelled, 0 skipped, 1 corrected, 0 new contradictions, 1 settled"


def test_a_correction_is_no_answer_as_well(store: LabelStore, path: Path, tmp_path: Path):
    store.commit([LabelReceipt("r0", 0, 1, "anna", TEN)])
    source = _write(tmp_path / "in.csv", "ward/0.png,cat", "ward/1.png,owl")
    assert import_labels(path, source, "dora", correct=True) == Imported(1, 0, 1, 0)
    assert [row[:4] for row in told(store)] == [
        (0, "answer", 1, "anna"),
        (0, "correction", 0, "dora"),
        (1, "answer", 2, "dora"),
    ]


def test_what_a_file_says_was_said_when_it_was_saved(store: LabelStore, path: Path, tmp_path: Path):
    source = _write(tmp_path / "in.csv", "ward/0.png,cat")
    then = dt.datetime(2026, 1, 2, 10, tzinfo=dt.UTC).timestamp()
    os.utime(source, (then, then))
    import_labels(path, source, "dora")
    assert told(store) == [(0, "answer", 0, "dora", TEN, True)]
    # Whatever the file's clock says, not later than now.
    source = _write(tmp_path / "later.csv", "ward/1.png,cat")
    os.utime(source, (2**33, 2**33))
    import_labels(path, source, "dora")
    assert str(told(store)[1][4]) < "2200"


# --- the command ----------------------------------------------------------------------------


def test_the_command_tells_who_labelled_what_and_when(
    store: LabelStore, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store.commit([LabelReceipt("r0", 0, 1, "anna [ward]", TEN, unsure=True, comment="dark")])
    store.commit([LabelReceipt("r0", 1, None, "ben", NOON)])
    store.correct({0: 2}, "dora", ELEVEN)
    store.close()
    with pytest.raises(SystemExit) as done:
        main(["labels", "history", str(tmp_path / "state")])
    assert done.value.code == 0
    words = re.findall(r"[\w:.;-]+", capsys.readouterr().out)
    for word in ("dog", "owl", "skip", "correction", "dora", "ward", "10:00:00", "12:00:00"):
        assert word in words
    with pytest.raises(SystemExit):
        main(["labels", "history", str(path), "ward/1.png"])
    out = capsys.readouterr().out
    assert "ben" in out
    assert "dora" not in out
    target = tmp_path / "history.csv"
    with pytest.raises(SystemExit):
        main(["labels", "history", str(path), "--out", str(target)])
    with target.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["file"], r["what"], r["label"], r["annotator"], r["said"]) for r in rows] == [
        ("ward/0.png", "answer", "dog", "anna [ward]", TEN),
        ("ward/0.png", "correction", "owl", "dora", ELEVEN),
        ("ward/1.png", "skip", "skip", "ben", NOON),
    ]
    assert [(r["stands"], r["unsure"], r["comment"]) for r in rows] == [
        ("", "yes", "dark"),
        ("yes", "", ""),
        ("yes", "", ""),
    ]


def test_what_cannot_be_told_is_named(store: LabelStore, path: Path, tmp_path: Path):
    store.close()
    with pytest.raises(LabelFileError, match=r"did you mean 'ward/1.png'"):
        label_history(path, "ward1.png")
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(LabelFileError, match="is there already"):
        write_history(label_history(path), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"


# --- moments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-01-02T10:00:00Z", TEN),
        ("2026-01-02T12:00:00.000+02:00", TEN),
        (" 2026-01-02 05:00:00-0500 ", TEN),
        ("2026-01-02T10:00:00.000499Z", TEN),
        ("2026-01-02T10:00:00", None),
        ("yesterday", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("", None),
    ],
)
def test_moments_are_in_utc_or_none(text: str, wanted: str | None):
    assert parse_utc(text) == wanted


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        utc_text(dt.datetime(2026, 1, 2))
