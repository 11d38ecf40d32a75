"""Folders and files that their owner alone can read, whatever the shell was set to."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO

_log = logging.getLogger(__name__)


class _Umask:
    """The process's mask for new files; several threads may want it strict at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self.before = 0o022

    @property
    def is_strict(self) -> bool:
        return self._users > 0

    def strict(self) -> None:
        with self._lock:
            if self._users == 0:
                self.before = os.umask(_OTHERS)
            self._users += 1

    def as_before(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                os.umask(self.before)


_umask = _Umask()


@contextmanager
def owner_only() -> Iterator[None]:
    """Make all that is written inside, by whatever library, readable by its owner alone."""
    _umask.strict()
    try:
        yield
    finally:
        _umask.as_before()


@contextmanager
def for_others() -> Iterator[None]:
    """Write inside `owner_only` what other people are to read: as the process was set before."""
    strict = os.umask(_umask.before) if _umask.is_strict else None
    try:
        yield
    finally:
        if strict is not None:
            os.umask(strict)


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone can enter, and close one that is there already.

    Where it was open, all in it is closed, too.

    Raises
    ------
    OSError
        It cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_open(folder):
        return
    for path in (folder, *open_within(folder)):
        try:
            path.chmod(path.stat().st_mode & ~_OTHERS)
        except OSError as error:
            _log.warning("%s: others can read it, and it cannot be closed: %s", path, error)


def is_open(path: Path) -> bool:
    """Return whether others than its owner have any right to a file or folder."""
    return bool(path.stat().st_mode & _OTHERS)


def open_within(folder: Path) -> list[Path]:
    """Return what others have a right to of all that is in a folder; links are not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.lstat().st_mode & _OTHERS and not path.is_symlink():
                found.append(path)
    return found
