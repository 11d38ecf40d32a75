"""The bits for each channel that an image file itself states.

Pillow opens many images of 16 bits in modes of 8, without saying so: what a scanner measured in
12 of 16 bits comes out black.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

#: Of formats that have no others, and where a damaged header does not say.
_USUAL = 8

_PNG_SIGNATURE = 8
_PNM_HEADER = 1 << 12
_PNM_FIELDS = 4
_CODESTREAM = b"\xff\x4f\xff\x51"
_COMPONENTS = 36
_VARIES = 255


def bits_per_channel(image: Image.Image, file: BinaryIO) -> int:
    """Return the largest number of bits that the file has for a channel.

    Parameters
    ----------
    image : Image.Image
        The opened image.
    file : BinaryIO
        The file that it was opened from; its position is kept.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    read = _READERS.get(image.format or "")
    if read is None:
        return _USUAL
    position = file.tell()
    try:
        file.seek(0)
        return read(file)
    finally:
        file.seek(position)


def _png(file: BinaryIO) -> int:
    file.seek(_PNG_SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            return file.read(9)[8]
        file.seek(length + 4, os.SEEK_CUR)
    return _USUAL


def _pnm(file: BinaryIO) -> int:
    header = _pnm_header(file.read(_PNM_HEADER))
    if len(header) <= _PNM_FIELDS:
        file.seek(0)
        header = _pnm_header(file.read())
    if len(header) < _PNM_FIELDS or header[0] in (b"P1", b"P4", b"Pf"):
        return _USUAL
    return int(header[_PNM_FIELDS - 1]).bit_length()


def _pnm_header(content: bytes) -> list[bytes]:
    """Return magic number, width, height and largest value, and behind them what follows."""
    # A comment goes to the end of its line, also in the middle of a number.
    return re.sub(rb"#[^\r\n]*[\r\n]?", b"", content).split(maxsplit=_PNM_FIELDS)


def _jpeg2000(file: BinaryIO) -> int:
    if file.read(4) == _CODESTREAM:
        return _codestream(file)
    depths = []
    for kind, end in _boxes(file, 0, file.seek(0, os.SEEK_END)):
        if kind == b"jp2h":
            depths += list(_header_boxes(file, end))
        elif kind == b"jp2c" and file.read(4) == _CODESTREAM:
            depths.append(_codestream(file))
            break
    return max(depths, default=_USUAL)


def _header_boxes(file: BinaryIO, end: int) -> Iterator[int]:
    for kind, _ in _boxes(file, file.tell(), end):
        if kind == b"ihdr":
            bits = file.read(11)[10]
            if bits != _VARIES:
                yield _depth(bits)
        elif kind == b"pclr":
            # A palette has bits of its own, whatever its indices have.
            (columns,) = file.read(3)[2:]
            yield from map(_depth, file.read(columns))


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield type and end of each box, with the file at its content."""
    while start + 8 <= end:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            head = 16
        box_end = end if length == 0 else start + length
        if box_end < start + head or box_end > end:
            return
        yield kind, box_end
        start = box_end


def _codestream(file: BinaryIO) -> int:
    """Return the depth of the deepest component; the file is behind the first two markers."""
    size = file.read(_COMPONENTS + 2)
    (components,) = struct.unpack(">H", size[_COMPONENTS:])
    depths = file.read(3 * components)[::3]
    return max(map(_depth, depths), default=_USUAL)


def _depth(bits: int) -> int:
    # The highest bit says whether there is a sign.
    return (bits & 0x7F) + 1


_READERS: dict[str, Callable[[BinaryIO], int]] = {
    "PNG": _png,
    "PPM": _pnm,
    "JPEG2000": _jpeg2000,
}
