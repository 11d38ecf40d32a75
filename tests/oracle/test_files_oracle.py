from __future__ import annotations

import csv
import io
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.disk import watched_disk

from ahfal_app.errors import ConfigError, LabelFileError, OracleError
from ahfal_app.labels.names import ClassNames
from ahfal_app.labels.spreadsheet import read_label_file, read_label_lines
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore, request_id
from ahfal_app.ledger import Ledger
from ahfal_app.oracle import EncodedImage, Site, make_oracle
from ahfal_app.oracle.files import FilesOracle

CLASSES = ("cat", "dog", "Große Eule")
NAMES = {5: "ward/a=1.jpg", 9: "b.png", 2: "../odd name?.png", 7: "c.png"}
REQUEST = LabelRequest(
    request_id("run", 0, 3), 3, "margin", (5, 9, 2), scores=(0.5, 0.25, 0.125), guesses=(1, 0, 2)
)


def _site(folder: Path | None, classes: tuple[str, ...] = CLASSES) -> Site:
    def image(sample: int) -> EncodedImage:
        return EncodedImage(NAMES[sample], f"content {sample}".encode())

    return Site(0, classes, {}, image, folder)


@pytest.fixture
def oracle(tmp_path: Path) -> FilesOracle:
    oracle = make_oracle("files", _site(tmp_path / "requests"))
    assert isinstance(oracle, FilesOracle)
    oracle.submit(REQUEST)
    return oracle


@pytest.fixture
def folder(oracle: FilesOracle, tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "requests").iterdir()
    return folder


def _answer(folder: Path, content: str | bytes, name: str = "labels.csv") -> None:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (0, 0))  # Long since written, so that it is not taken for half a file.


def _collected(oracle: FilesOracle) -> list[tuple[int, int | None, str]]:
    receipts = oracle.collect(REQUEST.request_id)
    assert {r.request_id for r in receipts} <= {REQUEST.request_id}
    return [(r.sample, r.label, r.annotator) for r in receipts]


def _errors(folder: Path) -> list[dict[str, str]]:
    path = folder / "errors.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_request_is_a_folder_that_people_can_read(folder: Path):
    assert folder.name == f"cycle-003-{REQUEST.request_id[:12]}"
    with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["1-ward__a_1.jpg", "2-b.png", "3-__odd_name_.png"]
    assert [row["guess"] for row in rows] == ["dog", "cat", "Große Eule"]
    assert [row["score"] for row in rows] == ["0.5", "0.25", "0.125"]
    assert [row["original"] for row in rows] == [NAMES[5], NAMES[9], NAMES[2]]
    assert {row["label"] for row in rows} == {""}
    for row, sample in zip(rows, REQUEST.samples, strict=True):
        assert (folder / "images" / row["file"]).read_text() == f"content {sample}"
    readme = (folder / "README.txt").read_text(encoding="utf-8")
    assert all(f"- {name}\n" in readme for name in CLASSES)


def test_the_folders_names_come_before_what_the_site_calls_its_images(tmp_path: Path):
    """Here the site's name of the second image is that of the first one in the folder."""
    names = {5: "1.png", 9: "1-1.png"}
    site = Site(0, CLASSES, {}, lambda s: EncodedImage(names[s], b""), tmp_path)
    oracle = FilesOracle(site, tmp_path)
    oracle.submit(LabelRequest(REQUEST.request_id, 3, "margin", (5, 9)))
    (folder,) = tmp_path.iterdir()
    _answer(folder, "file,label\n1-1.png,dog\n2-1-1.png,cat\n")
    assert _collected(oracle) == [(5, 1, "files"), (9, 0, "files")]


def test_images_without_a_name_of_their_own_get_one_that_viewers_open(tmp_path: Path):
    contents = {}
    for sample, kind in ((12, "PNG"), (13, "JPEG"), (14, "JPEG2000"), (15, "MPO")):
        contents[sample] = io.BytesIO()
        preview = {"save_all": True, "append_images": [Image.new("L", (2, 2))]}
        options = preview if kind == "MPO" else {}
        Image.new("L", (2, 2)).save(contents[sample], kind, **options)
    site = Site(
        *(0, CLASSES, {}),
        lambda s: EncodedImage(f"scans.parquet#{s}", contents[s].getvalue()),
        tmp_path,
    )
    request = LabelRequest(REQUEST.request_id, 3, "margin", (12, 13, 14, 15))
    FilesOracle(site, tmp_path).submit(request)
    names = sorted(path.name for path in tmp_path.glob("*/images/*"))
    assert names == [
        *("1-scans.parquet_12.png", "2-scans.parquet_13.jpg", "3-scans.parquet_14.jp2"),
        "4-scans.parquet_15.jpg",
    ]


def test_a_repeated_request_changes_nothing(oracle: FilesOracle, folder: Path):
    _answer(folder, "file,label\n2-b.png,cat\n")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    oracle.submit(REQUEST)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(list(folder.parent.iterdir())) == 1


def test_a_request_is_on_disk_before_people_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with watched_disk(monkeypatch) as disk:
        FilesOracle(_site(tmp_path), tmp_path).submit(REQUEST)
    disk.check("request.csv", f"cycle-003-{REQUEST.request_id[:12]}")


def test_what_a_kill_left_is_cleared_away(oracle: FilesOracle, folder: Path):
    other = LabelRequest(request_id("run", 0, 4), 4, "x", (7,))
    left = folder.parent / f".cycle-004-{other.request_id[:12]}.abc.part"
    (left / "images").mkdir(parents=True)
    oracle.submit(other)
    names = sorted(path.name for path in folder.parent.iterdir())
    assert names == [folder.name, f"cycle-004-{other.request_id[:12]}"]


@pytest.mark.parametrize(
    "name",
    [
        "labels (1).csv",
        "labels (2) (1).csv",
        "Labels.xlsx",
        "labels.ods",
        "labels.csv.txt",
        "labels.tsv",
        "labels",
        "labels_anna.csv",
        "answers.csv",
        "request (1).csv",
        "request.xlsx",
    ],
)
def test_a_file_of_answers_of_another_name_is_said(
    oracle: FilesOracle, folder: Path, name: str, caplog: pytest.LogCaptureFixture
):
    _answer(folder, "file,label\n2-b.png,cat\n", name)
    assert _collected(oracle) == []
    (error,) = _errors(folder)
    assert error["answers"] == name
    assert "is not read; save it as labels.csv" in error["reason"]
    assert f"{name} not used" in caplog.text
    (folder / name).rename(folder / "labels-x.csv")
    assert _collected(oracle) == [(9, 0, "x")]
    assert _errors(folder) == []


@pytest.mark.parametrize(
    "name", ["~$labels.xlsx", ".~lock.labels.csv#", "labels.csv~", "notes.txt", "scan.png"]
)
def test_what_nobody_takes_for_answers_is_not(oracle: FilesOracle, folder: Path, name: str):
    _answer(folder, "file,label\n2-b.png,cat\n", name)
    assert _collected(oracle) == []
    assert _errors(folder) == []


def test_answers_that_were_left_in_the_request_are_said(oracle: FilesOracle, folder: Path):
    text = (folder / "request.csv").read_text(encoding="utf-8-sig")
    filled = text.replace("2-b.png,,", "2-b.png,dog,").replace("_.png,,", "_.png,skip,")
    _answer(folder, filled, "request.csv")
    assert _collected(oracle) == []
    (error,) = _errors(folder)
    assert (error["answers"], error["line"]) == ("request.csv", "3")
    assert "2 labels are here, which are not read; save it as labels.csv" in error["reason"]
    # Who saves it under both names has done right.
    _answer(folder, filled)
    assert _collected(oracle) == [(9, 1, "files"), (2, None, "files")]
    assert _errors(folder) == []


def test_answers_in_part_in_any_order_and_repeated(oracle: FilesOracle, folder: Path):
    assert _collected(oracle) == []
    _answer(folder, "file,label\n3-__odd_name_.png,skip\n2-b.png,\n1-ward__a_1.jpg,DOG\n")
    for _ in range(2):
        assert _collected(oracle) == [(2, None, "files"), (5, 1, "files")]
    _answer(folder, "label,file\ncat,2-b.png\ncat,2-b.png\n")
    assert _collected(oracle) == [(9, 0, "files")]
    assert oracle.collect("unknown") == []


def test_request_csv_itself_can_be_filled_in(oracle: FilesOracle, folder: Path):
    text = (folder / "request.csv").read_text(encoding="utf-8-sig")
    _answer(folder, text.replace("2-b.png,,", "2-b.png,dog,"))
    assert _collected(oracle) == [(9, 1, "files")]


@pytest.mark.parametrize(
    "content",
    [
        "\ufefffile;label;note\r\n2-b.png;Große Eule;x\r\n",
        'FILE\t Label \r"2-b.png"\t"große eule"\r\r',
        "file,label\nimages/2-b.png,Große Eule",
        "file,label\n.\\images\\2-b.png,Große Eule\n\n,\n",
        "file,label\nb.png,große eule\n",
    ],
    ids=["excel", "tabs", "folder", "windows", "original"],
)
def test_what_spreadsheets_write_is_understood(oracle: FilesOracle, folder: Path, content: str):
    _answer(folder, content)
    assert _collected(oracle) == [(9, 2, "files")]
    assert _errors(folder) == []


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("file,label\n2-b.png,dgo\n", 2, "no class 'dgo'; did you mean 'dog'?"),
        ("file,label\n2-b.png,skp\n", 2, "did you mean 'skip'?"),
        ("file,label\n2-b.png,1\n", 2, "no class '1'"),
        ("file,label\n2-c.png,dog\n", 2, "no sample '2-c.png' here; did you mean '2-b.png'?"),
        ("file,label\n2-b.png,dog\n2-b.png,cat\n", 3, "contradicts line 2"),
        ("file,label\n2-b.png,dog\n\n2-b.png,skip\n", 4, "contradicts line 2"),
        ("file,label\n2-b.png,dog,cat\n", 2, "has 3 values, the first line names 2"),
        ("2-b.png,dog\n", 1, "among them `file` once"),
        ("file,label,label\n2-b.png,dog,dog\n", 1, "among them `label` once"),
        ("", 1, "among them `file` once"),
        ('file,label\n2-b.png,"dog\n', 2, "what follows is not read"),
        ("file,label\n2-b.png,dog\n3,Große Eule\n".encode("latin-1"), 3, 'save as "CSV UTF-8"'),
        ("file,label\n".encode("utf-16"), 1, 'save as "CSV UTF-8"'),
    ],
)
def test_a_file_with_a_mistake_is_not_used_at_all(
    oracle: FilesOracle, folder: Path, content: str | bytes, line: int, reason: str, caplog
):
    good = "file,label\n1-ward__a_1.jpg,dog\n"
    if isinstance(content, str) and content.startswith("file,label\n"):
        content = content.replace("file,label\n", good)
        line += 1
        reason = reason.replace("line 2", "line 3")
    _answer(folder, content)
    assert _collected(oracle) == []
    (error,) = _errors(folder)
    assert (error["answers"], error["line"]) == ("labels.csv", str(line))
    assert reason in error["reason"]
    assert "labels.csv not used" in caplog.text
    _answer(folder, good)
    assert _collected(oracle) == [(5, 1, "files")]
    assert _errors(folder) == []


def test_every_mistake_is_told_at_once(oracle: FilesOracle, folder: Path):
    _answer(folder, "file,label\nx.png,dog\n2-b.png,cow\n1-ward__a_1.jpg,dog\n")
    assert _collected(oracle) == []
    assert [(e["line"], e["text"]) for e in _errors(folder)] == [
        ("2", "x.png,dog"),
        ("3", "2-b.png,cow"),
    ]


def test_several_people_answer_in_files_of_their_own(oracle: FilesOracle, folder: Path):
    _answer(folder, "file,label\n2-b.png,cat\n", "labels-anna.csv")
    _answer(folder, "file,label\n2-b.png,cow\n", "labels-bert.csv")
    _answer(folder, "file,label,annotator\n2-b.png,dog,clara\n2-b.png,cat,\n")
    assert sorted(_collected(oracle)) == [
        (9, 0, "anna"),
        (9, 0, "files"),
        (9, 1, "clara"),
    ]
    assert {e["answers"] for e in _errors(folder)} == {"labels-bert.csv"}


def test_a_file_that_is_still_being_written_is_left_for_later(
    oracle: FilesOracle, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path = folder / "labels.csv"
    path.write_text("file,label\n2-b.png,cat\n")
    written = path.stat().st_mtime
    for age, expected in [(1.0, []), (3.0, [(9, 0, "files")]), (-3600.0, [(9, 0, "files")])]:
        # A negative age is another machine's clock: no reason to wait for an hour.
        monkeypatch.setattr("ahfal_app.oracle.files.time.time", lambda age=age: written + age)
        assert _collected(oracle) == expected


def test_a_file_from_the_future_is_used_when_it_is_as_it_was_at_the_look_before(
    oracle: FilesOracle, folder: Path, tmp_path: Path
):
    """As another machine's clock has it, it was written tomorrow: half of it, then the rest."""
    path = folder / "labels.csv"
    tomorrow = time.time() + 86_400
    for seconds, content, expected in [
        (0, "file,label\n2-b.png,do", []),
        (1, "file,label\n2-b.png,dog\n1-ward__a_1.jpg,ca", []),
        (2, "file,label\n2-b.png,dog\n1-ward__a_1.jpg,cat", []),
        (2, "file,label\n2-b.png,dog\n1-ward__a_1.jpg,cat", [(9, 1, "files"), (5, 0, "files")]),
        (2, "file,label\n2-b.png,dog\n1-ward__a_1.jpg,cat", [(9, 1, "files"), (5, 0, "files")]),
        (3, "file,label\n2-b.png,dog\n1-ward__a_1.jpg,dog", []),
    ]:
        path.write_text(content)
        os.utime(path, (tomorrow + seconds, tomorrow + seconds))
        # Each look may be that of another process.
        assert _collected(FilesOracle(_site(None), tmp_path / "requests")) == expected
        assert _errors(folder) == []


def test_of_a_file_from_the_future_that_cannot_be_remembered_the_time_is_waited_for(
    oracle: FilesOracle, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / ".looks.json").mkdir()
    _answer(folder, "file,label\n2-b.png,cat\n")
    assert _collected(oracle) == [(9, 0, "files")]
    os.utime(folder / "labels.csv", (2e9, 2e9))
    for now, expected in [(1.9e9, []), (1.95e9, []), (2.1e9, [(9, 0, "files")])]:
        monkeypatch.setattr("ahfal_app.oracle.files.time.time", lambda now=now: now)
        assert _collected(oracle) == expected


def test_a_folder_that_was_deleted_is_written_again(oracle: FilesOracle, folder: Path):
    folder.rename(folder.parent.parent / "elsewhere")
    oracle.submit(REQUEST)
    assert (folder / "request.csv").is_file()


def test_trouble_with_the_disk_is_a_named_error(tmp_path: Path, oracle: FilesOracle, folder: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OracleError, match="cannot be written"):
        make_oracle("files", _site(tmp_path / "file" / "requests")).submit(REQUEST)
    (folder / "request.json").write_text("{")
    with pytest.raises(OracleError, match="cannot be read"):
        oracle.collect(REQUEST.request_id)


def test_settings_that_cannot_be_used_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="oracle-dir"):
        make_oracle("files", _site(None))
    with pytest.raises(ConfigError, match="any name but 'skip'"):
        make_oracle("files", _site(tmp_path, ("cat", "Skip")))


def test_a_label_file_is_read_whole_or_refused(tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n" + "x,cat\n" * 12)
    with pytest.raises(LabelFileError, match=r"(?s)12 lines cannot.*line 2: no sample 'x'.*2 more"):
        read_label_file(path, ClassNames(CLASSES), {"a": 1}, "me")
    path.write_text("file,label\na,skip\n")
    with pytest.raises(LabelFileError, match="no class 'skip'"):
        read_label_file(path, ClassNames(CLASSES), {"a": 1}, "me", may_skip=False)
    with pytest.raises(LabelFileError, match="cannot be read"):
        read_label_file(tmp_path / "missing.csv", ClassNames(CLASSES), {"a": 1}, "me")


def test_names_that_differ_in_case_alone_must_be_exact():
    classes = ClassNames(("a", "A", "b"))
    assert [classes.index(text) for text in ("a", "A", "B")] == [0, 1, 2]
    assert ClassNames(("aa", "AA")).index("Aa") is None


@given(st.binary(max_size=200), st.booleans())
def test_no_content_raises_or_invents_an_answer(content: bytes, with_header: bool):
    if with_header:
        content = b"file,label\n" + content
    lines, _ = read_label_lines(content, ClassNames(CLASSES), {"a": 1, "b": 2}, "me")
    assert {line.sample for line in lines} <= {1, 2}


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(NAMES.values())), st.sampled_from([*CLASSES, "skip", ""])),
        max_size=8,
        unique_by=lambda line: line[0],
    ),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_whatever_csv_writes_is_read_back(lines, delimiter: str, end: str):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([("file", "label"), *lines])
    samples = {name: sample for sample, name in NAMES.items()}
    read, problems = read_label_lines(text.getvalue().encode(), ClassNames(CLASSES), samples, "me")
    assert problems == []
    expected = [
        LabelReceipt("", samples[name], None if label == "skip" else CLASSES.index(label), "me")
        for name, label in lines
        if label
    ]
    assert [LabelReceipt("", r.sample, r.label, r.annotator) for r in read] == expected


# --- images that go, times, and formulas ----------------------------------------------------


def test_an_image_that_is_withdrawn_leaves_the_folder(oracle: FilesOracle, folder: Path):
    _answer(folder, "file,label\nb.png,dog\n")
    oracle.withdraw([9, 100])
    assert [path.name[:2] for path in sorted((folder / "images").iterdir())] == ["1-", "3-"]
    with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["position"] for row in rows] == ["1", "3"]
    assert "b.png" not in (folder / "request.csv").read_text(encoding="utf-8-sig")
    # What was written of it before is no mistake, and is still collected.
    assert _collected(oracle) == [(9, 1, "files")]
    assert _errors(folder) == []
    oracle.withdraw([9])


def test_a_request_with_addresses_is_answered_and_withdrawn_from_as_others_are(tmp_path: Path):
    def image(sample: int) -> EncodedImage:
        link = "" if sample == 2 else f"https://records.example/{sample}"
        return EncodedImage(NAMES[sample], b"content", link)

    oracle = FilesOracle(Site(0, CLASSES, {}, image, tmp_path), tmp_path / "requests")
    oracle.submit(REQUEST)
    (folder,) = (tmp_path / "requests").iterdir()
    text = (folder / "request.csv").read_text(encoding="utf-8-sig")
    assert text.splitlines()[0].endswith(",original,link")
    _answer(folder, text.replace("2-b.png,,", "2-b.png,dog,"))
    assert _collected(oracle) == [(9, 1, "files")]
    oracle.withdraw([9])
    with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["link"] for row in csv.DictReader(file)] == ["https://records.example/5", ""]


def test_a_request_that_a_spreadsheet_has_saved_is_left_as_it_is(oracle: FilesOracle, folder: Path):
    content = "file;label\n2-b.png;caf\xe9\n".encode("latin-1")
    (folder / "request.csv").write_bytes(content)
    oracle.withdraw([9])
    assert (folder / "request.csv").read_bytes() == content
    assert len(list((folder / "images").iterdir())) == 2


def test_an_answer_was_given_when_its_file_was_saved(oracle: FilesOracle, folder: Path):
    _answer(folder, "file,label\nb.png,dog\n")
    (receipt,) = oracle.collect(REQUEST.request_id)
    assert receipt.given == "1970-01-01T00:00:00.000Z"


def test_a_request_has_no_formulas(tmp_path: Path):
    """Neither in names of files nor in those of classes, which are the server's."""
    formula = '=HYPERLINK("http://example.invalid/","look")'
    names = {1: formula + ".png", 2: "scan;@SUM(A1).png", 3: "fine.png"}
    site = Site(
        0,
        ("cat", '=cmd|" /C calc"!A0', "-"),
        {},
        lambda sample: EncodedImage(names[sample], b"content"),
        tmp_path,
    )
    oracle = make_oracle("files", site)
    request = LabelRequest(
        REQUEST.request_id, 3, "margin", (1, 2, 3), scores=(-0.5, 1.0, 2.0), guesses=(1, 2, 0)
    )
    oracle.submit(request)
    (folder,) = tmp_path.iterdir()
    with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = list(csv.reader(file))
    for row in rows:
        for name, cell in zip(header, row, strict=True):
            assert name == "score" or not cell.startswith(("=", "+", "-", "@"))
            assert ";@" not in cell
    assert [row[header.index("score")] for row in rows] == ["-0.5", "1", "2"]
    # What stands there may be written back as it is.
    guess, original = header.index("guess"), header.index("original")
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("file", "label"), *((row[original], row[guess]) for row in rows)]
        )
    os.utime(folder / "labels.csv", (0, 0))
    receipts = oracle.collect(REQUEST.request_id)
    assert [(r.sample, r.label) for r in receipts] == [(1, 1), (2, 2), (3, 0)]


# --- doubts, comments and several readers ---------------------------------------------------


def test_doubts_and_comments_are_taken_in(oracle: FilesOracle, folder: Path):
    with (folder / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header[:4] == ["file", "label", "unsure", "comment"]
    said = (("dog", "yes", "'=blurred"), ("cat", "no", "hair; left"), ("skip", "x", ""))
    text = io.StringIO()
    filled = [[row[0], *remarks, *row[4:]] for row, remarks in zip(rows, said, strict=True)]
    csv.writer(text).writerows([header, *filled])
    _answer(folder, text.getvalue())
    receipts = oracle.collect(REQUEST.request_id)
    assert [(r.sample, r.label, r.unsure, r.comment) for r in receipts] == [
        (5, 1, True, "=blurred"),
        (9, 0, False, "hair; left"),
        (2, None, True, ""),
    ]


def _for_two(tmp_path: Path, rule: str = "majority") -> tuple[FilesOracle, Path]:
    oracle = make_oracle("files", _site(tmp_path / "two"))
    assert isinstance(oracle, FilesOracle)
    oracle.submit(replace(REQUEST, readers=2, rule=rule))
    (folder,) = (tmp_path / "two").iterdir()
    return oracle, folder


def _disputed(folder: Path) -> list[dict[str, str]]:
    path = folder / "disagreements.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_what_two_readers_disagree_on_is_listed_and_settled_in_files(tmp_path: Path):
    oracle, folder = _for_two(tmp_path)
    assert "2 people, who do not look at what the others say" in " ".join(
        (folder / "README.txt").read_text().split()
    )
    names = [path.name for path in sorted((folder / "images").iterdir())]
    first, second, third = names
    _answer(
        folder,
        f"file,label,unsure,comment\n{first},cat,,\n{second},dog,yes,hair\n{third},cat,,\n",
        "labels-anna.csv",
    )
    _collected(oracle)
    # One who has not been followed by another does not disagree with anybody.
    assert _disputed(folder) == []
    _answer(folder, f"file,label\n{first},cat\n{second},cat\n{third},skip\n", "labels-ben.csv")
    assert len(_collected(oracle)) == 6
    assert _disputed(folder) == [
        {
            "file": second,
            "label": "",
            "comment": "",
            "readings": "anna: dog (unsure, hair); ben: cat",
        },
        {"file": third, "label": "", "comment": "", "readings": "anna: cat; ben: skip"},
    ]
    # Whoever settles it may start in that file, and is told how to save it.
    _answer(folder, f"file,label,comment,readings\n{second},dog,biopsy,\n", "disagreements.csv")
    _collected(oracle)
    (error,) = _errors(folder)
    assert (error["answers"], error["line"]) == ("disagreements.csv", "2")
    assert "save it as decisions.csv or decisions-NAME.csv" in error["reason"]
    assert _disputed(folder)[0]["comment"] == "biopsy"
    (folder / "disagreements.csv").rename(folder / "decisions-prof.csv")
    decided = [r for r in oracle.collect(REQUEST.request_id) if r.decides]
    assert [(r.sample, r.label, r.annotator, r.comment) for r in decided] == [
        (9, 1, "prof", "biopsy")
    ]
    assert _errors(folder) == []
    assert [row["file"] for row in _disputed(folder)] == [third]
    _answer(folder, f"file,label\n{second},dog\n{third},cat\n", "decisions-prof.csv")
    _collected(oracle)
    assert _disputed(folder) == []
    assert not (folder / "disagreements.csv").exists()


def test_files_of_readers_become_labels_once(tmp_path: Path):
    """Collected again and again, as with every message of a run."""
    oracle, folder = _for_two(tmp_path, "adjudicator")
    store = LabelStore.from_bytes(b"", np.arange(10), len(CLASSES))
    store.allot(4)
    store.reserve(replace(REQUEST, readers=2, rule="adjudicator"))
    names = [path.name for path in sorted((folder / "images").iterdir())]

    def take_in() -> Ledger:
        for _ in range(2):
            store.commit(oracle.collect(REQUEST.request_id))
        store.verify()
        return store.ledger()

    lines = "".join(f"{name},cat\n" for name in names)
    _answer(folder, "file,label\n" + lines, "labels-anna.csv")
    assert take_in() == Ledger(4, 0, 3, 1)
    _answer(folder, "file,label\n" + lines.replace(",cat", ",dog", 1), "labels-ben.csv")
    assert take_in() == Ledger(4, 2, 1, 1)
    _answer(folder, f"file,label\n{names[0]},dog\n", "decisions-prof.csv")
    assert take_in() == Ledger(4, 3, 0, 1)
    assert take_in() == Ledger(4, 3, 0, 1)
    assert store.labelled().labels_N.tolist() == [0, 1, 0]
    assert store.conflicts() == ()
