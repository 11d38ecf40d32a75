"""The files below a folder: every one is listed, or it is said why not."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ahfal_app.errors import DatasetError

#: What Pillow is let to read: no format that starts another program or is a container.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000")

#: What names of image files end in, in lower case.
SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib"),
        *(".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    )
)
PARQUET = ".parquet"

#: A file that is larger is set aside, and not read into memory.
LARGEST_FILE = 256 << 20

#: Why a file is not even opened.
NO_IMAGE = f"no image, by its name, of a format that is read: {', '.join(FORMATS)}"
LINKED_FOLDER = "a link to a folder; such links are not followed"
NO_REGULAR_FILE = "no regular file"


@dataclass(frozen=True, order=True)
class FoundFile:
    """A file.

    Attributes
    ----------
    name : str
        Its path below the folder, with `/`, as the system has it.
    path : str
        Its whole path. Not a `Path`, which would take most of the time of listing a large folder.
    size, modified_ns : int
        In bytes, and in nanoseconds since 1970.
    changed_ns : int
        When its content or anything else about it was changed last, which no program can set.
    """

    name: str
    path: str
    size: int
    modified_ns: int
    changed_ns: int

    @property
    def suffix(self) -> str:
        """What the name ends in, from its last dot on, in lower case."""
        return os.path.splitext(self.name)[1].lower()


def files_below(
    folder: Path, key: str, others: Collection[Path] = ()
) -> tuple[list[FoundFile], dict[str, str]]:
    """Return all files of a folder by name, and why what else is there cannot be read.

    Parameters
    ----------
    folder : Path
        The folder. Hidden files and folders below it are passed over; links to files are
        followed, links to folders are not.
    key : str
        The setting that names it, for messages.
    others : Collection[Path]
        Files to pass over, too.

    Raises
    ------
    DatasetError
        The folder, or one below it, cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{key}={str(folder)!r}: cannot be read: {error}") from error

    files: list[FoundFile] = []
    problems: dict[str, str] = {}
    left_out = {str(path) for path in others}
    start = len(str(folder))
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(parent, name) for name in folders):
            if os.path.islink(path):
                problems[_below(path, start)] = LINKED_FOLDER
        for path in (os.path.join(parent, name) for name in names if name[0] != "."):
            if path in left_out:
                continue
            try:
                status = os.stat(path)
            except OSError as error:
                problems[_below(path, start)] = f"cannot be read: {error.strerror or error}"
                continue
            if stat.S_ISREG(status.st_mode):
                times = (status.st_mtime_ns, status.st_ctime_ns)
                files.append(FoundFile(_below(path, start), path, status.st_size, *times))
            else:
                problems[_below(path, start)] = NO_REGULAR_FILE
    return sorted(files), problems


def only_file(path: Path) -> FoundFile:
    """Return one file that is not looked for in a folder."""
    status = path.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return FoundFile(path.name, str(path), status.st_size, *times)


def too_large(size: int, most: int) -> str:
    """Return why a file of this size, in bytes, is not read."""
    return f"too large: {size} bytes; at most {most} are read"


def _below(path: str, start: int) -> str:
    return path[start:].replace(os.sep, "/").lstrip("/")
