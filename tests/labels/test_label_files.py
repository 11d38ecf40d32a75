from __future__ import annotations

import csv
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ahfal_app.cli import main
from ahfal_app.errors import ConfigError, LabelFileError, StoreError
from ahfal_app.labels.exchange import (
    Imported,
    export_labels,
    import_labels,
    label_history,
    verify_store,
)
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import Ledger

CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a label, an open image, a skipped one and one that was labelled before."""
    path = tmp_path / "state" / "run" / "0" / "labels.sqlite"
    samples_N = np.arange(6, dtype=np.int64)
    store = LabelStore.open_file(path, samples_N, 3, grows=True)
    store.describe(CLASSES, {i: f"ward/{i}.png" for i in range(5)})
    store.give({4: 2}, "labels.csv")
    store.allot(4)
    store.reserve(LabelRequest("r0", 0, "random", (0, 1)))
    store.reserve(LabelRequest("r1", 1, "margin", (2, 3), scores=(0.5, 0.25), guesses=(0, 1)))
    store.commit(
        [
            LabelReceipt("r0", 0, 1, "anna"),
            LabelReceipt("r1", 2, None, "anna"),
        ]
    )
    store.close()
    return path


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["file,label", *lines]) + "\n")
    return path


def _entries(path: Path) -> dict[int, tuple[str, int | None, str | None]]:
    store = LabelStore.open_existing(path)
    entries = {e.sample: (e.state, e.label, e.annotator) for e in store.entries()}
    store.verify()
    store.close()
    return entries


def test_export_has_all_that_is_known(store: Path, tmp_path: Path):
    target = tmp_path / "labels.csv"
    assert export_labels(store, target) == 2
    rows = _rows(target)
    assert {name: row["label"] for name, row in rows.items()} == {
        "ward/0.png": "dog",
        "ward/1.png": "",
        "ward/2.png": "skip",
        "ward/3.png": "",
        "ward/4.png": "owl",
    }
    first, asked, given = rows["ward/0.png"], rows["ward/3.png"], rows["ward/4.png"]
    assert (first["annotator"], first["state"], first["request"]) == ("anna", "labelled", "r0")
    assert (first["request-cycle"], first["from-cycle"], first["sample"]) == ("0", "0", "0")
    assert first["answered"].startswith("20")
    assert (asked["guess"], asked["score"], asked["request-cycle"]) == ("dog", "0.25", "1")
    assert (given["state"], given["request"]) == ("given", "")
    with pytest.raises(LabelFileError, match="is there already"):
        export_labels(store, target)
    with pytest.raises(LabelFileError, match="cannot be written"):
        export_labels(store, tmp_path / "missing" / "labels.csv")


def test_import_answers_what_is_open(store: Path, tmp_path: Path):
    source = _write(tmp_path / "in.csv", "ward/3.png,DOG", "ward/1.png,skip", "ward/0.png,dog")
    assert import_labels(store, source, "clara") == Imported(1, 1, 0, 0)
    assert import_labels(store, source, "clara") == Imported(0, 0, 0, 0)
    entries = _entries(store)
    assert entries[3] == ("labelled", 1, "clara")
    assert entries[1] == ("skipped", None, "clara")
    assert verify_store(store).ledger == Ledger(4, 2, 0, 2)


@pytest.mark.parametrize("name", ["skip", "Skip ", ""])
def test_a_class_called_like_a_skip_is_in_no_file_of_labels(tmp_path: Path, name: str):
    """Or what nobody could tell would come back as an image of this class."""
    path = tmp_path / "labels.sqlite"
    store = LabelStore.open_file(path, np.arange(2, dtype=np.int64), 2, grows=True)
    store.describe((name, "run"), {0: "0.png", 1: "1.png"})
    store.allot(2)
    store.reserve(LabelRequest("r0", 0, "random", (0, 1)))
    store.commit([LabelReceipt("r0", 0, None, "anna"), LabelReceipt("r0", 1, 0, "anna")])
    store.close()
    with pytest.raises(ConfigError, match=f"classes={name!r}: allowed is any name but 'skip'"):
        export_labels(path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(ConfigError, match="any name but 'skip' and the empty one"):
        import_labels(path, _write(tmp_path / "in.csv", "0.png,skip"), "anna")
    assert _entries(path)[0] == ("skipped", None, "anna")
    # What was said is told all the same, where what is said and the class stand apart.
    assert [event.what for event in label_history(path).events] == ["skip", "answer"]


def test_an_export_can_be_imported_again(store: Path, tmp_path: Path):
    before = _entries(store)
    export_labels(store, tmp_path / "out.csv")
    assert import_labels(store, tmp_path / "out.csv", "nobody") == Imported(0, 0, 0, 0)
    assert _entries(store) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ward/5.png,dog", "no sample 'ward/5.png'"),
        ("ward/3.png,dgo", "did you mean 'dog'"),
        ("ward/4.png,cat", "labelled before the run"),
        ("ward/3.png,cat\nward/3.png,dog", "contradicts line"),
    ],
)
def test_a_file_with_a_mistake_changes_nothing(store: Path, tmp_path: Path, line, reason):
    before = _entries(store)
    source = _write(tmp_path / "in.csv", "ward/1.png,cat", line)
    with pytest.raises(LabelFileError, match=reason):
        import_labels(store, source, "clara")
    assert _entries(store) == before


def test_an_image_that_was_not_asked_for_is_refused(store: Path, tmp_path: Path):
    opened = LabelStore.open_file(store, np.arange(6, dtype=np.int64), 3, grows=True)
    opened.describe(CLASSES, {5: "ward/5.png"})
    opened.close()
    source = _write(tmp_path / "in.csv", "ward/1.png,cat", "ward/5.png,dog")
    with pytest.raises(LabelFileError, match="line 3: this sample was not asked for"):
        import_labels(store, source, "clara")
    assert _entries(store)[1][0] == "reserved"


def test_another_answer_is_a_contradiction_until_it_is_a_correction(store: Path, tmp_path: Path):
    source = _write(tmp_path / "in.csv", "ward/0.png,cat")
    assert import_labels(store, source, "clara") == Imported(0, 0, 0, 1)
    (conflict,) = verify_store(store).conflicts
    assert (conflict.sample, conflict.label, conflict.standing_label) == (0, 0, 1)
    source = _write(tmp_path / "in.csv", "ward/0.png,cat", "ward/4.png,dog", "ward/1.png,owl")
    assert import_labels(store, source, "clara", correct=True) == Imported(1, 0, 2, 0, settled=1)
    entries = _entries(store)
    assert [entries[s][1] for s in (0, 1, 4)] == [0, 2, 1]
    assert verify_store(store).conflicts == ()


def test_corrections_are_made_in_the_name_of_who_makes_them(store: Path, tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text("file,label,annotator\nward/0.png,cat,dora\nward/4.png,dog,\n")
    assert import_labels(store, source, "clara", correct=True).corrected == 2
    entries = _entries(store)
    assert (entries[0], entries[4]) == (("labelled", 0, "dora"), ("given", 1, "clara"))


def test_corrections_that_contradict_each_other_change_nothing(store: Path, tmp_path: Path):
    before = _entries(store)
    source = tmp_path / "in.csv"
    lines = ("ward/1.png,cat,anna", "ward/0.png,cat,anna", "ward/0.png,owl,dora")
    source.write_text("\n".join(["file,label,annotator", *lines]))
    with pytest.raises(LabelFileError, match="line 4: contradicts line 3"):
        import_labels(store, source, "clara", correct=True)
    assert _entries(store) == before


def test_doubts_and_comments_come_in_with_a_file_and_go_out_again(store: Path, tmp_path: Path):
    source = tmp_path / "in.csv"
    source.write_text(
        "file,label,unsure,comment\nward/0.png,cat,,see the biopsy\nward/1.png,dog,yes,'-hair\n"
    )
    assert import_labels(store, source, "clara", correct=True) == Imported(1, 0, 1, 0)
    said = [(e.sample, e.what, e.unsure, e.comment) for e in label_history(store).events]
    assert (0, "correction", False, "see the biopsy") in said
    assert (1, "answer", True, "-hair") in said
    export_labels(store, tmp_path / "out.csv")
    rows = _rows(tmp_path / "out.csv")
    assert [rows[f"ward/{i}.png"]["comment"] for i in (0, 1)] == ["see the biopsy", "'-hair"]
    assert [rows[f"ward/{i}.png"]["unsure"] for i in (0, 1, 2)] == ["", "yes", ""]


def test_answers_and_corrections_are_one_change(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    before = _entries(store)
    source = _write(tmp_path / "in.csv", "ward/1.png,cat", "ward/0.png,cat")
    with monkeypatch.context() as patched:
        patched.setattr(LabelStore, "correct", fail)
        with pytest.raises(StoreError, match="disk I/O error"):
            import_labels(store, source, "clara", correct=True)
    assert _entries(store) == before
    assert import_labels(store, source, "clara", correct=True) == Imported(1, 0, 1, 0)


def test_the_command_line(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state, target = str(tmp_path / "state"), tmp_path / "out.csv"
    with pytest.raises(SystemExit):
        main(["labels", "export", state, str(target)])
    assert target.is_file()
    source = _write(tmp_path / "in.csv", "ward/0.png,cat", "ward/3.png,owl")
    with pytest.raises(SystemExit):
        main(["labels", "import", str(store), str(source), "--annotator", "clara"])
    assert "1 labelled, 0 skipped, 0 corrected, 1 new contradictions" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["labels", "verify", state])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "sound" in out
    assert "4 labels allotted = 2 spent + 1 reserved + 1 free" in out
    assert "clara" in out


def test_stores_that_cannot_be_used_are_named(store: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="0 label stores"):
        verify_store(tmp_path / "empty")
    other = store.parent.parent / "1" / "labels.sqlite"
    other.parent.mkdir()
    other.write_bytes(store.read_bytes())
    with pytest.raises(StoreError, match="2 label stores in this folder; name one of"):
        verify_store(tmp_path / "state")
    content = bytearray(store.read_bytes())
    content[4096 * 3 : 4096 * 6] = b"\xff" * 4096 * 3
    other.write_bytes(content)
    with pytest.raises(SystemExit) as failed:
        main(["labels", "verify", str(other)])
    assert failed.value.code == 1
    assert "StoreError" in capsys.readouterr().err
