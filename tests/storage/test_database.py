"""Databases that hold what was paid for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.syncing import waiting

from ahfal_app.storage.database import connect, transaction

#: `PRAGMA synchronous` in numbers.
FULL = 2


def test_a_transaction_waits_until_it_is_on_the_disk(tmp_path: Path) -> None:
    with waiting(), closing(connect(tmp_path / "new" / "labels.sqlite")) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (FULL,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_transaction_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE answers (sample INTEGER UNIQUE)")
        with transaction(connection), transaction(connection):
            connection.execute("INSERT INTO answers VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError):
            _add_two(connection, 2, 1)
        assert not connection.in_transaction
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT sample FROM answers").fetchall() == [(1,)]


def _add_two(connection: sqlite3.Connection, first: int, second: int) -> None:
    with transaction(connection):
        connection.execute("INSERT INTO answers VALUES (?)", (first,))
        with transaction(connection):
            connection.execute("INSERT INTO answers VALUES (?)", (second,))
