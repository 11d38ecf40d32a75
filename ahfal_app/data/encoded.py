"""One encoded image: what it takes to be used, and why it is not. The same for all data.

What cannot be used is told in words that are true of that file, and never by whatever Pillow's
decoders happen to raise.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from ahfal_app.data.bit_depth import bits_per_channel
from ahfal_app.data.files import FORMATS
from ahfal_app.data.pixels import COLOUR_MODES, GRAY_MODES

#: An image with more pixels is not decoded; Pillow warns of decompression bombs from here on.
MOST_PIXELS = 89_478_485

_MOST_BITS = 8
_PREFIX = 16

# Whatever Pillow's decoders raise on damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_Result = TypeVar("_Result")


class UnusableImage(Exception):
    """An image that cannot be used.

    Parameters
    ----------
    reason : str
        Why.
    passes : bool
        Whether the reason may pass by itself, as a disk does that is away.
    """

    def __init__(self, reason: str, passes: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passes = passes


def use_image(
    source: str | bytes, use: Callable[[Image.Image], _Result], several: bool = False
) -> _Result:
    """Open an image, and return what a function makes of it.

    Parameters
    ----------
    source : str | bytes
        The path of its file, or its bytes.
    use : Callable
        Is given the opened image.
    several : bool
        Whether of several images in one file the first one is meant.

    Raises
    ------
    UnusableImage
        It is damaged, too large or too deep, or no image of the formats that are read.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _use(file, use, several)
    except (OSError, MemoryError) as error:
        raise UnusableImage(f"cannot be read: {told(error)}", may_pass(error)) from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow from warning of metadata that does not matter here; the rest is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def told(error: Exception) -> str:
    """Return what an error says, or what it is called."""
    return str(error) or type(error).__name__


def may_pass(error: Exception) -> bool:
    """Return whether it may be the machine's fault: no memory, no right, a disk that is away."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


def _use(file: BinaryIO, use: Callable[[Image.Image], _Result], several: bool) -> _Result:
    try:
        with Image.open(file, formats=FORMATS) as image:
            if reason := _reason_against(image, file, several):
                raise UnusableImage(reason)
            return use(image)
    except UnidentifiedImageError:
        raise UnusableImage(_why_unidentified(file)) from None
    except _DAMAGED as error:
        raise UnusableImage(f"cannot be decoded: {told(error)}", may_pass(error)) from error


def _reason_against(image: Image.Image, file: BinaryIO, several: bool) -> str:
    """Return why an image that opens is not used, or nothing."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        return f"too large: {width}x{height} pixels; at most {MOST_PIXELS} are decoded"
    bits = bits_per_channel(image, file)
    if bits > _MOST_BITS or image.mode not in GRAY_MODES | COLOUR_MODES:
        depth = f"{bits} bits for each channel, " if bits > _MOST_BITS else ""
        return f"{depth}mode {image.mode}; convert it to 8 bits for each channel"
    # Cameras put a preview behind the picture of a JPEG: that alone is no reason.
    frames = 1 if several or image.format == "MPO" else getattr(image, "n_frames", 1)
    return f"{frames} images in one file" if frames > 1 else ""


def _why_unidentified(file: BinaryIO) -> str:
    """Return whether a file is damaged or something else: Pillow says the same of both."""
    file.seek(0)
    prefix = file.read(_PREFIX)
    if not prefix:
        return "empty"
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix):
            file.seek(0)
            try:
                factory(file, "")
            except _DAMAGED as error:
                return f"cannot be decoded: {name}: {told(error)}"
    return f"no image of the formats that are read: {', '.join(FORMATS)}"
