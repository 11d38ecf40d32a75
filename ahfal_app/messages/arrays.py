"""Arrays that travel: what they claim is checked before memory is taken for it.

Flower sends NumPy's file format. Its header says shape and type, and is the sender's word: a
decoder that believes it takes as much memory as it says. So it is compared with what is expected,
and with the number of bytes that have come.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from ahfal_app.messages.fields import shown

_NUMPY = "numpy.ndarray"

# Version 1.0: two bytes say how long the header is. NumPy writes no other for plain types.
_MAGIC = b"\x93NUMPY\x01\x00"
_LENGTH_BYTES = 2
_LONGEST_HEADER = 4096
# Matched and not evaluated, since it is foreign text.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-z]\d{1,3})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18},? ?)*)\), \} *\n"
)


@dataclass(frozen=True)
class ArrayForm:
    """Shape and type of an array.

    Attributes
    ----------
    shape : tuple[int, ...]
        Its shape.
    dtype : str
        Its type, as NumPy calls it.
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Return it in words, short ones, since it may be somebody else's."""
        return f"{shown(self.dtype)[1:-1]} {shown(self.shape)}"


def forms_of(arrays: ArrayRecord) -> dict[str, ArrayForm]:
    """Return the forms of arrays that are one's own, by name."""
    return {name: ArrayForm(tuple(a.shape), a.dtype) for name, a in arrays.items()}


def decode_all(
    arrays: ArrayRecord, expected: Mapping[str, ArrayForm]
) -> dict[str, NDArray[np.generic]]:
    """Return arrays that came in, by name, in the order that is expected.

    They are read-only, and share the memory of what came in.

    Raises
    ------
    ValueError
        One is missing, unknown, of another form, not what it declares, or not finite.
    """
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))
        raise ValueError(f"arrays {shown(odd[:3])} are missing or unknown")
    return {name: _decode(name, arrays[name], form) for name, form in expected.items()}


def _decode(name: str, array: Array, expected: ArrayForm) -> NDArray[np.generic]:
    declared = ArrayForm(tuple(array.shape), array.dtype)
    if declared != expected:
        raise ValueError(f"array {name!r} is {declared}; expected is {expected}")
    if array.stype != _NUMPY:
        raise ValueError(f"array {name!r} cannot be decoded: it is {shown(array.stype)}")
    start, held, fortran = _header(name, array.data)
    if held != expected:
        raise ValueError(f"array {name!r} holds {held}, not what it declares")
    size = np.dtype(expected.dtype).itemsize * math.prod(expected.shape)
    if len(array.data) - start != size:
        raise ValueError(
            f"array {name!r} cannot be decoded: {len(array.data) - start} bytes instead of {size}"
        )
    values = np.frombuffer(array.data, expected.dtype, offset=start)
    value = values.reshape(expected.shape, order="F" if fortran else "C")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"array {name!r} has values that are not finite")
    return value


def _header(name: str, content: bytes) -> tuple[int, ArrayForm, bool]:
    """Return where the values begin, what the header says they are, and whether by columns."""
    begin = len(_MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(content[len(_MAGIC) : begin], "little")
    header = content[begin : begin + min(length, _LONGEST_HEADER)]
    match = _HEADER.fullmatch(header) if content.startswith(_MAGIC) else None
    try:
        dtype = str(np.dtype(match[1].decode())) if match else ""
    except TypeError:
        dtype = ""
    if match is None or not dtype:
        raise ValueError(f"array {name!r} cannot be decoded: it is no array of plain numbers")
    shape = tuple(int(size) for size in match[3].replace(b",", b" ").split())
    return begin + length, ArrayForm(shape, dtype), match[2] == b"True"
