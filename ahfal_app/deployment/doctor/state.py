"""The folder that holds what must not be lost: can it be written, is it sound, is there room."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from ahfal_app.config import expanded
from ahfal_app.deployment.doctor.finding import Finding, failure, good, warning
from ahfal_app.errors import ConfigError
from ahfal_app.storage.database import connect, transaction
from ahfal_app.storage.private import is_open, open_within, owner_only

_LOW_DISK_BYTES = 2**30


def check_state(node_config: Mapping[str, object]) -> Iterator[Finding]:
    """Write a database there as a run does, and look at the stores that are there."""
    named = node_config.get("state-dir")
    if not named:
        yield failure("state", "state-dir is not in --node-config: name a folder for the labels")
        return
    try:
        folder = expanded("state-dir", str(named)).absolute()
    except ConfigError as error:
        yield failure("state", error.problems[0])
        return
    try:
        with owner_only():
            folder.mkdir(parents=True, exist_ok=True)
            mode = _try_database(folder)
    except (OSError, sqlite3.Error) as error:
        yield failure("state", f"{folder} cannot be written: {error}; check owner and mounts")
        return
    if mode == "wal":
        yield good("state", f"{folder} can be written")
    else:
        yield failure(
            "state", f"{folder}: no write-ahead log there (network file system?); use a local disk"
        )
    yield from _check_closed(folder)
    yield _check_room(folder)
    yield from _check_stores(folder)


def _try_database(folder: Path) -> str:
    """Make a durable change to a new database; return its journal mode."""
    with (
        tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name,
        closing(connect(Path(name) / "probe.sqlite")) as connection,
    ):
        with transaction(connection):
            connection.execute("CREATE TABLE probe (value INTEGER)")
            connection.execute("INSERT INTO probe VALUES (1)")
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return str(mode)


def _check_closed(folder: Path) -> Iterator[Finding]:
    """See that nobody else can read what is there: images' names, labels, copies of images."""
    open_paths = ([folder] if is_open(folder) else []) + open_within(folder)
    if open_paths:
        more = f" and {len(open_paths) - 1} more" if len(open_paths) > 1 else ""
        yield failure(
            "state",
            f"{open_paths[0]}{more}: others have rights to it; run chmod -R go= {folder}",
        )


def _check_room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free"
    if free < _LOW_DISK_BYTES:
        return warning("disk", f"{text} in {folder}: make room, a run needs it for every model")
    return good("disk", text)


def _check_stores(folder: Path) -> Iterator[Finding]:
    stores = sorted(folder.glob("*/*/labels.sqlite"))
    broken = {store: problem for store in stores if (problem := _problem_of(store))}
    for store, problem in broken.items():
        yield failure("store", f"{store}: {problem}; restore it from the backup")
    if stores and not broken:
        yield good("store", f"{len(stores)} label stores are sound")


def _problem_of(store: Path) -> str | None:
    """Return what SQLite finds wrong in a store, or None; nothing is written."""
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check")]
            if found == ["ok"] and connection.execute("PRAGMA foreign_key_check").fetchone():
                found = ["rows that belong to nothing"]
    except sqlite3.Error as error:
        return str(error)
    return None if found == ["ok"] else "; ".join(found[:3])
