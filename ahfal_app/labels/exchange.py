"""Whole label stores: exported, imported, verified, told from the start.

What `ahfal labels` does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ahfal_app.errors import LabelFileError, StoreError
from ahfal_app.labels.names import SKIP, ClassNames
from ahfal_app.labels.records import Event
from ahfal_app.labels.spreadsheet import (
    LabelLine,
    LineProblem,
    read_label_file,
    refusal,
    saved,
    write_csv,
)
from ahfal_app.labels.store import (
    Conflict,
    Entry,
    LabelReceipt,
    LabelStore,
    find_store,
)
from ahfal_app.ledger import Ledger
from ahfal_app.parameters import suggestion

if TYPE_CHECKING:  # It brings scikit-learn, which takes a moment.
    from ahfal_app.labels.agreement import Agreement

_EXPORTED = (
    "file",
    "label",
    "annotator",
    "answered",
    "unsure",
    "comment",
    "state",
    "request-cycle",
    "from-cycle",
    "request",
    "guess",
    "score",
    "sample",
)


_HISTORY = (
    "file",
    "what",
    "label",
    "annotator",
    "said",
    "received",
    "stands",
    "unsure",
    "comment",
    "sample",
)


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Attributes
    ----------
    labelled, skipped, corrected : int
        Number of samples.
    conflicts : int
        Number of contradictions that were not there before.
    settled : int
        Number of contradictions that are no more.
    """

    labelled: int
    skipped: int
    corrected: int
    conflicts: int
    settled: int = 0


@dataclass(frozen=True)
class History:
    """All that was said of samples, in order, with the names of classes and samples."""

    events: tuple[Event, ...]
    class_names: tuple[str, ...]
    files: dict[int, str]

    def label_text(self, event: Event) -> str:
        """Return what was said of a sample as label files have it."""
        return SKIP if event.label is None else _class_text(event.label, self.class_names)


@dataclass(frozen=True)
class Verified:
    """What a sound store holds.

    Attributes
    ----------
    path : Path
        The store.
    ledger : Ledger
        Its ledger.
    states : dict[str, int]
        Number of samples by state.
    conflicts : tuple[Conflict, ...]
        Answers that contradict the labels that stand.
    class_names : tuple[str, ...]
        Names of the classes, by label.
    files : dict[int, str]
        Name of each sample.
    """

    path: Path
    ledger: Ledger
    states: dict[str, int]
    conflicts: tuple[Conflict, ...]
    class_names: tuple[str, ...]
    files: dict[int, str]


def export_labels(store: Path, target: Path) -> int:
    """Write all that a store holds into a CSV file, which can be a site's `labels.csv`.

    Parameters
    ----------
    store : Path
        A label store, or a folder with exactly one below it.
    target : Path
        The file to write. It must not be there, since it might hold labels itself.

    Returns
    -------
    int
        Number of samples with a label.

    Raises
    ------
    StoreError
        The store cannot be read.
    ConfigError
        A class is called what the file has in place of one.
    LabelFileError
        The file is there already, or cannot be written.
    """
    if target.exists():
        raise LabelFileError(f"{target}: is there already; allowed is a new file")
    with _opened(store) as labels:
        entries, names, files = labels.entries(), labels.class_names(), _names(labels)
        ClassNames(names)  # Refuses those that the file could not be read by.
        remarks = _remarks(labels.history())
        asked = {entry.request_id for entry in entries if entry.request_id is not None}
        requests = {identity: labels.request(identity) for identity in asked}
    rows = [
        (
            files[entry.sample],
            _label_text(entry, names),
            entry.annotator,
            entry.answered,
            *remarks.get(entry.sample, ("", "")),
            entry.state,
            request.cycle if (request := requests.get(entry.request_id or "")) else None,
            entry.from_cycle,
            entry.request_id,
            names[entry.guess] if entry.guess is not None else None,
            entry.score,
            entry.sample,
        )
        for entry in entries
    ]
    try:
        write_csv(target, _EXPORTED, rows)
    except OSError as error:
        raise LabelFileError(f"{target}: cannot be written: {error}") from error
    return sum(entry.label is not None for entry in entries)


def import_labels(store: Path, source: Path, annotator: str, correct: bool = False) -> Imported:
    """Take in a CSV file of answers to what was asked for, whole or not at all.

    Parameters
    ----------
    store : Path
        A label store, or a folder with exactly one below it.
    source : Path
        The file, with the columns `file` and `label`.
    annotator : str
        Who has labelled, where the file has no such column.
    correct : bool
        Let the file's labels stand where they differ from those that do, from the next cycle
        on; otherwise they are kept as contradictions.

    Raises
    ------
    StoreError
        The store cannot be used.
    LabelFileError
        A line of the file cannot be used.
    """
    with _opened(store) as labels:
        samples = {name: sample for sample, name in _names(labels).items()}
        lines = read_label_file(source, ClassNames(labels.class_names()), samples, annotator)
        entries = {entry.sample: entry for entry in labels.entries()}
        _check_asked_for(source, lines, entries, correct)
        if correct:
            _check_agreement(source, lines)
        given = saved(source)
        receipts = [
            LabelReceipt(
                request,
                line.sample,
                line.label,
                line.annotator,
                given,
                unsure=line.unsure,
                comment=line.comment,
            )
            for line in lines
            if (request := entries[line.sample].request_id) is not None
            # What stands is corrected, and not answered once more.
            and not (correct and entries[line.sample].label is not None)
        ]
        conflicts, before = set(labels.conflicts()), _skipped(labels)
        with labels.one_change():
            labelled = labels.commit(receipts)
            skipped = len(_skipped(labels) - before)
            corrected = _correct(labels, lines) if correct else 0
        after = set(labels.conflicts())
        new, settled = len(after - conflicts), len(conflicts - after)
        return Imported(labelled, skipped, corrected, new, settled)


def label_history(store: Path, file: str | None = None) -> History:
    """Return who said what of which sample, and when, with everything that was corrected.

    Parameters
    ----------
    store : Path
        A label store, or a folder with exactly one below it.
    file : str | None
        Tell of the sample of this name alone.

    Raises
    ------
    StoreError
        The store cannot be read.
    LabelFileError
        It knows no sample of this name.
    """
    with _opened(store) as labels:
        names = _names(labels)
        wanted = next((sample for sample, name in names.items() if name == file), None)
        if file is not None and wanted is None:
            raise LabelFileError(f"{file!r}: no such sample here{suggestion(file, names.values())}")
        return History(labels.history(wanted), labels.class_names(), names)


def label_agreement(store: Path) -> Agreement:
    """Return how far those agree who have read the same images.

    Parameters
    ----------
    store : Path
        A label store, or a folder with exactly one below it.

    Raises
    ------
    StoreError
        The store cannot be read.
    """
    from ahfal_app.labels.agreement import agreement

    with _opened(store) as labels:
        return agreement(labels.readings())


def write_history(history: History, target: Path) -> None:
    """Write a history into a CSV file.

    Raises
    ------
    LabelFileError
        The file is there already, or cannot be written.
    """
    if target.exists():
        raise LabelFileError(f"{target}: is there already; allowed is a new file")
    rows = [
        (
            history.files[event.sample],
            event.what,
            history.label_text(event),
            event.annotator,
            event.at,
            event.received,
            "yes" if event.stands else "",
            "yes" if event.unsure else "",
            event.comment,
            event.sample,
        )
        for event in history.events
    ]
    try:
        write_csv(target, _HISTORY, rows)
    except OSError as error:
        raise LabelFileError(f"{target}: cannot be written: {error}") from error


def verify_store(store: Path) -> Verified:
    """Check a store, and tell what it holds.

    Raises
    ------
    StoreError
        It is damaged, or its ledger and its labels disagree.
    """
    with _opened(store) as labels:
        labels.verify()
        states: dict[str, int] = {}
        for entry in labels.entries():
            states[entry.state] = states.get(entry.state, 0) + 1
        return Verified(
            find_store(store),
            labels.ledger(),
            states,
            labels.conflicts(),
            labels.class_names(),
            _names(labels),
        )


@contextmanager
def _opened(store: Path) -> Iterator[LabelStore]:
    path = find_store(store)
    try:
        with closing(LabelStore.open_existing(path)) as labels:
            yield labels
    except sqlite3.DatabaseError as error:
        raise StoreError(f"label store {path}: {error}") from error


def _names(labels: LabelStore) -> dict[int, str]:
    """Return what each sample is called: its file, or its id where it has none."""
    return {entry.sample: str(entry.sample) for entry in labels.entries()} | labels.files()


def _remarks(events: Iterable[Event]) -> dict[int, tuple[str, str]]:
    """Return, by sample, whether those were sure who say what stands, and their comments."""
    found: dict[int, tuple[str, str]] = {}
    for event in events:
        if event.stands:
            unsure, comment = found.get(event.sample, ("", ""))
            comments = filter(None, (comment, event.comment))
            found[event.sample] = ("yes" if event.unsure else unsure, "; ".join(comments))
    return found


def _label_text(entry: Entry, names: Sequence[str]) -> str:
    if entry.label is None:
        return SKIP if entry.state == "skipped" else ""
    return _class_text(entry.label, names)


def _class_text(label: int, names: Sequence[str]) -> str:
    return names[label] if names else str(label)


def _skipped(labels: LabelStore) -> set[int]:
    return {entry.sample for entry in labels.entries() if entry.state == "skipped"}


def _check_asked_for(
    source: Path, lines: Sequence[LabelLine], entries: dict[int, Entry], correct: bool
) -> None:
    """Refuse a file with labels that nobody has asked for."""
    problems = [
        LineProblem(line.number, "", reason)
        for line in lines
        if (reason := _reason_against(line, entries.get(line.sample), correct))
    ]
    if problems:
        raise LabelFileError(refusal(source, problems))


def _check_agreement(source: Path, lines: Sequence[LabelLine]) -> None:
    """Refuse several labels for one image: as corrections, only one of them can stand."""
    first: dict[int, LabelLine] = {}
    problems = []
    for line in lines:
        if line.label is None:
            continue
        known = first.setdefault(line.sample, line)
        if known.label != line.label:
            reason = f"contradicts line {known.number}, which is about the same sample"
            problems.append(LineProblem(line.number, "", reason))
    if problems:
        raise LabelFileError(refusal(source, problems))


def _correct(labels: LabelStore, lines: Sequence[LabelLine]) -> int:
    """Let the lines' labels stand, each in the name of who says so."""
    standing = {entry.sample for entry in labels.entries() if entry.label is not None}
    wanted: dict[tuple[str, str], dict[int, int]] = {}
    for line in lines:
        if line.label is not None and line.sample in standing:
            wanted.setdefault((line.annotator, line.comment), {})[line.sample] = line.label
    return sum(
        labels.correct(of_one, annotator, comment=comment)
        for (annotator, comment), of_one in wanted.items()
    )


def _reason_against(line: LabelLine, entry: Entry | None, correct: bool) -> str:
    if entry is None:
        return "this sample was not asked for"
    if entry.request_id is None and line.label != entry.label and not correct:
        return "this sample was labelled before the run; allowed is the same, or --correct"
    return ""
