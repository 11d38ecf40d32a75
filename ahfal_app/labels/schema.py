"""The tables of a label store, and how older ones are brought up to date."""

from __future__ import annotations

import sqlite3

from ahfal_app.errors import StoreError
from ahfal_app.storage.database import transaction

SCHEMA_VERSION = 2


# A sample is without a row (in the pool), asked for, labelled, skipped by whoever should have
# labelled it, or given: labelled before the run, so that nothing was spent on it.
_SAMPLES = """
CREATE TABLE samples (
    sample INTEGER PRIMARY KEY,
    request_id TEXT REFERENCES requests,
    position INTEGER,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'labelled', 'skipped', 'given')),
    label INTEGER,
    annotator TEXT,
    answered TEXT,
    from_cycle INTEGER,
    score REAL,
    guess INTEGER,
    CHECK ((state IN ('labelled', 'given')) = (label IS NOT NULL)),
    CHECK ((label IS NULL) = (from_cycle IS NULL)),
    CHECK ((state = 'given') = (request_id IS NULL))
) STRICT;
CREATE INDEX samples_by_request ON samples (request_id);
"""

_RECEIPTS = """
CREATE TABLE receipts (
    sample INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    label INTEGER NOT NULL,
    request_id TEXT,
    received TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (sample, annotator, label)
) STRICT;
"""

_SINCE_2 = """
CREATE TABLE corrections (
    sample INTEGER NOT NULL REFERENCES samples,
    from_cycle INTEGER NOT NULL,
    label INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    made TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (sample, from_cycle)
) STRICT;
CREATE TABLE classes (label INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE files (sample INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
"""

_SINCE_1 = """
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
"""

_FIRST_ROWS = """
INSERT INTO ledger VALUES (1, 0, 0, 0, 0);
INSERT INTO meta VALUES ('frozen', '-1');
INSERT INTO meta VALUES ('schema', '2');
"""

# SQLite cannot change a table's checks, so the tables are made anew and filled. Version 1 froze
# no cycles: its labels counted for the cycle that they were asked for, and of the cycles only
# the newest may still be without training.
_SET_ASIDE_1 = """
DROP INDEX samples_by_request;
ALTER TABLE samples RENAME TO samples_1;
ALTER TABLE receipts RENAME TO receipts_1;
"""

_COPY_1 = """
INSERT INTO samples
    (sample, request_id, position, state, label, annotator, answered, from_cycle)
    SELECT sample, request_id, position, state, label, annotator, answered,
        CASE WHEN label IS NOT NULL THEN cycle END
    FROM samples_1 JOIN requests USING (request_id);
INSERT INTO receipts (sample, annotator, label, request_id, received)
    SELECT sample, annotator, label, request_id, received FROM receipts_1;
DROP TABLE samples_1;
DROP TABLE receipts_1;
INSERT INTO meta SELECT 'frozen', coalesce(max(cycle) - 1, -1) FROM requests;
UPDATE meta SET value = '2' WHERE key = 'schema';
"""


def prepare_schema(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an older version up to date, in one transaction.

    Raises
    ------
    StoreError
        The store was written by a version that is not known here.
    """
    with transaction(connection):
        exists = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
        if not exists:
            _execute(connection, _SINCE_1, _SAMPLES, _RECEIPTS, _SINCE_2, _FIRST_ROWS)
        elif _version(connection) == "1":
            _execute(connection, _SET_ASIDE_1, _SAMPLES, _RECEIPTS, _SINCE_2, _COPY_1)
    if (version := _version(connection)) != str(SCHEMA_VERSION):
        raise StoreError(f"label store: schema {version}; this version reads 1 to {SCHEMA_VERSION}")


def _version(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    return str(row[0]) if row is not None else "unknown"


def _execute(connection: sqlite3.Connection, *scripts: str) -> None:
    # executescript() would commit the transaction, so one statement at a time.
    for statement in ";".join(scripts).split(";"):
        connection.execute(statement)
