"""Requests on a site's desk: folders with images, complete or not there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ahfal_app.errors import OracleError
from ahfal_app.storage.files import new_folder, write_bytes

#: The folder of the requests, in that of the desk.
REQUESTS = "requests"
_INDEX = "request.json"
_IMAGES = "images"


class Item(BaseModel):
    """One image of a request.

    Attributes
    ----------
    sample : int
        Sample id.
    file : str
        Name of the file in the folder of images.
    media_type : str
        Its media type, such as `image/png`.
    original : str
        What the site calls it.
    link : str
        An http or https address where people see more of it; empty where there is none.
    guess : int | None
        Class index that the client's model takes it for.
    score : float | None
        Acquisition score.
    """

    model_config = ConfigDict(frozen=True)

    sample: int
    file: str
    media_type: str
    original: str
    link: str = ""
    guess: int | None = None
    score: float | None = None


class Sheet(BaseModel):
    """A request as people see it: classes by index, and images in the order of the request.

    `readers` people read each image, and `rule` decides (see `ahfal_app.labels.readings`);
    `withdrawn` are samples whose images the site no longer has.
    """

    model_config = ConfigDict(frozen=True)

    request: str
    cycle: int
    strategy: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    readers: int = 1
    rule: str = "majority"
    withdrawn: tuple[int, ...] = ()

    def item(self, sample: int) -> Item | None:
        """Return the image of a sample, or None where there is none (any more)."""
        return next((item for item in self.items if item.sample == sample), None)

    def without(self, gone: Collection[int]) -> Sheet:
        """Return the request as it is once the site no longer has these samples' images."""
        left = tuple(item for item in self.items if item.sample not in gone)
        return self.model_copy(update={"items": left, "withdrawn": (*self.withdrawn, *gone)})


class Sheets:
    """The requests of a desk; any number of processes may read and write them.

    Parameters
    ----------
    folder : Path
        The desk's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / REQUESTS
        self._read: dict[Path, tuple[tuple[int, int, int], Sheet]] = {}

    def add(self, sheet: Sheet, images: Iterable[tuple[str, bytes]]) -> None:
        """Write a request's folder, with its images by file name; one that is there stays.

        Raises
        ------
        OracleError
            It cannot be written.
        """
        target = self._folder / sheet.request
        try:
            with new_folder(target) as part:
                (part / _IMAGES).mkdir()
                for name, content in images:
                    (part / _IMAGES / name).write_bytes(content)
                (part / _INDEX).write_bytes(_encoded(sheet))
        except OSError as error:
            if not self.has(sheet.request):  # Else another process was faster.
                raise OracleError(f"{target}: cannot be written: {error}") from error

    def withdraw(self, samples: Collection[int]) -> None:
        """Forget images that the site no longer has: nobody sees them, and their copies go.

        Raises
        ------
        OracleError
            A request cannot be changed.
        """
        for sheet in self.all():
            gone = [item.sample for item in sheet.items if item.sample in samples]
            left = sheet.without(gone)
            path = self._folder / sheet.request
            try:
                if gone:
                    write_bytes(path / _INDEX, _encoded(left))
                # Also what an interrupted withdrawal left.
                wanted = {item.file for item in left.items}
                for copy in (path / _IMAGES).iterdir():
                    if copy.name not in wanted:
                        copy.unlink(missing_ok=True)
            except OSError as error:
                raise OracleError(f"{path}: images cannot be withdrawn: {error}") from error

    def has(self, request: str) -> bool:
        """Return whether a request lies here."""
        return (self._folder / request / _INDEX).is_file()

    def sheet(self, request: str) -> Sheet:
        """Return a request.

        Raises
        ------
        OracleError
            There is none of this id, or it cannot be read.
        """
        path = self._folder / request / _INDEX
        try:
            status = path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._read.get(path)
            if known is None or known[0] != version:
                content = json.loads(path.read_text(encoding="utf-8"))
                known = (version, Sheet.model_validate(content))
                self._read[path] = known
            return known[1]
        except (OSError, ValueError, ValidationError) as error:
            raise OracleError(f"{path}: cannot be read: {error}") from error

    def all(self) -> tuple[Sheet, ...]:
        """Return all requests, by cycle."""
        found = sorted(p.name for p in self._folder.iterdir()) if self._folder.is_dir() else []
        # What begins with a dot is being written.
        names = [name for name in found if not name.startswith(".") and self.has(name)]
        return tuple(sorted(map(self.sheet, names), key=lambda s: (s.cycle, s.request)))

    def image(self, sheet: Sheet, item: Item) -> bytes:
        """Return the image of an item of a request.

        Raises
        ------
        OracleError
            It cannot be read.
        """
        path = self._folder / sheet.request / _IMAGES / item.file
        try:
            return path.read_bytes()
        except OSError as error:
            raise OracleError(f"{path}: cannot be read: {error}") from error


def _encoded(sheet: Sheet) -> bytes:
    return sheet.model_dump_json(indent=1).encode()
