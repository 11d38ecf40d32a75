"""Cells that no spreadsheet takes for a formula: `=HYPERLINK(…)` may be the name of a file.

In texts, an apostrophe goes before whatever could start a formula: where a cell begins, and after
a comma, semicolon or tab, since a spreadsheet may take that for the end of a cell. A file's name
gets `./` where its cell begins, which makes it no other file's name. Different texts stay
different, and numbers stay numbers.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

# What starts a formula, also behind apostrophes: else these would be taken for our own.
_STARTS = r"'*[=+\-@\t\r]"
_AT_START = re.compile(rf"\A(?={_STARTS})")
_WITHIN = re.compile(rf"(?<=[,;\t\r\n])(?={_STARTS})")
_OURS_AT_START = re.compile(rf"\A'(?={_STARTS})")
_OURS_WITHIN = re.compile(rf"(?<=[,;\t\r\n])'(?={_STARTS})")

_HERE = "./"


def text_cell(text: str) -> str:
    """Return a text as a cell."""
    if _NUMBER.fullmatch(text):
        return text
    return _WITHIN.sub("'", _AT_START.sub("'", text))


def plain_text(cell: str) -> str:
    """Return the text that `text_cell` has made a cell of."""
    return _OURS_WITHIN.sub("", _OURS_AT_START.sub("", cell))


def file_cell(name: str) -> str:
    """Return a file's name as a cell; what begins with `./` is one already."""
    if name.startswith(_HERE):
        return name
    within = _WITHIN.sub("'", name)
    return _HERE + within if within != name or _AT_START.search(name) else name


def plain_file(cell: str) -> str:
    """Return the name that `file_cell` has made a cell of."""
    if not cell.startswith(_HERE):
        return cell
    return _OURS_WITHIN.sub("", cell.removeprefix(_HERE))
