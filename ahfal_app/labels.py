"""The label store: which sample is unlabelled, reserved or labelled, and the ledger.

There is one implementation, on SQLite, with two backends: a database file (write-ahead
log, `synchronous=FULL`) that survives `kill -9`, and an in-memory database whose bytes
travel in Flower's `context.state`. Every change is one transaction that moves the labels
and the ledger together, so `allotted = spent + reserved + free` holds at every instant;
the database itself refuses anything else.

Conflicting labels are all kept in `receipts`; the first answer for a sample stands.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.database import connect, transaction
from ahfal_app.errors import BudgetExceeded, LabelConflict, PoolExhausted, StoreError

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    allotted INTEGER NOT NULL CHECK (allotted >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0),
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    free INTEGER NOT NULL CHECK (free >= 0),
    CHECK (allotted = spent + reserved + free)
) STRICT;
CREATE TABLE requests (
    request_id TEXT PRIMARY KEY,
    cycle INTEGER NOT NULL,
    strategy TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
CREATE TABLE samples (
    sample INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL REFERENCES requests,
    position INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'labelled')),
    label INTEGER,
    annotator TEXT,
    answered TEXT,
    CHECK ((state = 'labelled') = (label IS NOT NULL))
) STRICT;
CREATE INDEX samples_by_request ON samples (request_id);
CREATE TABLE receipts (
    sample INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    label INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    received TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (sample, annotator, label)
) STRICT;
INSERT INTO ledger VALUES (1, 0, 0, 0, 0);
"""


def request_id(run: str, client: int, cycle: int) -> str:
    """Return the id of what `client` asks for before `cycle`: equal on every retry."""
    return hashlib.sha256(f"{run}/{client}/{cycle}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class LabelRequest:
    """Samples to be labelled, in the order in which they were chosen.

    Attributes
    ----------
    request_id : str
        Equal whenever the request is repeated.
    cycle : int
        The cycle that is trained on the labels.
    strategy : str
        Name of the query strategy.
    samples : tuple[int, ...]
        Sample ids.
    scores : tuple[float, ...]
        Acquisition score of each sample, or empty where the strategy gives none.
    guesses : tuple[int, ...]
        Class index that the client's model takes each sample for, or empty.
    """

    request_id: str
    cycle: int
    strategy: str
    samples: tuple[int, ...]
    scores: tuple[float, ...] = ()
    guesses: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelReceipt:
    """One answer of an oracle: the class index of one sample, or None where it was skipped."""

    request_id: str
    sample: int
    label: int | None
    annotator: str


@dataclass(frozen=True)
class Ledger:
    """Labels in integers: `allotted = spent + reserved + free`."""

    allotted: int
    spent: int
    reserved: int
    free: int

    def __add__(self, other: Ledger) -> Ledger:
        """Return the ledger of two clients together."""
        return Ledger(
            self.allotted + other.allotted,
            self.spent + other.spent,
            self.reserved + other.reserved,
            self.free + other.free,
        )


@dataclass(frozen=True)
class Labelled:
    """The labelled set L_i, by increasing sample id."""

    samples_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Return the number of labelled samples of each class, int64, shape (C,)."""
        return np.bincount(self.labels_N, minlength=num_classes).astype(np.int64)


@dataclass(frozen=True)
class Conflict:
    """A later answer that contradicts the label that stands."""

    sample: int
    label: int
    annotator: str
    standing_label: int


class LabelStore:
    """The one owner of a client's labels and of its ledger.

    Make one with `open_file` or `from_bytes`: the two backends.

    Parameters
    ----------
    connection : sqlite3.Connection
        An open database, in autocommit mode.
    samples_N : NDArray[np.int64]
        Ids of all samples of the client, strictly increasing.
    num_classes : int
        Labels must lie in `0 .. num_classes - 1`.

    Raises
    ------
    StoreError
        The database is damaged, of another schema version, or of other samples.
    """

    def __init__(
        self, connection: sqlite3.Connection, samples_N: NDArray[np.int64], num_classes: int
    ) -> None:
        self._connection = connection
        self._samples_N = samples_N
        self._num_classes = num_classes
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._prepare()

    @classmethod
    def open_file(cls, path: Path, samples_N: NDArray[np.int64], num_classes: int) -> LabelStore:
        """Open or create the store in a file; what it acknowledges survives a power cut."""
        try:
            return cls(connect(path), samples_N, num_classes)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"label store {path}: {error}") from error

    @classmethod
    def from_bytes(
        cls, content: bytes, samples_N: NDArray[np.int64], num_classes: int
    ) -> LabelStore:
        """Open the store from `to_bytes`; empty content makes a new one."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            if content:
                connection.deserialize(content)
            return cls(connection, samples_N, num_classes)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"label store in memory: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the whole database, to be kept in Flower's `context.state`."""
        return self._connection.serialize()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # --- changes, one transaction each ------------------------------------------------

    def allot(self, total: int) -> None:
        """Grant labels so that `total` have been allotted in all; never takes any back.

        Said in total, and not in addition, so that a repeated grant changes nothing.
        """
        with transaction(self._connection):
            more = max(0, total - self.ledger().allotted)
            self._move(allotted=more, free=more)

    def reserve(self, request: LabelRequest) -> LabelRequest:
        """Reserve a request's samples and return it; a known id returns the first request.

        Raises
        ------
        BudgetExceeded
            Fewer labels are free than the request has samples.
        PoolExhausted
            A sample is named twice, is not the client's, or is reserved or labelled already.
        """
        with transaction(self._connection):
            known = self.request(request.request_id)
            if known is not None:
                return known
            self._check_pool(request.samples)
            free = self.ledger().free
            if len(request.samples) > free:
                raise BudgetExceeded(
                    f"request {request.request_id}: {len(request.samples)} labels asked for, "
                    f"{free} free"
                )
            self._connection.execute(
                "INSERT INTO requests (request_id, cycle, strategy) VALUES (?, ?, ?)",
                (request.request_id, request.cycle, request.strategy),
            )
            self._connection.executemany(
                "INSERT INTO samples (sample, request_id, position, state) "
                "VALUES (?, ?, ?, 'reserved')",
                [
                    (sample, request.request_id, position)
                    for position, sample in enumerate(request.samples)
                ],
            )
            self._move(reserved=len(request.samples), free=-len(request.samples))
        return request

    def commit(self, receipts: Iterable[LabelReceipt]) -> int:
        """Store answers; they are durable when this returns. Either all are stored or none.

        A repeated answer changes nothing. A different answer for a labelled sample is kept
        and listed by `conflicts`; the first one stands.

        Returns
        -------
        int
            Number of samples that these receipts labelled.

        Raises
        ------
        LabelConflict
            A label is out of range, or a sample was never asked for.
        """
        labelled = 0
        with transaction(self._connection):
            for receipt in receipts:
                labelled += self._commit_one(receipt)
            self._move(spent=labelled, reserved=-labelled)
        return labelled

    def release(self, request_id: str) -> int:
        """Give back what a request never had answered; return the number of samples."""
        with transaction(self._connection):
            released = self._connection.execute(
                "DELETE FROM samples WHERE request_id = ? AND state = 'reserved'", (request_id,)
            ).rowcount
            self._move(reserved=-released, free=released)
        return released

    # --- views ------------------------------------------------------------------------

    def request(self, request_id: str) -> LabelRequest | None:
        """Return a request as it was first made, or None."""
        row = self._connection.execute(
            "SELECT cycle, strategy FROM requests WHERE request_id = ?", (request_id,)
        ).fetchone()
        if row is None:
            return None
        samples = self._connection.execute(
            "SELECT sample FROM samples WHERE request_id = ? ORDER BY position", (request_id,)
        )
        return LabelRequest(request_id, row[0], row[1], tuple(sample for (sample,) in samples))

    def open_requests(self) -> tuple[LabelRequest, ...]:
        """Return the requests with unanswered samples, oldest first."""
        rows = self._connection.execute(
            "SELECT request_id FROM requests AS r WHERE EXISTS (SELECT 1 FROM samples AS s "
            "WHERE s.request_id = r.request_id AND s.state = 'reserved') ORDER BY cycle"
        ).fetchall()
        requests = (self.request(identity) for (identity,) in rows)
        return tuple(request for request in requests if request is not None)

    def pending(self, request_id: str) -> int:
        """Return how many samples of a request are unanswered."""
        return self._count("reserved", request_id)

    def labelled(self, through_cycle: int | None = None) -> Labelled:
        """Return the labelled set, or what of it was asked for up to a cycle.

        A resumed run may ask for the statistics of a cycle after whose purchase a client
        was interrupted; the labels of that purchase must not count yet.
        """
        rows = self._connection.execute(
            "SELECT sample, label FROM samples JOIN requests USING (request_id) "
            "WHERE state = 'labelled' AND (?1 IS NULL OR cycle <= ?1) ORDER BY sample",
            (through_cycle,),
        ).fetchall()
        table_N2 = np.array(rows, dtype=np.int64).reshape(-1, 2)
        return Labelled(table_N2[:, 0].copy(), table_N2[:, 1].copy())

    def last_cycle(self) -> int:
        """Return the newest cycle that labels were asked for, or -1."""
        row = self._connection.execute("SELECT coalesce(max(cycle), -1) FROM requests").fetchone()
        return int(row[0])

    def unlabelled(self) -> NDArray[np.int64]:
        """Return the pool U_i: ids neither labelled nor reserved, increasing, int64 (N,)."""
        taken = [s for (s,) in self._connection.execute("SELECT sample FROM samples")]
        return np.setdiff1d(self._samples_N, np.array(taken, dtype=np.int64), assume_unique=True)

    def ledger(self) -> Ledger:
        """Return the ledger."""
        row = self._connection.execute(
            "SELECT allotted, spent, reserved, free FROM ledger"
        ).fetchone()
        return Ledger(*row)

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every answer that contradicts the label that stands."""
        rows = self._connection.execute(
            "SELECT r.sample, r.label, r.annotator, s.label FROM receipts AS r "
            "JOIN samples AS s USING (sample) WHERE r.label != s.label "
            "ORDER BY r.sample, r.received"
        )
        return tuple(Conflict(*row) for row in rows)

    def verify(self) -> None:
        """Check the database and that the ledger agrees with the samples.

        Raises
        ------
        StoreError
            Anything disagrees.
        """
        (integrity,) = self._connection.execute("PRAGMA integrity_check").fetchone()
        ledger = self.ledger()
        spent = self._count("labelled")
        reserved = self._count("reserved")
        if integrity != "ok" or (spent, reserved) != (ledger.spent, ledger.reserved):
            raise StoreError(
                f"label store: integrity {integrity}; {ledger} but the rows say "
                f"spent={spent}, reserved={reserved}"
            )

    # --- inside -----------------------------------------------------------------------

    def _prepare(self) -> None:
        samples = hashlib.sha256(np.ascontiguousarray(self._samples_N).tobytes()).hexdigest()
        expected = {"schema": str(SCHEMA_VERSION), "samples": samples}
        with transaction(self._connection):
            exists = self._connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'meta'"
            ).fetchone()
            if not exists:
                # executescript() would commit the transaction, so one statement at a time.
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)", list(expected.items())
                )
        found = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
        if found["schema"] != expected["schema"]:
            raise StoreError(
                f"label store: schema {found['schema']}; this version reads {SCHEMA_VERSION}"
            )
        if found != expected:
            raise StoreError(
                "label store: it belongs to another set of samples (data set or partition changed)"
            )

    def _check_pool(self, samples: Sequence[int]) -> None:
        asked = np.array(samples, dtype=np.int64)
        foreign = np.setdiff1d(asked, self.unlabelled())
        if len(np.unique(asked)) != len(asked) or len(foreign):
            raise PoolExhausted(
                f"{len(asked)} samples asked for, {len(np.unique(asked))} of them different, "
                f"{len(foreign)} not in the pool"
            )

    def _commit_one(self, receipt: LabelReceipt) -> int:
        if not 0 <= receipt.label < self._num_classes:
            raise LabelConflict(
                f"sample {receipt.sample}: label {receipt.label}; "
                f"allowed is 0 to {self._num_classes - 1}"
            )
        row = self._connection.execute(
            "SELECT request_id, state FROM samples WHERE sample = ?", (receipt.sample,)
        ).fetchone()
        if row is None or row[0] != receipt.request_id:
            raise LabelConflict(
                f"sample {receipt.sample}: not part of request {receipt.request_id}"
            )
        self._connection.execute(
            "INSERT OR IGNORE INTO receipts (sample, annotator, label, request_id) "
            "VALUES (?, ?, ?, ?)",
            (receipt.sample, receipt.annotator, receipt.label, receipt.request_id),
        )
        return self._connection.execute(
            "UPDATE samples SET state = 'labelled', label = ?, annotator = ?, "
            "answered = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') "
            "WHERE sample = ? AND state = 'reserved'",
            (receipt.label, receipt.annotator, receipt.sample),
        ).rowcount

    def _move(self, allotted: int = 0, spent: int = 0, reserved: int = 0, free: int = 0) -> None:
        self._connection.execute(
            "UPDATE ledger SET allotted = allotted + ?, spent = spent + ?, "
            "reserved = reserved + ?, free = free + ?",
            (allotted, spent, reserved, free),
        )

    def _count(self, state: str, request_id: str | None = None) -> int:
        row = self._connection.execute(
            "SELECT count(*) FROM samples WHERE state = ?1 AND (?2 IS NULL OR request_id = ?2)",
            (state, request_id),
        ).fetchone()
        return int(row[0])
