"""Labels in CSV files as people and spreadsheets write them.

One dialect for all such files: UTF-8 with or without a byte-order mark; a first line with the
names of the columns, among them `file` and `label`; separated by commas, semicolons or tabs,
whichever the first line has; lines end as text files' lines do (LF, CR LF, CR) and by nothing
else; quotes as spreadsheets use them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ahfal_app.errors import LabelFileError
from ahfal_app.labels.formulas import file_cell, plain_file, plain_text, text_cell
from ahfal_app.labels.names import SKIP, ClassNames, SampleNames
from ahfal_app.labels.records import utc_text
from ahfal_app.storage.files import write_bytes

# Whatever else stands in the column `unsure` says that somebody is.
_SURE = ("", "no", "0", "false")

_DELIMITERS = ",;\t"
_ENCODING = "utf-8-sig"

#: Columns that hold names of files.
_FILES = ("file", "original")

#: The nearest name is looked for among all: for the first few lines, and not for an archive's.
MOST_SUGGESTED = 3


@dataclass(frozen=True)
class LabelLine:
    """One line: a sample's class index, or None where it was skipped.

    Attributes
    ----------
    number : int
        Line in the file, from 1.
    sample : int
        Sample id.
    label : int | None
        Class index, or None.
    annotator : str
        Who says so, or what the caller says where there is no such column.
    unsure : bool
        Whether whoever says so was not sure.
    comment : str
        What else is said.
    """

    number: int
    sample: int
    label: int | None
    annotator: str
    unsure: bool = False
    comment: str = ""


@dataclass(frozen=True)
class LineProblem:
    """A line that cannot be used: its number from 1, its text, and why.

    `unknown_file` is the file that it names, where it is just about an image that is not there.
    """

    line: int
    text: str
    reason: str
    unknown_file: str = ""


def read_label_lines(
    content: bytes,
    classes: ClassNames,
    samples: Mapping[str, int],
    annotator: str,
    may_skip: bool = True,
) -> tuple[list[LabelLine], list[LineProblem]]:
    """Read a file of labels; lines without a label are left out, as not answered yet.

    Parameters
    ----------
    content : bytes
        The file.
    classes : ClassNames
        The classes.
    samples : Mapping[str, int]
        Sample id by file, under every name that is accepted for it.
    annotator : str
        Who has written it, for lines that do not say so in a column `annotator`.
    may_skip : bool
        Whether `skip` is allowed for a label.

    Returns
    -------
    list[LabelLine]
        The lines that can be used, in order; repeated ones once.
    list[LineProblem]
        The others. Who wants a file whole or not at all uses the first only if this is empty.
        `suggested` says which names may have been meant.
    """
    try:
        texts = _lines(content.decode(_ENCODING))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [], [LineProblem(line, "", 'not UTF-8; in a spreadsheet, save as "CSV UTF-8"')]
    first: dict[tuple[int, str], LabelLine] = {}
    problems: list[LineProblem] = []
    names = SampleNames(samples)
    for number, row in _rows(texts):
        found: str | _Unknown | None
        if isinstance(row, str):
            found = row
        else:
            meant = _meaning(row, classes, names, may_skip)
            if isinstance(meant, tuple):
                by = row.get("annotator") or annotator
                found = _repeated(first, LabelLine(number, *meant, by, *_remarks(row)))
            else:
                found = meant
        if found is None:
            continue
        text = texts[number - 1].strip() if texts else ""
        problem = LineProblem(number, text, "")
        problems.append(
            replace(problem, reason=f"no sample {found.name!r} here", unknown_file=found.name)
            if isinstance(found, _Unknown)
            else replace(problem, reason=found)
        )
    return list(first.values()), problems


def suggested(
    problems: Sequence[LineProblem], samples: Mapping[str, int], most: int = MOST_SUGGESTED
) -> list[LineProblem]:
    """Return problems, the first few about an unknown file with the file that may be meant."""
    names, told = SampleNames(samples), []
    for problem in problems:
        near = ""
        if problem.unknown_file and most > 0:
            near, most = names.near(problem.unknown_file), most - 1
        told.append(replace(problem, reason=problem.reason + near))
    return told


def read_label_file(
    path: Path,
    classes: ClassNames,
    samples: Mapping[str, int],
    annotator: str,
    may_skip: bool = True,
) -> list[LabelLine]:
    """Read a file of labels, whole or not at all.

    Raises
    ------
    LabelFileError
        The file cannot be read, or a line cannot be used; the first few are told.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error
    lines, problems = read_label_lines(content, classes, samples, annotator, may_skip)
    if problems:
        raise LabelFileError(refusal(path, suggested(problems, samples)))
    return lines


def label_texts(content: bytes) -> set[str]:
    """Return all that a file says in its column `label`; lines that are wrong are passed over."""
    texts = _lines(content.decode(_ENCODING, errors="replace"))
    found = {row.get("label", "") for _, row in _rows(texts) if isinstance(row, dict)}
    return found - {""}


def refusal(path: Path, problems: Sequence[LineProblem]) -> str:
    """Return the message that refuses a file, with the first few problems."""
    shown = [f"  - line {p.line}: {p.reason}" for p in problems[:10]]
    more = [f"  - and {len(problems) - 10} more"] if len(problems) > 10 else []
    return "\n".join([f"{path}: {len(problems)} lines cannot be used:", *shown, *more])


def saved(path: Path) -> str:
    """Return when a file was saved, as `utc_text` writes it: what it says was said by then."""
    modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return utc_text(min(modified, datetime.now(UTC)))


def read_csv(path: Path) -> list[list[str]]:
    """Return all rows of a file that `write_csv` wrote, its header first."""
    with path.open(encoding=_ENCODING, newline="") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    readers = [plain_file if column in _FILES else plain_text for column in header]
    return [
        header,
        *([read(cell) for read, cell in zip(readers, row, strict=False)] for row in rows),
    ]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file that spreadsheets open, in one step: a reader sees it whole or not.

    No cell is taken for a formula; columns `file` and `original` hold names of files.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    makers = [file_cell if column in _FILES else text_cell for column in header]
    writer.writerows(
        [
            make(cell) if isinstance(cell, str) else cell
            for make, cell in zip(makers, row, strict=True)
        ]
        for row in rows
    )
    write_bytes(path, text.getvalue().encode(_ENCODING))


def _lines(text: str) -> list[str]:
    """Return a text's lines with their ends, where `str.splitlines` sees more ends than there are.

    A vertical tab, a form feed, a separator of Unicode may be part of a name or a comment.
    """
    return list(io.StringIO(text, newline=""))


def _rows(texts: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield line numbers, and columns by name or what is wrong with the line."""
    head = texts[0] if texts else ""
    delimiter = max(_DELIMITERS, key=head.count)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().casefold() for name in next(reader, [])]
        for column in ("file", "label"):
            if columns.count(column) != 1:
                yield 1, f"the first line must name the columns, among them `{column}` once"
                return
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, _columns_of(values, columns)
    except csv.Error as error:
        yield max(1, reader.line_num), f"{error}; what follows is not read"


def _columns_of(values: Sequence[str], columns: Sequence[str]) -> dict[str, str] | str:
    """Return a line's columns by name, or what is wrong with it.

    A line may end early, since spreadsheets leave out what is empty: but not before its label
    where it says anything besides the file, nor before its file.
    """
    row = dict(zip(columns, values, strict=False))
    cut = [column for column in ("file", "label") if column not in row]
    too_long = any(value.strip() for value in values[len(columns) :])
    too_short = cut and any(row[column].strip() for column in row.keys() - {"file"})
    if too_long or too_short:
        missing = f", and has none for `{cut[0]}`" if too_short else ""
        return f"has {len(values)} values, the first line names {len(columns)}{missing}"
    # The file's name is what it is, spaces and all.
    return {column: row[column] if column == "file" else row[column].strip() for column in row}


@dataclass(frozen=True)
class _Unknown:
    """A file that is not there."""

    name: str


def _meaning(
    row: Mapping[str, str], classes: ClassNames, names: SampleNames, may_skip: bool
) -> tuple[int, int | None] | _Unknown | str | None:
    """Return sample and label of a line, what is wrong with it, or None where it has no label."""
    file, text = row["file"], row.get("label", "")
    if not text:
        return None
    if not file.strip():
        return f"has the label {text!r}, but names no file"
    samples = names.find(file)
    if len(samples) > 1:
        return f"{file!r} may be any of {len(samples)} samples, whose names look the same"
    if not samples:
        return _Unknown(file.strip())
    (sample,) = samples
    label = classes.index(text)
    if label is not None:
        return sample, label
    if may_skip and text.casefold() == SKIP:
        return sample, None
    return classes.refusal(text, (SKIP,) if may_skip else ())


def _remarks(row: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether a line says that its label is not sure, and its comment."""
    unsure = row.get("unsure", "").casefold() not in _SURE
    return unsure, plain_text(row.get("comment", ""))


def _repeated(first: dict[tuple[int, str], LabelLine], line: LabelLine) -> str | None:
    """Keep a line if it is the first about an image; say so if it contradicts that one."""
    known = first.setdefault((line.sample, line.annotator), line)
    if known.label == line.label:
        return None
    return f"contradicts line {known.number}, which is about the same sample"
