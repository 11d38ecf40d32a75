"""The database of a desk: what people have answered, and which images they hold.

Nothing that anybody has answered is deleted: what is taken back is marked so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ahfal_app.errors import OracleError
from ahfal_app.labels.readings import Reading
from ahfal_app.storage.database import connect, transaction

#: Kinds of answers: a reading, the settling of a disagreement, a correction of what stands.
ANSWER, DECISION, CORRECTION = "answer", "decision", "correction"

_VERSION = 1

_ANSWERS = """
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    sample INTEGER NOT NULL,
    label INTEGER,
    annotator TEXT NOT NULL,
    answered TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    collected INTEGER NOT NULL DEFAULT 0 CHECK (collected IN (0, 1)),
    taken_back TEXT,
    changed INTEGER NOT NULL DEFAULT 0 CHECK (changed IN (0, 1)),
    kind TEXT NOT NULL DEFAULT 'answer' CHECK (kind IN ('answer', 'decision', 'correction')),
    unsure INTEGER NOT NULL DEFAULT 0 CHECK (unsure IN (0, 1)),
    comment TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX standing_answers ON answers (request_id, sample, annotator)
    WHERE taken_back IS NULL AND kind != 'correction';
"""

# A seat is one page in one browser, of one person, whether it holds images or waits for some. It is
# there as long as something is heard of it: `renewed` is in seconds since 1970.
_SEATS = """
CREATE TABLE seats (
    number INTEGER PRIMARY KEY,
    annotator TEXT NOT NULL,
    seat TEXT NOT NULL,
    renewed REAL NOT NULL,
    UNIQUE (annotator, seat)
) STRICT;
CREATE TABLE leases (
    request_id TEXT NOT NULL,
    sample INTEGER NOT NULL,
    holder INTEGER NOT NULL REFERENCES seats ON DELETE CASCADE,
    PRIMARY KEY (request_id, sample, holder)
) STRICT;
"""

_FROM_0 = (
    "ALTER TABLE answers RENAME TO answers_0",
    _ANSWERS,
    "INSERT INTO answers (number, request_id, sample, label, annotator, answered, collected) "
    "SELECT number, request_id, sample, label, annotator, answered, collected FROM answers_0",
    "DROP TABLE answers_0",
    _SEATS,
)

#: A request's id and one of its samples.
Place = tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """An answer that is kept: a class index, or None where the image was skipped."""

    request: str
    sample: int
    label: int | None
    annotator: str
    unsure: bool = field(default=False, compare=False)
    comment: str = field(default="", compare=False)
    kind: str = field(default=ANSWER, compare=False)

    @property
    def place(self) -> Place:
        """What it is about."""
        return self.request, self.sample

    @property
    def reading(self) -> Reading:
        """What it says, to those who decide."""
        return Reading(self.annotator, self.label, self.kind == DECISION)


@dataclass(frozen=True)
class Kept:
    """An answer as it is kept.

    Attributes
    ----------
    number : int
        Counts all answers.
    given : str
        When it was given, in UTC.
    collected : bool
        Whether the client has it.
    taken_back : str | None
        When it was taken back, in UTC.
    changed : bool
        Whether that was to put another answer in its place.
    answer : Answer
        What was answered.
    """

    number: int
    given: str
    collected: bool
    taken_back: str | None
    changed: bool
    answer: Answer


class Seat(NamedTuple):
    """A person at one page, and when it was last heard of."""

    annotator: str
    seat: str
    renewed: float


class Answers:
    """The open database, for as long as a block in `opened`.

    Parameters
    ----------
    connection : sqlite3.Connection
        An open database that has the tables.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def kept(self, request: str | None = None, annotator: str | None = None) -> list[Kept]:
        """Return all answers, the oldest first; of one request or person where one is named."""
        rows = self._connection.execute(
            "SELECT number, answered, collected, taken_back, changed, request_id, sample, label, "
            "annotator, unsure, comment, kind FROM answers "
            "WHERE (?1 IS NULL OR request_id = ?1) AND (?2 IS NULL OR annotator = ?2) "
            "ORDER BY number",
            (request, annotator),
        )
        return [
            Kept(number, given, bool(collected), taken_back, bool(changed), _answer(*said))
            for number, given, collected, taken_back, changed, *said in rows
        ]

    def standing(self, request: str | None = None) -> dict[Place, list[Kept]]:
        """Return what stands of each person's answers, by image, the oldest first."""
        found: dict[Place, list[Kept]] = {}
        for kept in self.kept(request):
            if kept.taken_back is None and kept.answer.kind != CORRECTION:
                found.setdefault(kept.answer.place, []).append(kept)
        return found

    def add(self, answer: Answer, collected: bool = False) -> None:
        """Keep an answer, unless that person's answer to this image is kept already."""
        self._connection.execute(
            "INSERT OR IGNORE INTO answers (request_id, sample, label, annotator, unsure, "
            "comment, kind, collected) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                answer.request,
                answer.sample,
                answer.label,
                answer.annotator,
                answer.unsure,
                answer.comment,
                answer.kind,
                collected,
            ),
        )
        self.give_up(answer.place, answer.annotator)

    def take_back(self, number: int, changed: bool = False) -> None:
        """Let an answer stand no more; `changed` says whether another takes its place."""
        self._connection.execute(
            "UPDATE answers SET taken_back = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), changed = ? "
            "WHERE number = ?",
            (changed, number),
        )

    def collect(self, numbers: Sequence[int]) -> None:
        """Note that the client has these answers."""
        self._connection.executemany(
            "UPDATE answers SET collected = 1 WHERE number = ? AND collected = 0",
            [(number,) for number in numbers],
        )

    def seats(self, since: float, until: float) -> list[Seat]:
        """Return who is at the desk; what was last heard of at no such time is forgotten."""
        self._connection.execute(
            "DELETE FROM seats WHERE renewed <= ? OR renewed > ?", (since, until)
        )
        return [
            Seat(*row)
            for row in self._connection.execute("SELECT annotator, seat, renewed FROM seats")
        ]

    def holders(self) -> dict[Place, list[Seat]]:
        """Return who holds what, by image."""
        found: dict[Place, list[Seat]] = {}
        for request, sample, *seat in self._connection.execute(
            "SELECT request_id, sample, annotator, seat, renewed "
            "FROM leases JOIN seats ON number = holder"
        ):
            found.setdefault((request, sample), []).append(Seat(*seat))
        return found

    def hold(self, me: Seat, places: Sequence[Place]) -> None:
        """Let a seat hold these images and no others; no other page of this person does."""
        for place in places:
            self.give_up(place, me.annotator)
        self.release(me.annotator, me.seat)
        holder = self._connection.execute(
            "INSERT INTO seats (annotator, seat, renewed) VALUES (?, ?, ?)", me
        ).lastrowid
        self._connection.executemany(
            "INSERT INTO leases VALUES (?, ?, ?)", [(*place, holder) for place in places]
        )

    def give_up(self, place: Place, annotator: str) -> None:
        """Let nobody of this name hold an image."""
        self._connection.execute(
            "DELETE FROM leases WHERE (request_id, sample) = (?, ?) "
            "AND holder IN (SELECT number FROM seats WHERE annotator = ?)",
            (*place, annotator),
        )

    def release(self, annotator: str, seat: str) -> None:
        """Let a seat hold nothing, and be there no more."""
        self._connection.execute(
            "DELETE FROM seats WHERE (annotator, seat) = (?, ?)", (annotator, seat)
        )


def _answer(
    request: str,
    sample: int,
    label: int | None,
    annotator: str,
    unsure: int,
    comment: str,
    kind: str,
) -> Answer:
    return Answer(request, sample, label, annotator, bool(unsure), comment, kind)


@contextmanager
def opened(path: Path) -> Iterator[Answers]:
    """Open a desk's database for one change: it is durable when the block ends, or not made.

    Raises
    ------
    OracleError
        The database cannot be used, or a newer version has written it.
    """
    try:
        connection = connect(path)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            _prepare(connection, path)
            with transaction(connection):
                yield Answers(connection)
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise OracleError(f"{path}: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of an older version up to date."""
    if _version(connection) == _VERSION:
        return
    with transaction(connection):
        version = _version(connection)
        if version == _VERSION:  # Another process was faster.
            return
        if version > _VERSION:
            raise OracleError(
                f"{path}: version {version}; this version of AHFAL reads 0 to {_VERSION}"
            )
        old = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone()
        # executescript() would commit the transaction, so one statement at a time.
        for statement in ";".join(_FROM_0 if old else (_ANSWERS, _SEATS)).split(";"):
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
