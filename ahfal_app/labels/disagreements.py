"""What readers disagree on, as a spreadsheet for whoever settles it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ahfal_app.labels.names import SKIP
from ahfal_app.labels.readings import Readers, Reading, disagree
from ahfal_app.labels.records import LabelReceipt
from ahfal_app.labels.spreadsheet import read_csv, write_csv

_COLUMNS = ("file", "label", "comment", "readings")


def list_disagreements(
    path: Path,
    receipts: Sequence[LabelReceipt],
    readers: Readers,
    names: Mapping[int, str],
    class_names: Sequence[str],
) -> None:
    """Write a spreadsheet of what readers disagree on, where it has changed; none if they do not.

    What people have written into it stays.

    Parameters
    ----------
    path : Path
        The spreadsheet.
    receipts : Sequence[LabelReceipt]
        All answers to a request.
    readers : Readers
        How many people read each sample, and what decides.
    names : Mapping[int, str]
        The file of each sample.
    class_names : Sequence[str]
        Names of the classes, by class index.

    Raises
    ------
    OSError
        It cannot be written.
    """
    said: dict[int, dict[tuple[str, bool], LabelReceipt]] = {}
    for receipt in sorted(receipts, key=lambda r: r.given or ""):
        said.setdefault(receipt.sample, {})[receipt.annotator, receipt.decides] = receipt
    rows = [
        [
            names[sample],
            "",
            "",
            "; ".join(_text(receipt, class_names) for receipt in of_one.values()),
        ]
        for sample, of_one in said.items()
        if readers.count > 1 and _disagree(list(of_one.values()), readers)
    ]
    before = _rows(path)
    if any(row[1:3] != ["", ""] for row in before):
        return
    if not rows:
        path.unlink(missing_ok=True)
    elif before != rows:
        write_csv(path, _COLUMNS, rows)


def _disagree(receipts: Sequence[LabelReceipt], readers: Readers) -> bool:
    readings = [Reading(r.annotator, r.label, r.decides) for r in receipts]
    return disagree(readings, readers.count, readers.rule)


def _text(receipt: LabelReceipt, class_names: Sequence[str]) -> str:
    label = SKIP if receipt.label is None else class_names[receipt.label]
    remarks = ", ".join(filter(None, ("unsure" if receipt.unsure else "", receipt.comment)))
    return f"{receipt.annotator}: {label}" + (f" ({remarks})" if remarks else "")


def _rows(path: Path) -> list[list[str]]:
    """Return what stands in a spreadsheet; of one that was saved otherwise, lines as they are."""
    try:
        return read_csv(path)[1:]
    except FileNotFoundError:
        return []
    except (ValueError, csv.Error):
        return [["", "not ours", ""]]
