"""Parquet files with vectors and labels, as a data set.

Shapes: N rows of a split, D numbers of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from pyarrow import parquet

from ahfal_app.config import LONGEST_VECTOR
from ahfal_app.data.columns import encode_labels, label_column_of
from ahfal_app.data.files import PARQUET
from ahfal_app.data.images import Images, Shown
from ahfal_app.data.layout import TRAIN, parquet_layout
from ahfal_app.data.vectors import (
    shown_bytes,
    the_shown_column,
    the_vector_column,
    vector_columns,
    vectors_of,
)
from ahfal_app.errors import DatasetError
from ahfal_app.storage.names import readable

if TYPE_CHECKING:
    from ahfal_app.data.builders import Options
    from ahfal_app.data.files import FoundFile
    from ahfal_app.data.folders import Folder


def has_vectors(folder: Folder, vector_column: str) -> bool:
    """Return whether parquet files hold vectors, and none of them images.

    Where `vector-column` is set, images beside vectors are there to be looked at.
    """
    from ahfal_app.data.parquet import image_columns

    found = False
    for file in folder.files:
        if file.suffix == PARQUET:
            try:
                schema = parquet.read_schema(file.path)
            except (OSError, ValueError, pa.ArrowException):
                # Reading it tells what is wrong: as vectors, or as images with what lies beside it.
                return folder.path.is_file()
            if image_columns(schema, "") and not vector_column:
                return False
            found |= bool(vector_columns(schema, vector_column)) or bool(vector_column)
    return found


def length_of_vectors(folder: Folder, vector_column: str) -> int | None:
    """Return how many numbers a folder's vectors have, by its first file; None: it has none."""
    if not has_vectors(folder, vector_column):
        return None
    path = next(file.path for file in folder.files if file.suffix == PARQUET)
    with parquet.ParquetFile(path) as file:
        column = the_vector_column(file.schema_arrow, vector_column)
        batches = file.iter_batches(columns=[column])
        lengths = (vectors_of(batch.column(0)).values_ND.shape[1] for batch in batches)
        return next((length for length in lengths if length), 0)


#: Why a file beside tables of vectors is not used.
_BESIDE_VECTORS = "no parquet file, beside tables of vectors"


@dataclass(frozen=True)
class VectorTables:
    """What a folder of parquet files with vectors holds.

    Attributes
    ----------
    splits : dict[str, Images]
        The splits by name.
    class_names : tuple[str, ...]
        Names of the classes, by label.
    not_used : dict[str, str]
        What was found besides, and why it is not used.
    notes : tuple[str, ...]
        What may be meant otherwise.
    """

    splits: dict[str, Images]
    class_names: tuple[str, ...]
    not_used: dict[str, str]
    notes: tuple[str, ...]


def read_vectors(folder: Folder, options: Options) -> VectorTables:
    """Return the splits of parquet files with vectors.

    Raises
    ------
    DatasetError
        A file cannot be read, a column is missing, or a vector or a label cannot be used: the
        first one is named by its file and row.
    """
    files = [file for file in folder.files if file.suffix == PARQUET]
    layout = parquet_layout([file.name for file in files], folder.where)
    not_used = {readable(name): reason for name, reason in folder.problems.items()}
    not_used |= {
        readable(file.name): _BESIDE_VECTORS for file in folder.files if file.suffix != PARQUET
    }
    not_used |= {readable(files[i].name): reason for i, reason in layout.not_used.items()}
    tables: dict[str, list[tuple[str, pa.Table]]] = {}
    for split, positions in layout.splits.items():
        chosen = [files[position] for position in positions]
        tables[split] = [(readable(file.name), _read(file, options)) for file in chosen]
    vector = _the_same(
        {
            name: the_vector_column(table.schema, options.vector_column)
            for part in tables.values()
            for name, table in part
        },
        "vector-column",
    )
    wholes = {split: _joined(part, folder.where) for split, part in tables.items()}
    labels, class_names = _labels(wholes, options)
    numbers, found = None, {}
    for split in sorted(wholes, key=lambda name: name != TRAIN):
        vectors = vectors_of(wholes[split].column(vector), numbers)
        if vectors.problems:
            row = min(vectors.problems)
            raise DatasetError(
                f"{folder.where}: {_row_name(tables[split], row)}: {vectors.problems[row]}"
                f" ({len(vectors.problems)} of {len(vectors.values_ND)} rows cannot be used)"
            )
        numbers = vectors.values_ND.shape[1]
        if not 1 <= numbers <= LONGEST_VECTOR:
            raise DatasetError(
                f"{folder.where}: vectors of {numbers} numbers; allowed is 1 to {LONGEST_VECTOR}"
            )
        shown = _shown(wholes[split], options.shown_column)
        found[split] = Images(vectors.values_ND[:, None, None, :], labels[split], shown)
    return VectorTables(found, class_names, not_used, tuple(layout.notes))


def _labels(
    wholes: dict[str, pa.Table], options: Options
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    splits = {split: Dataset(table) for split, table in wholes.items()}
    column = label_column_of(splits[TRAIN].features, options.label_column)
    for split, dataset in splits.items():
        if column not in dataset.column_names:
            raise DatasetError(
                f"label-column={column!r}: split `{split}` has no such column; it has "
                f"{', '.join(dataset.column_names)}"
            )
    return encode_labels(splits, column)


def _read(file: FoundFile, options: Options) -> pa.Table:
    try:
        table = parquet.read_table(file.path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"dataset: {file.path} cannot be read: {error}") from error
    if not table.num_rows:
        raise DatasetError(f"dataset: {file.path} is empty; a split must have rows")
    return table


def _joined(part: list[tuple[str, pa.Table]], where: str) -> pa.Table:
    try:
        return pa.concat_tables([table for _, table in part])
    except pa.ArrowException as error:
        raise DatasetError(f"{where}: the files' columns differ: {error}") from error


def _the_same(columns: dict[str, str], key: str) -> str:
    distinct = sorted(set(columns.values()))
    if len(distinct) > 1:
        raise DatasetError(f"{key}: the files have different ones: {', '.join(distinct)}")
    return distinct[0]


def _row_name(part: list[tuple[str, pa.Table]], row: int) -> str:
    for name, table in part:
        if row < table.num_rows:
            return f"{name}#{row}"
        row -= table.num_rows
    raise IndexError(row)


def _shown(table: pa.Table, shown_column: str) -> Shown | None:
    column = the_shown_column(table.schema, shown_column)
    return None if column is None else Shown.of(shown_bytes(table.column(column)))
