"""SQLite as clients use it: what a transaction has written survives `kill -9` and power cuts."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ahfal_app.storage.files import write_new

# What SQLite needs to open a database, rounded up: an index of 32 KiB beside it.
_LEAST_BYTES = 65_536

# Where a database's file says which versions of SQLite may write and read it, and what says that it
# has a write-ahead log (https://www.sqlite.org/fileformat.html, "file format version numbers").
_VERSIONS, _WITH_LOG = slice(18, 20), b"\x02\x02"

#: What SQLite waits for with each transaction: that it is on the disk.
SYNCHRONOUS = "FULL"


def connect(path: Path) -> sqlite3.Connection:
    """Open or create a database in autocommit mode, with a write-ahead log and full syncing.

    Raises
    ------
    sqlite3.DatabaseError
        The file is no database, or cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
    return connection


def begun_with(*prepare: Callable[[sqlite3.Connection], None]) -> bytes:
    """Return the file of a database with a write-ahead log, as these functions leave it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for each in prepare:
            each(connection)
        content = bytearray(connection.serialize())
    content[_VERSIONS] = _WITH_LOG
    return bytes(content)


def begin(path: Path, content: bytes) -> None:
    """Make a database's file, durably and in one step, unless there is one.

    SQLite would wait for the disk some ten times to get as far; where files cannot be made so,
    that is left to it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            write_new(path, content)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make what is done inside one change: all of it is durable afterwards, or none of it.

    Inside another one it is a part of that.
    """
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Where the disk is full, SQLite may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def reason(path: Path, error: Exception) -> str:
    """Return why a database cannot be used; what SQLite calls an I/O error may be a full disk."""
    folder = path.parent
    is_full = folder.is_dir() and shutil.disk_usage(folder).free < _LEAST_BYTES
    return f"{error}; its disk is full" if is_full else str(error)
