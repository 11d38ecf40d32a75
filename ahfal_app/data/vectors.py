"""Vectors in the columns of parquet files: which column they are, and whether each can be used.

Shapes: N rows, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from ahfal_app.errors import DatasetError
from ahfal_app.parameters import suggestion

#: Names of a column that is shown to people, best first, where no setting names one.
SHOWN_NAMES = ("text", "link", "url", "image")


@dataclass(frozen=True)
class VectorColumns:
    """Which columns hold vectors, and what people who label see; empty: to be found."""

    vector: str = ""
    shown: str = ""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of one length, and why some rows have none.

    Attributes
    ----------
    values_ND : NDArray[np.float32]
        The vectors; zeros where a row has none that can be used. Shape (N, D).
    problems : dict[int, str]
        Why rows cannot be used, by row.
    """

    values_ND: NDArray[np.float32]
    problems: dict[int, str]


@dataclass(frozen=True, eq=False)
class VectorRow:
    """A row of a site: its name, its vector of whatever length, and what people see of it."""

    name: str
    values_D: NDArray[np.float32]
    shown: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it; the name is part of it, since equal rows may be two cases."""
        numbers = self.values_D.astype("<f4").tobytes()
        parts = (self.name.encode(), len(numbers).to_bytes(8, "little"), numbers, self.shown)
        return hashlib.sha256(b"\0".join(parts)).digest()


def vector_columns(schema: pa.Schema, vector_column: str = "") -> list[str]:
    """Return the columns that may hold vectors: lists of floating-point numbers.

    Parameters
    ----------
    schema : pa.Schema
        The file's columns.
    vector_column : str
        The setting of this name, the only one that counts; empty: all of them.
    """
    found = [str(field.name) for field in schema if _holds_vectors(field.type)]
    return [name for name in found if name == vector_column] if vector_column else found


def the_vector_column(schema: pa.Schema, vector_column: str) -> str:
    """Return the one column with vectors.

    Raises
    ------
    DatasetError
        There is none, or there are several.
    """
    found = vector_columns(schema, vector_column)
    if len(found) == 1:
        return found[0]
    names = schema.names
    if vector_column in names:
        raise DatasetError(
            f"vector-column={vector_column!r}: holds {schema.field(vector_column).type}; allowed "
            "are lists of float32, float64 or float16, all numbers of a sample in one list"
        )
    if vector_column:
        raise DatasetError(
            f"vector-column={vector_column!r}: no such column; there are {', '.join(names)}"
            f"{suggestion(vector_column, names)}"
        )
    what = f"columns {', '.join(found)} all fit" if found else "no column fits"
    raise DatasetError(f"vector-column: {what}; name one of {', '.join(names)}")


def the_shown_column(schema: pa.Schema, shown_column: str) -> str | None:
    """Return the column that people who label see: text, a link, or images; None: there is none.

    Raises
    ------
    DatasetError
        The column that is named is not there, or holds something else.
    """
    can_be_shown = [str(field.name) for field in schema if _can_be_shown(field.type)]
    if not shown_column:
        return next((name for name in SHOWN_NAMES if name in can_be_shown), None)
    if shown_column in schema.names and shown_column not in can_be_shown:
        raise DatasetError(
            f"shown-column={shown_column!r}: holds {schema.field(shown_column).type}; allowed is "
            "text or images"
        )
    if shown_column not in can_be_shown:
        raise DatasetError(
            f"shown-column={shown_column!r}: no such column; there are "
            f"{', '.join(schema.names)}{suggestion(shown_column, schema.names)}"
        )
    return shown_column


def vectors_of(column: pa.ChunkedArray | pa.Array, numbers: int | None = None) -> Vectors:
    """Return a column's vectors, checked row by row.

    Parameters
    ----------
    column : pa.ChunkedArray | pa.Array
        Lists of floating-point numbers.
    numbers : int | None
        Numbers D that a vector must have; None: as many as most rows have.
    """
    lists, lengths_N = _lists(column)
    present_N = lengths_N >= 0
    if numbers is None:
        counts = np.bincount(lengths_N[present_N]) if present_N.any() else np.zeros(1, np.int64)
        numbers = int(counts.argmax())
    fits_N = lengths_N == numbers
    # Flattened lists are one after the other, without those that are missing.
    flat = pc.cast(lists.flatten(), pa.float64()).to_numpy(zero_copy_only=False)
    kept = np.repeat(fits_N[present_N], lengths_N[present_N])
    values_ND = np.zeros((len(lengths_N), numbers), np.float32)
    with np.errstate(over="ignore"):
        values_ND[fits_N] = flat[kept].reshape(-1, numbers).astype(np.float32)
    finite_N = np.isfinite(values_ND).all(axis=1)
    values_ND[~finite_N] = 0.0
    problems = {
        int(row): "the vector is missing"
        if lengths_N[row] < 0
        else f"a vector of {lengths_N[row]} numbers; {numbers} are needed"
        for row in np.flatnonzero(~fits_N)
    }
    unfit = "a number of the vector is missing, NaN or beyond the range of float32"
    problems |= {int(row): unfit for row in np.flatnonzero(~finite_N & fits_N)}
    return Vectors(values_ND, problems)


def rows_of(
    file: parquet.ParquetFile, columns: VectorColumns, name: str, group: int | None = None
) -> Iterator[tuple[int, VectorRow]]:
    """Yield the rows of a parquet file, or of one of its groups, by number from its start.

    Parameters
    ----------
    file : parquet.ParquetFile
        The file.
    columns : VectorColumns
        Which columns to read.
    name : str
        What the file is called.
    group : int | None
        The only group of rows to read; None: all.

    Raises
    ------
    DatasetError
        There are no such columns.
    """
    vector = the_vector_column(file.schema_arrow, columns.vector)
    shown = the_shown_column(file.schema_arrow, columns.shown)
    groups = range(file.num_row_groups) if group is None else [group]
    start = sum(file.metadata.row_group(before).num_rows for before in range(group or 0))
    wanted = [vector] if shown is None else [vector, shown]
    for batch in file.iter_batches(1024, row_groups=list(groups), columns=wanted):
        lists, lengths = _lists(batch.column(vector))
        flat = pc.cast(lists.flatten(), pa.float32(), safe=False).to_numpy(zero_copy_only=False)
        ends = np.cumsum(np.maximum(lengths, 0))
        texts = shown_bytes(batch.column(shown)) if shown is not None else [b""] * len(lengths)
        for place, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            values = flat[end - max(length, 0) : end]
            yield start + place, VectorRow(f"{name}#{start + place}", values, texts[place])
        start += len(lengths)


def shown_bytes(column: pa.ChunkedArray | pa.Array) -> list[bytes]:
    """Return what people see of each row: text as UTF-8, or the file of an image."""
    return [_as_bytes(value) for value in column.to_pylist()]


def _as_bytes(value: object) -> bytes:
    inner = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(inner, str):
        return inner.encode()
    return inner if isinstance(inner, bytes) else b""


def _lists(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return a column as one array of lists, and how long each is; -1 where it is missing."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_fixed_size_list(whole.type):
        whole = whole.cast(pa.large_list(whole.type.value_type))
    lengths_N = pc.fill_null(pc.cast(pc.list_value_length(whole), pa.int64()), -1)
    return whole, lengths_N.to_numpy(zero_copy_only=False)


def _holds_vectors(kind: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _can_be_shown(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    return any(is_kind(kind) for is_kind in kinds) or bool(pa.types.is_large_binary(kind))
