"""Names in label files: lines end where text lines end, and each label stays with its image."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.site_images import FORMAT

from ahfal_app.data.site.loading import SiteData, SiteFolders, load_site
from ahfal_app.errors import LabelFileError
from ahfal_app.labels import names as names_module
from ahfal_app.labels.exchange import export_labels, import_labels, verify_store
from ahfal_app.labels.names import ClassNames, SampleNames
from ahfal_app.labels.spreadsheet import read_label_lines, suggested, write_csv
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.storage.names import readable

CLASSES = ("cat", "dog", "owl")

#: Where `str.splitlines` sees the end of a line, and a text file does not.
NO_LINE_ENDS = ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]

#: Files as a hospital's shares, cameras and systems call them: bytes, since some are no UTF-8.
NAMES = [
    b"plain.png",
    b"ward-a/plain.png",
    b"with space.png",
    b" space before.png",
    b"space after /1.png",
    b"ward,7.png",
    b'"quoted".png',
    b"semi;colon.png",
    b"tab\there.png",
    b"line\nfeed.png",
    b"carriage\rreturn.png",
    b"C:\\scans\\1.png",
    b"a\\b.png",
    b"caf\xe9.png",  # Latin-1
    b"caf\\xe9.png",  # a backslash of its own
    b"caf\\x5cxe9.png",
    b"caf\\xE9.png",
    b"bad\xff\xfe.png",
    "café nfc.png".encode(),
    unicodedata.normalize("NFD", "café both.png").encode(),
    "café both.png".encode(),
    *(f"sep{mark}arator.png".encode() for mark in NO_LINE_ENDS),
    b"=HYPERLINK(1).png",
    b"'=HYPERLINK(1).png",
    b"a;=1+1.png",
    b"a;'=1+1.png",
    b"-1.png",
    b"'-1.png",
    b"dot\\.\\dot.png",
    b"CON.png",
    b"scan.PNG",
    b"scan.png",
]


def lines_of(text: str, samples: dict[str, int]) -> tuple[dict[int, int | None], list[str]]:
    lines, problems = read_label_lines(text.encode(), ClassNames(CLASSES), samples, "me")
    return {line.sample: line.label for line in lines}, [p.reason for p in problems]


@pytest.mark.parametrize("mark", NO_LINE_ENDS, ids=ascii)
def test_a_comment_never_becomes_the_label_of_another_image(mark: str):
    text = f'file,label,comment\na.png,cat,"not{mark}b.png,dog"\n'
    assert lines_of(text, {"a.png": 1, "b.png": 2}) == ({1: 0}, [])
    # In the first column, at the end of a line, and in what is quoted.
    text = f'comment,file,label\n"see{mark},b.png,dog",a.png,cat\n{mark}b.png,b.png,owl{mark}\n'
    assert lines_of(text, {"a.png": 1, "b.png": 2}) == ({1: 0, 2: 2}, [])


@pytest.mark.parametrize("mark", NO_LINE_ENDS, ids=ascii)
def test_lines_are_numbered_as_an_editor_numbers_them(mark: str):
    _, problems = read_label_lines(
        f"file,label,comment\na.png,cat,x{mark}y\r\nz.png,dog,\n".encode(),
        ClassNames(CLASSES),
        {"a.png": 1},
        "me",
    )
    assert [(p.line, p.text) for p in problems] == [(3, "z.png,dog,")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_ends_a_line_of_text_ends_one(end: str):
    text = end.join(["file,label", "a.png,cat", "b.png,dog", ""])
    assert lines_of(text, {"a.png": 1, "b.png": 2}) == ({1: 0, 2: 1}, [])


class TestShortLines:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("label,file\none,0.png\ntwo\n", "has 1 values, the first line names 2, and has none"),
            ("file,by,label\n0.png,anna\n", "has none for `label`"),
            ("x,label,file\n1,cat\n", "has none for `file`"),
            ("file,label\n,cat\n", "has the label 'cat', but names no file"),
            ("file,label\n  ,cat\n", "names no file"),
        ],
    )
    def test_a_label_without_its_file_is_told(self, text: str, reason: str):
        _, problems = lines_of(text, {"0.png": 0})
        assert reason in problems[-1]

    def test_what_is_left_out_at_the_end_of_a_line_is_empty(self):
        text = "file,label,guess\n0.png,cat\n1.png\n\n,\n ,,\n"
        assert lines_of(text, {"0.png": 0, "1.png": 1}) == ({0: 0}, [])


class TestMatching:
    def test_exactly_first(self):
        names = SampleNames({"a\\b.png": 1, "a/b.png": 2, " a/b.png": 3, "./a/b.png": 4})
        for name, sample in [("a\\b.png", 1), ("a/b.png", 2), (" a/b.png", 3), ("./a/b.png", 4)]:
            assert names.find(name) == {sample}

    def test_then_as_unicode_has_it_equal(self):
        nfc = "é/é.png"
        nfd = unicodedata.normalize("NFD", nfc)
        assert SampleNames({nfc: 1}).find(nfd) == {1}
        assert SampleNames({nfd: 1}).find(nfc) == {1}
        both = SampleNames({nfc: 1, nfd: 2})
        assert (both.find(nfc), both.find(nfd)) == ({1}, {2})
        # Neither the one nor the other.
        mixed = nfc[:2] + nfd[3:]
        assert both.find(mixed) == {1, 2}
        # Two names of one image are no contradiction.
        assert SampleNames({nfc: 1, nfd: 1}).find(mixed) == {1}

    @pytest.mark.parametrize(
        "written", ["a/b.png", "a\\b.png", "./a/b.png", ".\\a\\b.png", " a/b.png ", "a/b.png\u2028"]
    )
    def test_then_as_people_and_systems_vary_it(self, written: str):
        assert SampleNames({"a/b.png": 1}).find(written) == {1}

    def test_the_apostrophe_that_hides_a_formula(self):
        assert SampleNames({"=1+1.png": 1}).find("'=1+1.png") == {1}
        assert SampleNames({"=1+1.png": 1, "'=1+1.png": 2}).find("'=1+1.png") == {2}
        assert SampleNames({"x.png": 1}).find("'x.png") == frozenset()

    def test_a_name_that_may_mean_two_images_is_told(self):
        nfc = "éé.png"
        nfd = unicodedata.normalize("NFD", nfc)
        mixed = nfc[0] + nfd[2:]
        found, problems = lines_of(f"file,label\n{mixed},cat\n", {nfc: 1, nfd: 2})
        assert found == {}
        assert "may be any of 2 images" in problems[0]

    def test_classes_too(self):
        nfd = unicodedata.normalize("NFD", "Nævus é")
        classes = ClassNames(("Nævus é", "other"))
        assert [classes.index(text) for text in ("Nævus é", nfd, nfd.upper(), "OTHER")] == [
            0,
            0,
            0,
            1,
        ]
        assert ClassNames((nfd, "Nævus é")).index("Nævus é") == 1


class TestReadableNames:
    @given(st.lists(st.binary(min_size=1, max_size=12), unique=True, max_size=20))
    def test_different_names_stay_different(self, raw: list[bytes]):
        found = [readable(os.fsdecode(name)) for name in raw]
        assert len(set(found)) == len(raw)
        assert all(name.encode() for name in found)

    @given(
        st.lists(
            st.lists(st.sampled_from(["\\", "x", "e", "9", "5", "c", "\udce9", "é"])).map("".join),
            unique=True,
            max_size=50,
        )
    )
    def test_what_looks_like_an_escape_stays_different_from_one(self, names: list[str]):
        assert len({readable(name) for name in names}) == len(names)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (b"plain.png", "plain.png"),
            (b"C:\\scans\\1.png", "C:\\scans\\1.png"),
            ("é.png".encode(), "é.png"),
            (b"\xe9.png", "\\xe9.png"),
            (b"\\xe9.png", "\\x5cxe9.png"),
        ],
    )
    def test_names_that_people_know_stay_as_they_are(self, name: bytes, text: str):
        assert readable(os.fsdecode(name)) == text


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder with an image under each of the names."""
    for place, name in enumerate(NAMES):
        path = os.path.join(os.fsencode(tmp_path / "data"), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        image = Image.fromarray(np.full((8, 8), place, np.uint8))
        with open(path, "wb") as file:
            image.save(file, "PNG")
        os.utime(path, (1, 1))
    return tmp_path


def loaded(site: Path, state: str) -> SiteData:
    folders = SiteFolders(site / "data", site / state)
    return load_site(folders, FORMAT, site / "cache", "")


def store_of(data: SiteData, path: Path, labelled: bool) -> Path:
    """Return a store in which all images were asked for, and answered if `labelled`."""
    path.parent.mkdir(parents=True)
    store = LabelStore.open_file(path, data.ids_N, 3, grows=True)
    store.describe(CLASSES, data.names)
    ids = tuple(int(i) for i in data.ids_N)
    store.allot(len(ids))
    store.reserve(LabelRequest("r0", 0, "random", ids))
    if labelled:
        store.commit([LabelReceipt("r0", i, i % 3, "anna") for i in ids])
    store.close()
    return path


def labels_in(path: Path) -> dict[str, int | None]:
    store = LabelStore.open_existing(path)
    try:
        return {str(entry.file): entry.label for entry in store.entries()}
    finally:
        store.close()


def test_every_label_survives_export_and_import(site: Path, tmp_path: Path):
    data = loaded(site, "state")
    assert len(data.ids_N) == len(NAMES)
    assert len(set(data.names.values())) == len(NAMES)
    before = store_of(data, tmp_path / "before" / "labels.sqlite", labelled=True)
    after = store_of(data, tmp_path / "after" / "labels.sqlite", labelled=False)
    assert export_labels(before, tmp_path / "out.csv") == len(NAMES)
    assert import_labels(after, tmp_path / "out.csv", "bert").labelled == len(NAMES)
    assert labels_in(after) == labels_in(before)
    assert verify_store(after).conflicts == ()


def test_every_label_survives_export_and_the_next_run(site: Path, tmp_path: Path):
    data = loaded(site, "state")
    store = store_of(data, tmp_path / "before" / "labels.sqlite", labelled=True)
    expected = labels_in(store)
    export_labels(store, tmp_path / "out.csv")
    # With the names that this site has for its classes.
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    named = [(row["file"], FORMAT.class_names[CLASSES.index(row["label"])]) for row in rows]
    write_csv(site / "data" / "labels.csv", ("file", "label"), named)
    os.utime(site / "data" / "labels.csv", (1, 1))
    again = loaded(site, "another state")
    (given_labels,) = again.given.values()
    assert {again.names[i]: label for i, label in given_labels.items()} == expected


class TestSuggestions:
    def test_are_made_for_the_first_few_lines(self):
        samples = {f"scan-{i:04d}.png": i for i in range(50)}
        text = "file,label\n" + "".join(f"scan_{i:04d}.png,cat\n" for i in range(20))
        _, problems = read_label_lines(text.encode(), ClassNames(CLASSES), samples, "me")
        reasons = [problem.reason for problem in suggested(problems, samples)]
        assert reasons[:3] == [
            f"no sample 'scan_{i:04d}.png' here; did you mean 'scan-{i:04d}.png'?" for i in range(3)
        ]
        assert reasons[3:] == [f"no sample 'scan_{i:04d}.png' here" for i in range(3, 20)]

    def test_a_file_of_that_name_in_another_folder_comes_first(self):
        samples = {"ward-a/7.png": 1, "8.png": 2, "9.png": 3}
        assert SampleNames(samples).near("7.png") == "; did you mean 'ward-a/7.png'?"

    def test_wrong_classes_are_compared_once_each_and_not_without_end(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        asked = []
        monkeypatch.setattr(
            names_module, "suggestion", lambda text, known: asked.append(text) or ""
        )
        samples = {f"{i}.png": i for i in range(3000)}
        text = "file,label\n" + "".join(f"{i}.png,wrong {i % 500}\n" for i in range(3000))
        _, problems = read_label_lines(text.encode(), ClassNames(CLASSES), samples, "me")
        assert len(problems) == 3000
        assert len(asked) == len(set(asked)) <= 50

    def test_an_archive_of_labels_is_looked_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "data").mkdir()
        for i in range(20):
            image = Image.fromarray(np.full((8, 8), i, np.uint8))
            image.save(tmp_path / "data" / f"scan-{i:02d}.png")
        lines = "".join(f"scan-{i:02d}.png,one\n" for i in range(90, 99))
        (tmp_path / "data" / "labels.csv").write_text(f"file,label\n{lines}")
        for path in (tmp_path / "data").iterdir():
            os.utime(path, (1, 1))
        asked: list[str] = []
        near = SampleNames.near
        monkeypatch.setattr(
            SampleNames, "near", lambda self, name: asked.append(name) or near(self, name)
        )
        loaded(tmp_path, "state")
        assert asked == ["scan-90.png", "scan-91.png", "scan-92.png"]
        with (tmp_path / "state" / "set-aside.csv").open(encoding="utf-8-sig", newline="") as file:
            told = {row["file"]: row["reason"] for row in csv.DictReader(file)}
        assert told["labels.csv, line 2"].startswith("no sample 'scan-90.png' here; did you mean")
        assert told["labels.csv, line 9"] == "no sample 'scan-97.png' here"
        stamp = (tmp_path / "state" / "set-aside.csv").stat().st_mtime_ns
        # The next messages: nothing new to tell, nothing compared, nothing written.
        for _ in range(2):
            loaded(tmp_path, "state")
        assert len(asked) == 3
        assert (tmp_path / "state" / "set-aside.csv").stat().st_mtime_ns == stamp


def test_a_short_line_stops_a_site_by_name(tmp_path: Path):
    (tmp_path / "data").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data" / "0.png")
    (tmp_path / "data" / "labels.csv").write_text("label,file\none,0.png\ntwo\n")
    for path in (tmp_path / "data").iterdir():
        os.utime(path, (1, 1))
    with pytest.raises(LabelFileError, match="line 3: has 1 values"):
        loaded(tmp_path, "state")


def test_what_the_csv_module_writes_is_read_back_name_by_name():
    text = io.StringIO()
    readable_names = [readable(os.fsdecode(name)) for name in NAMES]
    csv.writer(text).writerows([("file", "label"), *((name, "cat") for name in readable_names)])
    samples = {name: place for place, name in enumerate(readable_names)}
    found, problems = lines_of(text.getvalue(), samples)
    assert problems == []
    assert found == dict.fromkeys(range(len(NAMES)), 0)
