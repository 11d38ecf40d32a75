"""Files and folders that are either complete or absent, whatever interrupts their writing."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: temporary file, fsync, rename, fsync of the folder.

    Parameters
    ----------
    path : Path
        File to write; its folder must exist.
    content : bytes
        The whole new content. Readers see either the old or the new content.

    Raises
    ------
    OSError
        The file cannot be written; the old content is still there.
    """
    _replace(path, content, is_synced=True)
    sync_folder(path.parent)


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, as `write_bytes` does, without waiting for the disk.

    Whatever ends the process, readers see the old or the new content. After a power cut that may
    be gone: for what is written often, and can be missed.
    """
    _replace(path, content, is_synced=False)


def write_new(path: Path, content: bytes) -> None:
    """Make a file in one step, durably, unless there is one already: that stays as it is.

    Raises
    ------
    OSError
        It cannot be written, or the file system has no hard links; there is no such file then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        _sync_file(temporary)
        # A link, since renaming would take the place of what another process has made meanwhile.
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file in one step (see `write_bytes`)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step (see `write_bytes`).

    Raises
    ------
    ValueError
        A number is NaN or infinite, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file, or begin it; what is appended is on disk when this returns."""
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Make a folder that is there with all that it holds, or not there at all.

    Parameters
    ----------
    target : Path
        The folder; the folders above it are made where they are missing.

    Yields
    ------
    Path
        An empty folder beside it, to be filled. At the end of the `with` block all that is in
        it is synced to the disk, and it is renamed; after an error it is removed.

    Raises
    ------
    OSError
        It cannot be written, or there is already something at the target.
    """
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for folder, _, names in os.walk(part):
            for name in names:
                _sync_file(Path(folder, name))
            sync_folder(Path(folder))
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(target.parent)


def remove_parts(target: Path) -> None:
    """Remove what killed processes left of a `new_folder`; no other may be making it now."""
    for part in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(part, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename alone may be lost with the power."""
    if os.name == "nt":  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes, is_synced: bool) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        if is_synced:
            _sync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:  # Windows syncs no file that is open for reading alone.
        os.fsync(file.fileno())
