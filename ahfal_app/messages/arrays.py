"""Arrays that travel: what they claim is checked before memory is taken for it.

Flower sends NumPy's file format. Its header says shape and type, and is the sender's word: a
decoder that believes it takes as much memory as it says. So it is compared with what is expected,
and with the number of bytes that have come.

A model that was made in this process, as the in-process engine hands it on, is not written in that
format and parsed again, nor handled array by array: for a small network that takes longer than all
else around its training. It is a `FlatRecord`, and is held against the same forms.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Self

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import ArrayLike, NDArray

from ahfal_app.flat import ArrayForm, FlatArrays, Layout, dtype_name
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
            dtype=dtype_name(held.dtype), shape=held.shape, stype=_NUMPY, _values=held
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


class FlatRecord(ArrayRecord):
    """One of Flower's records whose arrays lie in one flat array for each type.

    Flower's arrays are made of them where somebody asks for one by its name, or sends them.

    Parameters
    ----------
    arrays : FlatArrays
        Not copied; must not be changed any more.
    """

    def __init__(self, arrays: FlatArrays) -> None:
        super().__init__()
        self.__dict__["_flat"] = arrays.read_only()

    @property
    def flat(self) -> FlatArrays | None:
        """The arrays, read-only; None where single ones have been replaced."""
        flat: FlatArrays | None = self.__dict__["_flat"]
        return flat

    def __getitem__(self, name: str) -> Array:
        """Return an array."""
        return self._named()[name]

    def __setitem__(self, name: str, array: Array) -> None:
        """Replace an array, or add one; from then on this is a record like any other."""
        self._named()
        self.__dict__["_flat"] = None
        super().__setitem__(name, array)

    def __delitem__(self, name: str) -> None:
        """Remove an array; from then on this is a record like any other."""
        self._named()
        self.__dict__["_flat"] = None
        super().__delitem__(name)

    def __iter__(self) -> Iterator[str]:
        """Return the names in order."""
        return iter(self._named())

    def __len__(self) -> int:
        """Return how many arrays there are."""
        return len(self._named())

    def __contains__(self, name: object) -> bool:
        """Return whether there is an array of a name."""
        return name in self._named()

    def __eq__(self, other: object) -> bool:
        """Return whether another record has equal arrays."""
        self._named()
        return super().__eq__(other.copy() if isinstance(other, FlatRecord) else other)

    # Like all of Flower's records, which can be changed.
    __hash__ = None  # type: ignore[assignment]  # can be changed

    def __repr__(self) -> str:
        """Return the arrays as text."""
        return repr(self._named())

    def keys(self) -> KeysView[str]:
        """Return the names in order."""
        return self._named().keys()

    def values(self) -> ValuesView[Array]:
        """Return the arrays in order."""
        return self._named().values()

    def items(self) -> ItemsView[str, Array]:
        """Return names and arrays in order."""
        return self._named().items()

    def copy(self) -> Self:
        """Return a record of the same arrays."""
        self._named()
        same = super().copy()
        same.__dict__["_flat"] = self.flat
        return same

    def deflate(self) -> bytes:
        """Return what Flower sends: the receiver gets one of Flower's own records."""
        plain = ArrayRecord()
        plain.__dict__["_data"] = self._named()
        return plain.deflate()

    def __reduce__(self) -> tuple[object, ...]:
        """Return how it is made again, in another process of a simulation."""
        if self.flat is not None:
            return FlatRecord, (self.flat,)
        return _plain_record, (dict(self._named()),)

    def _named(self) -> dict[str, Array]:
        """Return Flower's arrays by name, made at the first call."""
        named: dict[str, Array] = self.__dict__["_data"]
        if not named and self.flat is not None:
            # Row by row, whatever the flat ones are: sums over an array depend on its order.
            named.update({name: HeldArray(_by_rows(value)) for name, value in self.flat.items()})
        return named


def _plain_record(arrays: dict[str, Array]) -> ArrayRecord:
    record = ArrayRecord()
    record.__dict__["_data"] = arrays
    return record


def held_record(values: Mapping[str, ArrayLike], as_in: Layout | None = None) -> FlatRecord:
    """Return a record of arrays that become bytes only where they leave the process.

    Parameters
    ----------
    values : Mapping[str, ArrayLike]
        What lies in flat arrays already is not copied, and must not be changed any more.
    as_in : Layout, optional
        How those in this process that the record goes to hold such arrays, if they do.
    """
    return FlatRecord(FlatArrays.of(values, as_in))


def part_of(arrays: ArrayRecord, names: Iterable[str]) -> ArrayRecord:
    """Return a record of some of the arrays, which are not copied."""
    record = ArrayRecord()
    for name in names:
        record[name] = arrays[name]
    return record


def size_in_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes of arrays and names, as Flower counts them."""
    if isinstance(arrays, FlatRecord) and arrays.flat is not None:
        return _size_of_layout(arrays.flat.layout)
    return sum(
        len(name) + (array.size_in_bytes if isinstance(array, HeldArray) else len(array.data))
        for name, array in arrays.items()
    )


def layout_of(arrays: ArrayRecord) -> Layout:
    """Return the layout of arrays that are one's own."""
    if isinstance(arrays, FlatRecord) and arrays.flat is not None:
        return arrays.flat.layout
    return Layout.of({name: ArrayForm(tuple(a.shape), a.dtype) for name, a in arrays.items()})


def own_arrays(arrays: ArrayRecord) -> FlatArrays:
    """Return arrays that are one's own, read-only."""
    return decode_all(arrays, layout_of(arrays), finite=False)


def decode_all(
    arrays: ArrayRecord, expected: Mapping[str, ArrayForm], finite: bool = True
) -> FlatArrays:
    """Return arrays that came in, by name, in the order that is expected.

    They are read-only, and those of a `FlatRecord` share its memory.

    Parameters
    ----------
    arrays : ArrayRecord
        What came in.
    expected : Mapping[str, ArrayForm]
        What it must be; a `Layout`, or the forms of one.
    finite : bool
        Whether values must be finite.

    Raises
    ------
    ValueError
        One is missing, unknown, of another form, not what it declares, or not finite.
    """
    layout = Layout.of(expected)
    flat = arrays.flat if isinstance(arrays, FlatRecord) else None
    if flat is None or flat.layout != layout:
        flat = _decoded(arrays, layout)
    if finite and (name := first_not_finite(flat)) is not None:
        raise ValueError(f"array {name!r} has values that are not finite")
    return flat


def first_not_finite(arrays: FlatArrays) -> str | None:
    """Return the first array that has values that are not finite, or None."""
    if all(np.isfinite(part).all() for part in arrays.parts.values()):
        return None
    return next(name for name, value in arrays.items() if not np.isfinite(value).all())


def _decoded(arrays: ArrayRecord, layout: Layout) -> FlatArrays:
    """Return arrays that came in one by one, as one flat array for each type."""
    if set(arrays) != set(layout):
        odd = sorted(set(arrays) ^ set(layout))
        raise ValueError(f"arrays {shown(odd[:3])} are missing or unknown")
    # Memory is taken once all of them have been found to be what is expected.
    decoded = {name: _decode(name, arrays[name], form) for name, form in layout.items()}
    flat = FlatArrays.empty(layout)
    for name, value in decoded.items():
        flat[name][...] = value
    return flat.read_only()


def _decode(name: str, array: Array, expected: ArrayForm) -> NDArray[np.generic]:
    if (tuple(array.shape), array.dtype) != (expected.shape, expected.dtype):
        declared = ArrayForm(tuple(array.shape), array.dtype)
        raise ValueError(f"array {name!r} is {_told(declared)}; expected is {_told(expected)}")
    if isinstance(array, HeldArray):
        return array.numpy()
    if array.stype != _NUMPY:
        raise ValueError(f"array {name!r} cannot be decoded: it is {shown(array.stype)}")
    start, held, fortran = _header(name, array.data)
    if held != expected:
        raise ValueError(f"array {name!r} holds {_told(held)}, not what it declares")
    size = np.dtype(expected.dtype).itemsize * math.prod(expected.shape)
    if len(array.data) - start != size:
        raise ValueError(
            f"array {name!r} cannot be decoded: {len(array.data) - start} bytes instead of {size}"
        )
    values = np.frombuffer(array.data, expected.dtype, offset=start)
    return values.reshape(expected.shape, order="F" if fortran else "C")


def _by_rows(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return values if values.flags.c_contiguous else values.copy(order="C")


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


def _told(form: ArrayForm) -> str:
    """Return a form in words, short ones, since it may be somebody else's."""
    return f"{shown(form.dtype)[1:-1]} {shown(form.shape)}"


@functools.lru_cache(maxsize=64)
def _size_of_layout(layout: Layout) -> int:
    return sum(
        len(name)
        + math.prod(form.shape) * np.dtype(form.dtype).itemsize
        + _header_size(form.shape, np.dtype(form.dtype), False)
        for name, form in layout.items()
    )


@functools.lru_cache(maxsize=4096)
def _header_size(shape: tuple[int, ...], dtype: np.dtype[np.generic], by_columns: bool) -> int:
    buffer = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": by_columns, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.tell()
