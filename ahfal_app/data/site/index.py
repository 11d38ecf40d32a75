"""The table of a site's images: ids that stay, whatever is added to the folder or vanishes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ahfal_app.errors import StoreError
from ahfal_app.storage.database import connect, reason, transaction

_IMAGES = """
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    digest BLOB
) STRICT
"""

# Files as they were when they had settled.
_LOOKS = """
CREATE TABLE IF NOT EXISTS looks (
    path BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL
) STRICT
"""


@dataclass(frozen=True)
class Known:
    """What is known of an image: its id, and the SHA-256 of its bytes once it was usable."""

    id: int
    digest: bytes | None


class SiteIndex:
    """Ids by name, in a database file that survives whatever happens.

    Parameters
    ----------
    path : Path
        The file; it is made if it is not there.

    Raises
    ------
    StoreError
        The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def know(self, names: Sequence[str]) -> dict[str, Known]:
        """Return all images that were ever known by name, these included.

        New ones get the ids that follow, in the order in which they are given.
        """
        with self._open() as connection, transaction(connection):
            known = self._read(connection)
            new = [name for name in names if name not in known]
            first = max((image.id for image in known.values()), default=-1) + 1
            connection.executemany(
                "INSERT INTO images (id, name) VALUES (?, ?)", list(enumerate(new, first))
            )
            return known | {name: Known(i, None) for i, name in enumerate(new, first)}

    def note(self, digests: Mapping[int, bytes]) -> None:
        """Keep digests of images, by id."""
        if digests:
            with self._open() as connection, transaction(connection):
                connection.executemany(
                    "UPDATE images SET digest = ? WHERE id = ?",
                    [(digest, identity) for identity, digest in digests.items()],
                )

    def looks(self) -> dict[str, tuple[int, int]]:
        """Return size and time of files when they had settled, by path."""
        with self._open() as connection:
            rows = connection.execute("SELECT path, size, modified_ns FROM looks")
            return {os.fsdecode(path): (size, time) for path, size, time in rows}

    def remember(self, looks: Mapping[str, tuple[int, int]]) -> None:
        """Keep size and time of files that have settled, by path, and of no others."""
        before = self.looks()
        if before == looks:
            return
        new = {path: look for path, look in looks.items() if before.get(path) != look}
        with self._open() as connection, transaction(connection):
            connection.executemany(
                "DELETE FROM looks WHERE path = ?",
                [(os.fsencode(path),) for path in before.keys() - looks.keys()],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO looks VALUES (?, ?, ?)",
                [(os.fsencode(path), *look) for path, look in new.items()],
            )

    def _open(self) -> closing[sqlite3.Connection]:
        try:
            connection = connect(self._path)
            for table in (_IMAGES, _LOOKS):
                connection.execute(table)
        except (sqlite3.DatabaseError, OSError) as error:
            raise StoreError(
                f"table of images {self._path}: {reason(self._path, error)}"
            ) from error
        return closing(connection)

    def _read(self, connection: sqlite3.Connection) -> dict[str, Known]:
        rows = connection.execute("SELECT name, id, digest FROM images ORDER BY id")
        return {name: Known(identity, digest) for name, identity, digest in rows}
