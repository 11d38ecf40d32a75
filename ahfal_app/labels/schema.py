"""The tables of a label store, and how older ones are brought up to date."""

from __future__ import annotations

import sqlite3

from ahfal_app.errors import StoreError
from ahfal_app.storage.database import transaction

SCHEMA_VERSION = 6

_TABLES_SINCE_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    allotted INTEGER NOT NULL CHECK (allotted >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0),
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    free INTEGER NOT NULL CHECK (free >= 0),
    CHECK (allotted = spent + reserved + free)
) STRICT;
"""

_TABLES_SINCE_2 = """
CREATE TABLE classes (label INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE files (sample INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
"""

# `report` is what the server was told of the choice, where the query strategy tells it.
_REQUESTS = """
CREATE TABLE requests (
    request_id TEXT PRIMARY KEY,
    cycle INTEGER NOT NULL,
    strategy TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    readers INTEGER NOT NULL DEFAULT 1 CHECK (readers >= 1),
    rule TEXT NOT NULL DEFAULT 'majority',
    report BLOB
) STRICT;
"""

# A sample is without a row (in the pool), asked for, labelled, skipped by whoever should have
# labelled it, given (labelled before the run, so that nothing was spent on it), or removed: its
# image went before it was labelled. `settled` is the last receipt that its label rests on.
_SAMPLES = """
CREATE TABLE samples (
    sample INTEGER PRIMARY KEY,
    request_id TEXT REFERENCES requests,
    position INTEGER,
    state TEXT NOT NULL
        CHECK (state IN ('reserved', 'labelled', 'skipped', 'given', 'removed')),
    label INTEGER,
    annotator TEXT,
    answered TEXT,
    from_cycle INTEGER,
    score REAL,
    guess INTEGER,
    settled INTEGER,
    CHECK ((state IN ('labelled', 'given')) = (label IS NOT NULL)),
    CHECK ((label IS NULL) = (from_cycle IS NULL)),
    CHECK ((state = 'given') = (request_id IS NULL))
) STRICT;
CREATE INDEX samples_by_request ON samples (request_id);
"""

# All that anybody has said, in the order in which it came in; nothing is ever deleted. The same
# answer of the same person stands once, however often an oracle tells it.
_RECEIPTS = """
CREATE TABLE receipts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sample INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    label INTEGER,
    request_id TEXT,
    given TEXT,
    received TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    taken_back TEXT,
    decides INTEGER NOT NULL DEFAULT 0 CHECK (decides IN (0, 1)),
    unsure INTEGER NOT NULL DEFAULT 0 CHECK (unsure IN (0, 1)),
    comment TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX standing_receipts ON receipts
    (sample, annotator, ifnull(label, -1), decides) WHERE taken_back IS NULL;
CREATE UNIQUE INDEX old_receipts ON receipts
    (sample, annotator, ifnull(label, -1), ifnull(given, '')) WHERE taken_back IS NOT NULL;
"""

# Corrections in the order in which they were made; `after` is the newest receipt of that time: what
# had been said by then is settled. The newest correction of a sample stands.
_CORRECTIONS = """
CREATE TABLE corrections (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sample INTEGER NOT NULL REFERENCES samples,
    from_cycle INTEGER NOT NULL,
    label INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    made TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    received TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    after INTEGER NOT NULL,
    comment TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX corrections_by_sample ON corrections (sample);
CREATE VIEW standing_corrections AS
    SELECT * FROM corrections
    WHERE number IN (SELECT max(number) FROM corrections GROUP BY sample);
"""

# Images that went after they had been asked for, and whose copies the oracle has deleted.
_WITHDRAWN = """
CREATE TABLE withdrawn (sample INTEGER PRIMARY KEY) STRICT;
"""

# What was drawn of each labelled sample: whether it is held out for testing, for good.
_DRAWN = """
CREATE TABLE drawn (
    sample INTEGER PRIMARY KEY REFERENCES samples,
    held_out INTEGER NOT NULL CHECK (held_out IN (0, 1))
) STRICT;
"""

# The requests that samples were part of before: their images went and came back, and were asked for
# anew or labelled by the site itself; or they were given back unanswered. Answers may still come.
_EARLIER_REQUESTS = """
CREATE TABLE earlier_requests (
    sample INTEGER NOT NULL,
    request_id TEXT NOT NULL REFERENCES requests,
    PRIMARY KEY (sample, request_id)
) STRICT;
"""

_NEW = (
    _TABLES_SINCE_1,
    _TABLES_SINCE_2,
    _REQUESTS,
    _SAMPLES,
    _RECEIPTS,
    _CORRECTIONS,
    _WITHDRAWN,
    _DRAWN,
    _EARLIER_REQUESTS,
    """
INSERT INTO ledger VALUES (1, 0, 0, 0, 0);
INSERT INTO meta VALUES ('frozen', '-1');
INSERT INTO meta VALUES ('schema', '6');
""",
)

# SQLite cannot change a table's checks, so tables are made anew and filled. Version 1 froze no
# cycles: its labels counted for the cycle that they were asked for, and of the cycles only the
# newest may still be without training.
_FROM_1_TO_2 = (
    """
DROP INDEX samples_by_request;
ALTER TABLE samples RENAME TO samples_1;
ALTER TABLE receipts RENAME TO receipts_1;
CREATE TABLE samples (
    sample INTEGER PRIMARY KEY, request_id TEXT REFERENCES requests, position INTEGER,
    state TEXT NOT NULL, label INTEGER, annotator TEXT, answered TEXT, from_cycle INTEGER,
    score REAL, guess INTEGER
) STRICT;
CREATE INDEX samples_by_request ON samples (request_id);
CREATE TABLE receipts (
    sample INTEGER NOT NULL, annotator TEXT NOT NULL, label INTEGER NOT NULL, request_id TEXT,
    received TEXT NOT NULL, PRIMARY KEY (sample, annotator, label)
) STRICT;
CREATE TABLE corrections (
    sample INTEGER NOT NULL REFERENCES samples, from_cycle INTEGER NOT NULL,
    label INTEGER NOT NULL, annotator TEXT NOT NULL, made TEXT NOT NULL,
    PRIMARY KEY (sample, from_cycle)
) STRICT;
INSERT INTO samples
    (sample, request_id, position, state, label, annotator, answered, from_cycle)
    SELECT sample, request_id, position, state, label, annotator, answered,
        CASE WHEN label IS NOT NULL THEN cycle END
    FROM samples_1 JOIN requests USING (request_id);
INSERT INTO receipts (sample, annotator, label, request_id, received)
    SELECT sample, annotator, label, request_id, received FROM receipts_1 ORDER BY rowid;
DROP TABLE samples_1;
DROP TABLE receipts_1;
INSERT INTO meta SELECT 'frozen', coalesce(max(cycle) - 1, -1) FROM requests;
""",
    _TABLES_SINCE_2,
)

# Version 2 kept no skips as receipts, and did not know when an answer was given. What went before
# it was labelled was skipped by `gone`.
_FROM_2_TO_3 = (
    """
DROP INDEX samples_by_request;
ALTER TABLE corrections RENAME TO corrections_2;
ALTER TABLE samples RENAME TO samples_2;
ALTER TABLE receipts RENAME TO receipts_2;
ALTER TABLE requests ADD COLUMN readers INTEGER NOT NULL DEFAULT 1 CHECK (readers >= 1);
ALTER TABLE requests ADD COLUMN rule TEXT NOT NULL DEFAULT 'majority';
""",
    _SAMPLES,
    _RECEIPTS,
    _CORRECTIONS,
    _WITHDRAWN,
    """
INSERT INTO samples (sample, request_id, position, state, label, annotator, answered, from_cycle,
        score, guess)
    SELECT sample, request_id, position,
        CASE WHEN state = 'skipped' AND annotator = 'gone' THEN 'removed' ELSE state END,
        label, CASE WHEN state = 'skipped' AND annotator = 'gone' THEN NULL ELSE annotator END,
        answered, from_cycle, score, guess
    FROM samples_2;
INSERT INTO receipts (sample, annotator, label, request_id, received)
    SELECT sample, annotator, label, request_id, received FROM receipts_2 ORDER BY rowid;
INSERT INTO receipts (sample, annotator, request_id, received)
    SELECT sample, annotator, request_id, coalesce(answered, '') FROM samples
    WHERE state = 'skipped' ORDER BY answered;
INSERT INTO corrections (sample, from_cycle, label, annotator, made, received, after)
    SELECT sample, from_cycle, label, annotator, made, made,
        (SELECT coalesce(max(number), 0) FROM receipts)
    FROM corrections_2 ORDER BY from_cycle;
UPDATE samples SET settled = (SELECT min(r.number) FROM receipts AS r
    WHERE r.sample = samples.sample AND r.label IS samples.label)
    WHERE state IN ('labelled', 'given', 'skipped');
DROP TABLE corrections_2;
DROP TABLE samples_2;
DROP TABLE receipts_2;
""",
)

_FROM_4_TO_5 = ("ALTER TABLE requests ADD COLUMN report BLOB",)

_STEPS = {
    "1": ("2", _FROM_1_TO_2),
    "2": ("3", _FROM_2_TO_3),
    "3": ("4", (_DRAWN,)),
    "4": ("5", _FROM_4_TO_5),
    "5": ("6", (_EARLIER_REQUESTS,)),
}


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
            _execute(connection, *_NEW)
        while (version := _version(connection)) in _STEPS:
            following, scripts = _STEPS[version]
            _execute(connection, *scripts)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (following,))
    if version != str(SCHEMA_VERSION):
        raise StoreError(f"label store: schema {version}; this version reads 1 to {SCHEMA_VERSION}")


def _version(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    return str(row[0]) if row is not None else "unknown"


def _execute(connection: sqlite3.Connection, *scripts: str) -> None:
    # executescript() would commit the transaction, so one statement at a time.
    for statement in ";".join(scripts).split(";"):
        connection.execute(statement)
