"""What would be left on a disk after a power cut: only what was synced before it was named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """Notes what is synced, and what every renamed thing held that was not."""

    def __init__(self) -> None:
        self.unsynced: list[str] = []
        self.renamed: list[Path] = []
        self._synced: set[tuple[int, int]] = set()

    def fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._synced.add((status.st_dev, status.st_ino))

    def before_rename(self, source: Path, target: Path) -> None:
        inside = source.rglob("*") if source.is_dir() else ()
        for path in (source, *inside):
            if not self.is_synced(path):
                self.unsynced.append(f"{target.name}: {path.relative_to(source)}")
        # What is synced of the folder so far does not hold the new name.
        self._synced -= {_identity(target.parent)}
        self.renamed.append(target)

    def is_synced(self, path: Path) -> bool:
        return _identity(path) in self._synced

    def check(self, *names: str) -> None:
        """Check that these were renamed into place, whole and for good."""
        assert {path.name for path in self.renamed} == set(names)
        assert self.unsynced == []
        assert all(self.is_synced(path.parent) for path in self.renamed if path.exists())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def watched_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Watch what is synced and renamed by this process."""
    disk = Disk()
    real_fsync, real_rename, real_replace = os.fsync, Path.rename, Path.replace
    real_link = Path.hardlink_to

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        disk.fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        disk.before_rename(self, Path(target))
        return real_rename(self, target)

    def replace(self: Path, target: Path) -> Path:
        disk.before_rename(self, Path(target))
        return real_replace(self, target)

    def hardlink_to(self: Path, target: Path) -> None:
        disk.before_rename(Path(target), self)
        real_link(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "rename", rename)
        patch.setattr(Path, "replace", replace)
        patch.setattr(Path, "hardlink_to", hardlink_to)
        yield disk
