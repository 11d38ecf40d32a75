"""Databases that hold what was paid for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.syncing import waiting

from ahfal_app.storage.database import begin, begun_with, connect, transaction

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


def _make_table(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE answers (sample INTEGER UNIQUE)")
    connection.execute("INSERT INTO answers VALUES (7)")


def test_a_database_begins_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "labels.sqlite"
    begin(path, begun_with(_make_table))
    # Before anybody has set it: a plain connection finds the log switched on.
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with closing(connect(path)) as connection:
        connection.execute("INSERT INTO answers VALUES (8)")
        assert path.with_name("labels.sqlite-wal").stat().st_size > 0
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT sample FROM answers").fetchall() == [(7,), (8,)]
    assert [each.name for each in path.parent.iterdir()] == ["labels.sqlite"]


def test_a_database_that_is_there_does_not_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with closing(connect(path)) as connection:
        connection.execute("CREATE TABLE mine (sample INTEGER)")
    begin(path, begun_with(_make_table))
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


def test_where_there_are_no_links_a_database_begins_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("there are no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "labels.sqlite"
    begin(path, begun_with(_make_table))
    assert list(tmp_path.iterdir()) == []
    with closing(connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def _add_two(connection: sqlite3.Connection, first: int, second: int) -> None:
    with transaction(connection):
        connection.execute("INSERT INTO answers VALUES (?)", (first,))
        with transaction(connection):
            connection.execute("INSERT INTO answers VALUES (?)", (second,))
