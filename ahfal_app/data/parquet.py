"""Which columns of a parquet file hold images."""

from __future__ import annotations

import pyarrow as pa


def image_columns(schema: pa.Schema, image_column: str) -> list[str]:
    """Return the columns that may hold images: bytes, or structs with a field `bytes`.

    Parameters
    ----------
    schema : pa.Schema
        The file's columns.
    image_column : str
        The setting of this name, the only one that counts; empty: all of them.
    """
    found = [str(field.name) for field in schema if _holds_images(field.type)]
    return [name for name in found if name == image_column] if image_column else found


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
