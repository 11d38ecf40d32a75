"""Labels in CSV files as people and spreadsheets write them.

One dialect for all such files: UTF-8 with or without a byte-order mark; a first line with the
names of the columns, among them `file` and `label`; separated by commas, semicolons or tabs,
whichever the first line has; any line ends; quotes as spreadsheets use them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ahfal_app.errors import LabelFileError
from ahfal_app.parameters import suggestion
from ahfal_app.storage.files import write_bytes

#: What is written in place of a class where nobody can tell.
SKIP = "skip"

_DELIMITERS = ",;\t"
_ENCODING = "utf-8-sig"
_NO_IMAGE = "no image"


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
    """

    number: int
    sample: int
    label: int | None
    annotator: str


@dataclass(frozen=True)
class LineProblem:
    """A line that cannot be used: its number from 1, its text, and why.

    `unknown_file` tells whether it is just about an image that is not there.
    """

    line: int
    text: str
    reason: str
    unknown_file: bool = False


class ClassNames:
    """Class indices by name as people type it: in any case, with spaces around it.

    Parameters
    ----------
    names : Sequence[str]
        The classes, by index.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = {name.strip(): index for index, name in enumerate(names)}
        folded = [name.strip().casefold() for name in names]
        self._folded = {f: i for i, f in enumerate(folded) if folded.count(f) == 1}
        self._names = tuple(names)

    def index(self, text: str) -> int | None:
        """Return the class of this name, or None."""
        return self._exact.get(text, self._folded.get(text.casefold()))

    def refusal(self, text: str, also: Iterable[str] = ()) -> str:
        """Say that there is no such class, and which may have been meant."""
        near = suggestion(text, (*self._names, *also))
        names = ", ".join(self._names[:20]) + (", …" if len(self._names) > 20 else "")
        return f"no class {text!r}{near}; allowed are {', '.join((names, *also))}"


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
    """
    try:
        texts = content.decode(_ENCODING).splitlines(keepends=True)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [], [LineProblem(line, "", 'not UTF-8; in a spreadsheet, save as "CSV UTF-8"')]
    first: dict[tuple[int, str], LabelLine] = {}
    problems: list[LineProblem] = []
    for number, row in _rows(texts):
        found = row if isinstance(row, str) else _meaning(row, classes, samples, may_skip)
        if isinstance(found, tuple):
            by = row.get("annotator", "") if isinstance(row, dict) else ""
            found = _repeated(first, LabelLine(number, *found, by or annotator))
        if found is not None:
            text = texts[number - 1].strip() if texts else ""
            problems.append(LineProblem(number, text, found, found.startswith(_NO_IMAGE)))
    return list(first.values()), problems


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
        raise LabelFileError(refusal(path, problems))
    return lines


def label_texts(content: bytes) -> set[str]:
    """Return all that a file says in its column `label`; lines that are wrong are passed over."""
    texts = content.decode(_ENCODING, errors="replace").splitlines(keepends=True)
    found = {row.get("label", "") for _, row in _rows(texts) if isinstance(row, dict)}
    return found - {""}


def refusal(path: Path, problems: Sequence[LineProblem]) -> str:
    """Return the message that refuses a file, with the first few problems."""
    shown = [f"  - line {p.line}: {p.reason}" for p in problems[:10]]
    more = [f"  - and {len(problems) - 10} more"] if len(problems) > 10 else []
    return "\n".join([f"{path}: {len(problems)} lines cannot be used:", *shown, *more])


def read_csv(path: Path) -> list[list[str]]:
    """Return all rows of a file that `write_csv` wrote, its header first."""
    with path.open(encoding=_ENCODING, newline="") as file:
        return list(csv.reader(file))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file that spreadsheets open, in one step: a reader sees it whole or not."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(_ENCODING))


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
            values = [value.strip() for value in values]
            if any(values[len(columns) :]):
                yield (
                    reader.line_num,
                    f"has {len(values)} values, the first line names {len(columns)}",
                )
            elif any(values):
                yield reader.line_num, dict(zip(columns, values, strict=False))
    except csv.Error as error:
        yield max(1, reader.line_num), f"{error}; what follows is not read"


def _meaning(
    row: Mapping[str, str], classes: ClassNames, samples: Mapping[str, int], may_skip: bool
) -> tuple[int, int | None] | str | None:
    """Return sample and label of a line, what is wrong with it, or None where it has no label."""
    file, text = row["file"].replace("\\", "/").removeprefix("./"), row.get("label", "")
    if not text:
        return None
    sample = samples.get(file)
    if sample is None:
        return f"{_NO_IMAGE} {file!r} here{suggestion(file, samples)}"
    label = classes.index(text)
    if label is not None:
        return sample, label
    if may_skip and text.casefold() == SKIP:
        return sample, None
    return classes.refusal(text, (SKIP,) if may_skip else ())


def _repeated(first: dict[tuple[int, str], LabelLine], line: LabelLine) -> str | None:
    """Keep a line if it is the first about an image; say so if it contradicts that one."""
    known = first.setdefault((line.sample, line.annotator), line)
    if known.label == line.label:
        return None
    return f"contradicts line {known.number}, which is about the same image"
