"""Arrays that travel: what they claim is checked before memory is taken for it.

Flower sends NumPy's file format. Its header says shape and type, and is the sender's word: a
decoder that believes it takes as much memory as it says. So it is compared with what is expected,
and with the number of bytes that have come.

Arrays that were made in this process, as the in-process engine hands them on, are not written in
that format and parsed again: for a small network that takes longer than all else around its
training.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import ArrayLike, NDArray

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


class HeldArray(Array):
    """One of Flower's arrays that becomes bytes only where it leaves the process.

    Parameters
    ----------
    values : ArrayLike
        Of plain numbers. They are not copied, and must not be changed any more.
    """

    def __init__(self, values: ArrayLike) -> None:
        held = np.asarray(values).view()
        held.flags.writeable = False
        self.__dict__.update(
            dtype=_name_of(held.dtype), shape=held.shape, stype=_NUMPY, _values=held
        )

    # Flower's is an attribute that can be set; nobody sets this one.
    @property
    def data(self) -> bytes:  # type: ignore[override]  # read-only here
        """The values in NumPy's file format, made anew each time."""
        buffer = io.BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> NDArray[np.generic]:
        """Return the values, which are read-only."""
        values: NDArray[np.generic] = self.__dict__["_values"]
        return values

    def deflate(self) -> bytes:
        """Return what Flower sends: the receiver gets one of Flower's own arrays."""
        plain = Array(dtype=self.dtype, shape=self.shape, stype=self.stype, data=self.data)
        return plain.deflate()

    @property
    def size_in_bytes(self) -> int:
        """Length of `data`, which is not made for it."""
        values = self.numpy()
        by_columns = bool(values.flags.f_contiguous and not values.flags.c_contiguous)
        return values.nbytes + _header_size(values.shape, values.dtype, by_columns)


def held_record(values: Mapping[str, ArrayLike]) -> ArrayRecord:
    """Return a record of arrays that become bytes only where they leave the process."""
    record = ArrayRecord()
    for name, value in values.items():
        record[name] = HeldArray(value)
    return record


def part_of(arrays: ArrayRecord, names: Iterable[str]) -> ArrayRecord:
    """Return a record of some of the arrays, which are not copied."""
    record = ArrayRecord()
    for name in names:
        record[name] = arrays[name]
    return record


def size_in_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes of arrays and names, as Flower counts them."""
    return sum(
        len(name) + (array.size_in_bytes if isinstance(array, HeldArray) else len(array.data))
        for name, array in arrays.items()
    )


def forms_of(arrays: ArrayRecord) -> dict[str, ArrayForm]:
    """Return the forms of arrays that are one's own, by name."""
    return {name: ArrayForm(tuple(a.shape), a.dtype) for name, a in arrays.items()}


def decode_all(
    arrays: ArrayRecord, expected: Mapping[str, ArrayForm], finite: bool = True
) -> dict[str, NDArray[np.generic]]:
    """Return arrays that came in, by name, in the order that is expected.

    They are read-only, and share the memory of what came in.

    Parameters
    ----------
    arrays : ArrayRecord
        What came in.
    expected : Mapping[str, ArrayForm]
        What it must be.
    finite : bool
        Whether values must be finite.

    Raises
    ------
    ValueError
        One is missing, unknown, of another form, not what it declares, or not finite.
    """
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))
        raise ValueError(f"arrays {shown(odd[:3])} are missing or unknown")
    decoded = {name: _decode(name, arrays[name], form) for name, form in expected.items()}
    for name, value in decoded.items():
        if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"array {name!r} has values that are not finite")
    return decoded


def _decode(name: str, array: Array, expected: ArrayForm) -> NDArray[np.generic]:
    if (tuple(array.shape), array.dtype) != (expected.shape, expected.dtype):
        declared = ArrayForm(tuple(array.shape), array.dtype)
        raise ValueError(f"array {name!r} is {declared}; expected is {expected}")
    if isinstance(array, HeldArray):
        return array.numpy()
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
    return values.reshape(expected.shape, order="F" if fortran else "C")


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


# NumPy makes this text anew each time, and hundreds are asked for in a round.
_name_of = functools.cache(str)


@functools.lru_cache(maxsize=4096)
def _header_size(shape: tuple[int, ...], dtype: np.dtype[np.generic], by_columns: bool) -> int:
    buffer = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": by_columns, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.tell()
