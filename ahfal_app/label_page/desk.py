"""What lies on a site's desk: requests as folders with images, and the answers so far.

    <folder>/requests/<request id>/request.json
    <folder>/requests/<request id>/images/0001.png …
    <folder>/answers.sqlite

A request's folder is complete or not there. An answer is durable before it is acknowledged.
Until the client has collected it, whoever gave it may take it back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ahfal_app.errors import OracleError
from ahfal_app.labels.store import LabelReceipt
from ahfal_app.storage.database import connect, transaction
from ahfal_app.storage.files import new_folder

#: The folder of the requests, in that of the desk.
REQUESTS = "requests"
_INDEX = "request.json"
_IMAGES = "images"
_ANSWERS = "answers.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    sample INTEGER NOT NULL,
    label INTEGER,
    annotator TEXT NOT NULL,
    answered TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    collected INTEGER NOT NULL DEFAULT 0 CHECK (collected IN (0, 1)),
    UNIQUE (request_id, sample, annotator)
) STRICT
"""


class Item(BaseModel):
    """One image of a request.

    Attributes
    ----------
    sample : int
        Sample id.
    file : str
        Name of the file in the folder of images.
    media_type : str
        Its media type, such as `image/png`.
    original : str
        What the site calls it.
    guess : int | None
        Class index that the client's model takes it for.
    score : float | None
        Acquisition score.
    """

    model_config = ConfigDict(frozen=True)

    sample: int
    file: str
    media_type: str
    original: str
    guess: int | None = None
    score: float | None = None


class Sheet(BaseModel):
    """A request as people see it: classes by index, and images in the order of the request."""

    model_config = ConfigDict(frozen=True)

    request: str
    cycle: int
    strategy: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Answer:
    """An answer that is kept: a class index, or None where the image was skipped."""

    request: str
    sample: int
    label: int | None
    annotator: str


class AlreadyAnswered(OracleError):
    """The same person has said something else of this image, and not taken it back."""


class Desk:
    """The requests and answers of one site; any number of processes may have it open.

    Parameters
    ----------
    folder : Path
        Where they are; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    # --- requests -----------------------------------------------------------------------

    def add(self, sheet: Sheet, images: Iterable[tuple[str, bytes]]) -> None:
        """Write a request's folder, with its images by file name; one that is there stays.

        Raises
        ------
        OracleError
            It cannot be written.
        """
        target = self._request_folder(sheet.request)
        try:
            with new_folder(target) as part:
                (part / _IMAGES).mkdir()
                for name, content in images:
                    (part / _IMAGES / name).write_bytes(content)
                (part / _INDEX).write_bytes(sheet.model_dump_json(indent=1).encode())
        except OSError as error:
            if not self.has(sheet.request):  # Else another process was faster.
                raise OracleError(f"{target}: cannot be written: {error}") from error

    def has(self, request: str) -> bool:
        """Return whether a request lies here."""
        return (self._request_folder(request) / _INDEX).is_file()

    def sheet(self, request: str) -> Sheet:
        """Return a request.

        Raises
        ------
        OracleError
            There is none of this id, or it cannot be read.
        """
        path = self._request_folder(request) / _INDEX
        try:
            return Sheet.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise OracleError(f"{path}: cannot be read: {error}") from error

    def sheets(self) -> tuple[Sheet, ...]:
        """Return all requests, by cycle."""
        folder = self._folder / REQUESTS
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        # What begins with a dot is being written.
        names = [name for name in found if not name.startswith(".") and self.has(name)]
        return tuple(sorted(map(self.sheet, names), key=lambda s: (s.cycle, s.request)))

    def image(self, sheet: Sheet, item: Item) -> bytes:
        """Return the image of an item of a request.

        Raises
        ------
        OracleError
            It cannot be read.
        """
        path = self._request_folder(sheet.request) / _IMAGES / item.file
        try:
            return path.read_bytes()
        except OSError as error:
            raise OracleError(f"{path}: cannot be read: {error}") from error

    # --- answers ------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Keep an answer; it is durable when this returns. A repeated one changes nothing.

        Raises
        ------
        AlreadyAnswered
            The same annotator has said something else of it.
        OracleError
            The request has no such image or class.
        """
        sheet = self.sheet(answer.request)
        if all(item.sample != answer.sample for item in sheet.items):
            raise OracleError(f"sample {answer.sample}: request {sheet.request} does not have it")
        if answer.label is not None and not 0 <= answer.label < len(sheet.classes):
            raise OracleError(
                f"label={answer.label}: allowed is 0 to {len(sheet.classes) - 1}, or none to skip"
            )
        with self._answers() as connection, transaction(connection):
            connection.execute(
                "INSERT OR IGNORE INTO answers (request_id, sample, label, annotator) "
                "VALUES (?, ?, ?, ?)",
                (answer.request, answer.sample, answer.label, answer.annotator),
            )
            (kept,) = connection.execute(
                "SELECT label FROM answers WHERE (request_id, sample, annotator) = (?, ?, ?)",
                (answer.request, answer.sample, answer.annotator),
            ).fetchone()
        if kept != answer.label:
            raise AlreadyAnswered(f"sample {answer.sample}: you have answered it; undo that first")

    def undoable(self, annotator: str) -> Answer | None:
        """Return an annotator's newest answer if it can still be taken back, else None."""
        with self._answers() as connection:
            return _undoable(connection, annotator)

    def undo(self, annotator: str) -> Answer | None:
        """Take back an annotator's newest answer and return it; None where it is collected."""
        with self._answers() as connection, transaction(connection):
            newest = _undoable(connection, annotator)
            if newest is not None:
                connection.execute(
                    "DELETE FROM answers WHERE (request_id, sample, annotator) = (?, ?, ?)",
                    (newest.request, newest.sample, annotator),
                )
        return newest

    def answered(self) -> set[tuple[str, int]]:
        """Return what somebody has answered: request ids and samples."""
        with self._answers() as connection:
            return set(connection.execute("SELECT request_id, sample FROM answers").fetchall())

    def waiting(self) -> dict[str, int]:
        """Return how many images of each request have answers that nobody has collected."""
        if not (self._folder / _ANSWERS).is_file():
            return {}
        with self._answers() as connection:
            return dict(
                connection.execute(
                    "SELECT request_id, count(DISTINCT sample) FROM answers WHERE collected = 0 "
                    "GROUP BY request_id"
                ).fetchall()
            )

    def collect(self, request: str) -> list[LabelReceipt]:
        """Return all answers to a request, oldest first; from now on none is taken back."""
        if not self.has(request):
            return []
        with self._answers() as connection, transaction(connection):
            connection.execute("UPDATE answers SET collected = 1 WHERE request_id = ?", (request,))
            rows = connection.execute(
                "SELECT sample, label, annotator FROM answers WHERE request_id = ? ORDER BY number",
                (request,),
            ).fetchall()
        return [LabelReceipt(request, *row) for row in rows]

    # --- inside -------------------------------------------------------------------------

    def _request_folder(self, request: str) -> Path:
        return self._folder / REQUESTS / request

    @contextmanager
    def _answers(self) -> Iterator[sqlite3.Connection]:
        path = self._folder / _ANSWERS
        try:
            connection = connect(path)
            try:
                connection.execute(_SCHEMA)
                yield connection
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            raise OracleError(f"{path}: {error}") from error


def _undoable(connection: sqlite3.Connection, annotator: str) -> Answer | None:
    row = connection.execute(
        "SELECT request_id, sample, label, annotator, collected FROM answers "
        "WHERE annotator = ? ORDER BY number DESC LIMIT 1",
        (annotator,),
    ).fetchone()
    return None if row is None or row[-1] else Answer(*row[:-1])
