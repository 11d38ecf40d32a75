"""What a site's folder holds, and its bytes: image files and rows of parquet files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from ahfal_app.data.files import (
    LARGEST_FILE,
    NO_IMAGE,
    PARQUET,
    SUFFIXES,
    FoundFile,
    files_below,
    too_large,
)
from ahfal_app.data.parquet import image_columns
from ahfal_app.data.vectors import (
    VectorColumns,
    VectorRow,
    rows_of,
    the_shown_column,
    the_vector_column,
)
from ahfal_app.errors import DatasetError
from ahfal_app.storage.names import readable

#: Where an image's bytes are: a file, these bytes, or nowhere, for this reason.
Source = Path | bytes | VectorRow | Exception

#: How tables are read: the setting `image-column`, or the columns with vectors.
Columns = str | VectorColumns


@dataclass(frozen=True, order=True)
class SiteImage:
    """An image of a site.

    Attributes
    ----------
    name : str
        Its path in the site's folder, with `/`; for a row of a parquet file followed by
        `#` and the row's number.
    path : str
        The file. Not a `Path`, which would take most of the time of listing a large folder.
    row : int | None
        Row of a parquet file, from 0.
    size, modified_ns, changed_ns : int
        Of the file, in bytes, and in nanoseconds since 1970 (`FoundFile`).
    """

    name: str
    path: str
    row: int | None
    size: int
    modified_ns: int
    changed_ns: int


def list_images(
    folder: Path, columns: Columns, others: Collection[Path], key: str = "data"
) -> tuple[list[SiteImage], dict[str, str]]:
    """Return a site's images by name, and why other files are none.

    Parameters
    ----------
    folder : Path
        The site's folder.
    columns : Columns
        The setting `image-column`, of which empty is the only column that may hold images; or the
        columns with vectors. Then parquet files alone count.
    others : Collection[Path]
        Files that are known to be none; hidden files and folders are passed over, too.
    key : str
        What names the folder in --node-config, for messages.

    Raises
    ------
    DatasetError
        The folder cannot be read.
    """
    found, others_told = files_below(folder, key, others)
    images: list[SiteImage] = []
    problems = {readable(name): reason for name, reason in others_told.items()}
    for file in found:
        name = readable(file.name)
        try:
            images += _images(file, name, columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            problems[name] = str(error)
    return sorted(images), problems


def images_in(file: Path, columns: Columns) -> list[SiteImage]:
    """Return the images, or vectors, of one file: itself, or the rows of a parquet file.

    Raises
    ------
    DatasetError
        It cannot be read, or holds no images.
    """
    try:
        status = file.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found = FoundFile(file.name, str(file), status.st_size, *times)
        return _images(found, readable(file.name), columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{str(file)!r}: {error}") from error


def contents(
    images: Sequence[SiteImage], columns: Columns, most: int
) -> Iterator[list[tuple[SiteImage, Source]]]:
    """Yield images with their file, or with their bytes where these are part of a file.

    In lists of at most so many; a parquet file is read once from its start to its end, and of
    what cannot be read the reason is given.
    """
    for path, group in groupby(images, key=lambda image: image.path):
        same = list(group)
        if same[0].row is None:
            yield [(image, Path(path)) for image in same]
            continue
        left = {image.row: image for image in same}
        problem: Exception = DatasetError("the file has fewer rows")
        try:
            with parquet.ParquetFile(path) as file:
                if isinstance(columns, VectorColumns):
                    name = same[0].name.rpartition("#")[0]
                    yield from _vector_rows(rows_of(file, columns, name), left, most)
                    continue
                column, start = _column(file.schema_arrow, columns), 0
                for batch in file.iter_batches(most, columns=[column]):
                    values = [_bytes(value) for value in batch.column(0).to_pylist()]
                    rows = [row for row in range(start, start + len(values)) if row in left]
                    yield [(left.pop(row), values[row - start]) for row in rows]
                    start += len(values)
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = error
        yield [(image, problem) for image in left.values()]


def content(image: SiteImage, columns: Columns) -> bytes | VectorRow:
    """Return the bytes of one image, or a row with a vector.

    Raises
    ------
    DatasetError
        It cannot be read any more.
    """
    try:
        if image.row is None:
            return Path(image.path).read_bytes()
        with parquet.ParquetFile(image.path) as file:
            if isinstance(columns, VectorColumns):
                return _vector_row(file, image, columns)
            column, left = _column(file.schema_arrow, columns), image.row
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if left < rows:
                    table = file.read_row_group(group, columns=[column])
                    return _bytes(table.column(0)[left].as_py())
                left -= rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{image.name}: cannot be read any more: {error}") from error
    raise DatasetError(f"{image.name}: cannot be read any more: the file has fewer rows")


def _vector_rows(
    rows: Iterator[tuple[int, VectorRow]], left: dict[int | None, SiteImage], most: int
) -> Iterator[list[tuple[SiteImage, Source]]]:
    part: list[tuple[SiteImage, Source]] = []
    for number, row in rows:
        if number in left:
            part.append((left.pop(number), row))
        if len(part) >= most:
            yield part
            part = []
    yield part


def _vector_row(file: parquet.ParquetFile, image: SiteImage, columns: VectorColumns) -> VectorRow:
    start, name = 0, image.name.rpartition("#")[0]
    for group in range(file.num_row_groups):
        start += file.metadata.row_group(group).num_rows
        if image.row is not None and image.row < start:
            return next(row for at, row in rows_of(file, columns, name, group) if at == image.row)
    raise DatasetError(f"{image.name}: cannot be read any more: the file has fewer rows")


def _images(file: FoundFile, name: str, columns: Columns) -> list[SiteImage]:
    facts = (file.size, file.modified_ns, file.changed_ns)
    if file.suffix == PARQUET:
        with parquet.ParquetFile(file.path) as table:
            if isinstance(columns, VectorColumns):
                the_vector_column(table.schema_arrow, columns.vector)
                the_shown_column(table.schema_arrow, columns.shown)
            else:
                _column(table.schema_arrow, columns)
            return [
                SiteImage(f"{name}#{row}", file.path, row, *facts)
                for row in range(table.metadata.num_rows)
            ]
    if isinstance(columns, VectorColumns):
        raise ValueError("no parquet file, by its name, and the run is about vectors")
    if file.suffix not in SUFFIXES:
        raise ValueError(NO_IMAGE)
    if file.size > LARGEST_FILE:
        raise ValueError(too_large(file.size, LARGEST_FILE))
    return [SiteImage(name, file.path, None, *facts)]


def _column(schema: pa.Schema, image_column: str) -> str:
    found = image_columns(schema, image_column)
    if len(found) != 1:
        names = ", ".join(schema.names)
        raise ValueError(f"no column that alone holds images (set image-column); it has {names}")
    return found[0]


def _bytes(value: object) -> bytes:
    inner = value.get("bytes") if isinstance(value, dict) else value
    return inner if isinstance(inner, bytes) else b""
