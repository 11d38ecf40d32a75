"""Arrays that came in: as NumPy would read them, or refused before memory is taken for them."""

from __future__ import annotations

import io
import math
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.flat import ArrayForm
from ahfal_app.messages.arrays import (
    HeldArray,
    decode_all,
    held_record,
    layout_of,
    size_in_bytes,
)

_FORM = {"w": ArrayForm((3, 2), "float32")}


def _record(content: bytes, shape: tuple[int, ...] = (3, 2), dtype: str = "float32") -> ArrayRecord:
    return ArrayRecord({"w": Array(dtype, shape, "numpy.ndarray", content)})


def _npy(header: bytes, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + body


def _saved(array: np.ndarray) -> bytes:
    return bytes(Array(array).data)


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"]),
    by_columns=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_numpy_saves_comes_back(shape: list[int], dtype: str, by_columns: bool, seed: int):
    array = np.asarray(np.random.default_rng(seed).random(shape) * 100).astype(dtype)
    if by_columns:
        array = np.asfortranarray(array).reshape(shape)
    record = ArrayRecord({"a": Array(array)})
    decoded = decode_all(record, layout_of(record))["a"]
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert np.array_equal(decoded, array)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        # 37 GiB, in the header alone.
        (
            _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000, 1000000), }\n"),
            "holds float32 (10000, 1000000), not what it declares",
        ),
        (
            _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n", bytes(23)),
            "23 bytes instead of 24",
        ),
        (
            _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n", bytes(25)),
            "25 bytes instead of 24",
        ),
        (_npy(b"{'descr': '>f4', 'fortran_order': False, 'shape': (3, 2), }\n", bytes(24)), ">f4"),
        (_npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 2), }\n", bytes(24)), "plain"),
        (_npy(b"{'descr': '<f99', 'fortran_order': False, 'shape': (3, 2), }\n"), "plain numbers"),
        (_npy(b"(" * 4000), "plain numbers"),
        (_npy(b"__import__('os').abort()"), "plain numbers"),
        (
            _npy(
                b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n",
                bytes(24),
                b"\x02\x00",
            ),
            "plain numbers",
        ),
        (b"", "plain numbers"),
        (b"\x93NUMPY", "plain numbers"),
        (b"garbage", "plain numbers"),
        (b"\x80\x04\x95" + bytes(40), "plain numbers"),
        (_saved(np.array([[1, 2], [3, np.nan], [5, 6]], np.float32)), "not finite"),
        (_saved(np.array([[1, 2], [3, -np.inf], [5, 6]], np.float32)), "not finite"),
        (_saved(np.zeros((2, 3), np.float32)), "holds float32 (2, 3)"),
        (_saved(np.zeros((3, 2), np.float64)), "holds float64 (3, 2)"),
    ],
)
def test_what_is_no_such_array_is_refused_by_name(content: bytes, why: str):
    with pytest.raises(ValueError, match=r"^array 'w' ") as raised:
        decode_all(_record(content), _FORM)
    assert why in str(raised.value)
    assert len(str(raised.value)) < 300


def test_an_archive_is_no_array():
    """NumPy would open it, and give something that has no shape."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("w.npy", _saved(np.zeros((3, 2), np.float32)))
    with pytest.raises(ValueError, match="plain numbers"):
        decode_all(_record(content.getvalue()), _FORM)


def test_no_memory_is_taken_for_what_is_only_claimed():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (20000, 1000000), }\n"
    record = _record(_npy(header), (20000, 1000000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="0 bytes instead of 80000000000"):
            decode_all(record, {"w": ArrayForm((20000, 1000000), "float32")})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (Array("float32", (10**18,), "numpy.ndarray", b""), "expected is float32 (3, 2)"),
        (Array("float32" * 10**5, (3, 2), "numpy.ndarray", b""), "expected is float32 (3, 2)"),
        (Array("float32", (1,) * 10**5, "numpy.ndarray", b""), "expected is float32 (3, 2)"),
        (Array("float32", (3, 2), "pickle" * 10**6, b""), "cannot be decoded"),
    ],
)
def test_what_an_array_declares_is_checked_and_told_shortly(declared: Array, why: str):
    with pytest.raises(ValueError, match=r"^array 'w' ") as raised:
        decode_all(ArrayRecord({"w": declared}), _FORM)
    assert why in str(raised.value)
    assert len(str(raised.value)) < 300


def test_names_are_those_of_the_model_and_told_without_control_characters():
    names = {"w\x1b[2J" + "x" * 10**6: Array(np.zeros((3, 2), np.float32))}
    with pytest.raises(ValueError, match="missing or unknown") as raised:
        decode_all(ArrayRecord(names), _FORM)
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 300


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool"]),
    by_columns=st.booleans(),
)
def test_a_held_array_travels_as_flowers_own(shape: list[int], dtype: str, by_columns: bool):
    values = np.arange(math.prod(shape)).reshape(shape, order="F" if by_columns else "C")
    values = values.astype(dtype, order="K")
    held, own = HeldArray(values), Array(values)
    assert (held.dtype, held.shape, held.stype, held.data) == (
        own.dtype,
        own.shape,
        own.stype,
        own.data,
    )
    assert held.deflate() == own.deflate()
    assert held.object_id == own.object_id
    assert size_in_bytes(held_record({"a": values})) == ArrayRecord({"a": own}).count_bytes()
    assert np.array_equal(held.numpy(), values)


def test_nobody_changes_a_held_array():
    held = HeldArray(np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        held.numpy()[0] = 1
    with pytest.raises(AttributeError):
        held.data = b""


def test_held_arrays_are_held_against_the_form_too():
    record = held_record({"w": np.full((3, 2), np.inf, np.float32)})
    with pytest.raises(ValueError, match="'w' has values that are not finite"):
        decode_all(record, _FORM)
    with pytest.raises(ValueError, match="expected is float32"):
        decode_all(held_record({"w": np.zeros((3, 2))}), _FORM)
    assert np.isinf(decode_all(record, _FORM, finite=False)["w"]).all()
