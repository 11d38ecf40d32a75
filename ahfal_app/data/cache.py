"""The folder of decoded data sets, shared by processes and built by one of them.

An entry is a folder of `.npy` files, which are memory-mapped, and a manifest, which
holds their checksums. Entries appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ahfal_app.config import Settings, expanded
from ahfal_app.data.not_used import NotUsed
from ahfal_app.errors import DatasetError
from ahfal_app.storage.files import new_folder, remove_parts, write_bytes

#: Version of the entries' layout and of the rules they were decoded with.
SCHEMA = 2

#: Folders below `data-dir`: of decoded data sets, and of backbones' features.
_DECODED, FEATURES = "decoded", "features"

#: What was found and is not used, and why: a file of an entry that is there for people.
NOT_USED = "not-used.csv"

_MANIFEST = "manifest.json"
_HASH_BLOCK = 1 << 20

_log = logging.getLogger(__name__)


class Description(BaseModel):
    """What an entry says about its data set besides the arrays.

    `not_used` and `notes` say what was found besides, and what may have been meant otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_names: tuple[str, ...]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    fingerprint: str
    not_used: tuple[NotUsed, ...] = ()
    notes: tuple[str, ...] = ()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int
    modified_ns: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: int
    description: Description
    files: dict[str, _File]


@dataclass(frozen=True)
class Entry:
    """A decoded data set: its description, its arrays by name, memory-mapped, and its folder."""

    description: Description
    arrays: dict[str, NDArray[np.generic]]
    folder: Path


def data_dir(settings: Settings) -> Path:
    """Return the folder for decoded data that the settings name."""
    return expanded("data-dir", settings.data_dir or "~/.cache/ahfal")


def cache_key(name: str, **source: object) -> str:
    """Return the name of the entry for a source, described by JSON values."""
    canonical = json.dumps({"schema": SCHEMA, **source}, sort_keys=True)
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:24]}"


def source_hash(source: object) -> str:
    """Return a name for a source that is described by JSON values, as part of an entry's."""
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]


def open_or_build(root: Path, key: str, build: Callable[[Path], Description]) -> Entry:
    """Open an entry, building it first if it is missing or damaged.

    Of several processes that need it one builds it, the others wait. It is built in a
    folder of its own, which is then renamed.

    Parameters
    ----------
    root : Path
        The folder for decoded data.
    key : str
        Name of the entry.
    build : Callable[[Path], Description]
        Writes the arrays as `.npy` files into a folder and describes them.

    Raises
    ------
    DatasetError
        The folder cannot be written, or `build` raised it.
    """
    folder = root / _DECODED / key
    entry = _open(folder)
    return entry if entry is not None else _build(root, folder, build)


def discard(root: Path, key: str) -> None:
    """Remove an entry, so that it is built anew; who has it open keeps what he has.

    Raises
    ------
    DatasetError
        The folder cannot be written.
    """
    from filelock import FileLock

    folder = root / _DECODED / key
    try:
        with FileLock(f"{folder}.lock"):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DatasetError(
            f"data-dir={str(root)!r}: decoded data cannot be kept there: {error}"
        ) from error


def discard_others(root: Path, start: str, kept: str, below: str = _DECODED) -> None:
    """Remove all entries whose names start in one way, except those that start in another.

    `below` says of which folder: stores of features have locks as data sets have. What another
    process is building now is left to the next call.

    Raises
    ------
    DatasetError
        The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    for lock in (root / below).glob(f"{start}*.lock"):
        folder = lock.with_suffix("")
        if folder.name.startswith(kept):
            continue
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                remove_parts(folder)
        except Timeout:
            continue
        except OSError as error:
            raise DatasetError(
                f"data-dir={str(root)!r}: {below} data cannot be removed there: {error}"
            ) from error


def _build(root: Path, folder: Path, build: Callable[[Path], Description]) -> Entry:
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            entry = _open(folder)
            if entry is not None:
                return entry
            _clear(folder)
            with new_folder(folder) as part:
                _write_manifest(part, _manifest(part, build(part)))
            entry = _open(folder)
    except OSError as error:
        raise DatasetError(
            f"data-dir={str(root)!r}: decoded data cannot be kept there: {error}"
        ) from error
    if entry is None:
        raise DatasetError(f"data-dir={str(root)!r}: what was written there reads back damaged")
    return entry


def _clear(folder: Path) -> None:
    """Remove a damaged entry and what killed processes left; the lock must be held."""
    if folder.exists():
        _log.warning("%s is damaged and built again", folder)
        shutil.rmtree(folder, ignore_errors=True)
    remove_parts(folder)


def _open(folder: Path) -> Entry | None:
    """Open an entry, or return None if it is missing, of another version or damaged."""
    try:
        manifest = _Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        if manifest.schema_version != SCHEMA or not _intact(folder, manifest):
            return None
        arrays = {
            Path(name).stem: np.load(folder / name, mmap_mode="r", allow_pickle=False)
            for name in manifest.files
        }
    except (OSError, ValueError):
        return None
    return Entry(manifest.description, arrays, folder)


def _intact(folder: Path, manifest: _Manifest) -> bool:
    """Compare files with the manifest: size and time if these agree, else the content."""
    changed = False
    for name, file in manifest.files.items():
        status = (folder / name).stat()
        if status.st_size != file.size:
            return False
        if status.st_mtime_ns != file.modified_ns:
            if _sha256(folder / name) != file.sha256:
                return False
            file.modified_ns, changed = status.st_mtime_ns, True
    if changed:
        # The cache was copied: note the new times, or each process would hash it again.
        with contextlib.suppress(OSError):
            _write_manifest(folder, manifest)
    return True


def _manifest(folder: Path, description: Description) -> _Manifest:
    files = {}
    for path in sorted(folder.glob("*.npy")):
        status = path.stat()
        files[path.name] = _File(
            size=status.st_size, modified_ns=status.st_mtime_ns, sha256=_sha256(path)
        )
    return _Manifest(schema_version=SCHEMA, description=description, files=files)


def _write_manifest(folder: Path, manifest: _Manifest) -> None:
    write_bytes(folder / _MANIFEST, manifest.model_dump_json(indent=1).encode())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def save_arrays(path: Path, **arrays: NDArray[np.generic]) -> None:
    """Write named arrays into a `.npz` file, in one step.

    Raises
    ------
    DatasetError
        The file cannot be written.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.getvalue())
    except OSError as error:
        raise DatasetError(f"data-dir: {path} cannot be written: {error}") from error


def load_arrays(path: Path) -> dict[str, NDArray[np.generic]] | None:
    """Read all arrays of a `.npz` file, or return None if it is missing or unreadable."""
    try:
        # Opened here, since NumPy leaves the file open where it is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
