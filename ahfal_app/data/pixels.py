"""One opened image to pixels of a given shape: the rules that all data sets share.

Shapes: H height, W width, C channels (1 or 3).

An image is turned as its EXIF orientation says, converted to 8 bits grey or RGB (palettes are
looked up, CMYK is converted, transparency is dropped), and, where it has another size than is
wanted, scaled so that the whole of it fits, in its own proportions, and centred on black.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

GRAY_MODES = frozenset({"1", "L", "LA", "La"})
COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})

#: EXIF orientations that swap width and height; others that no standard knows change nothing.
_TURNED = (5, 6, 7, 8)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of an opened image, turned as its orientation says.

    Only its header is read, as far as its format allows.
    """
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # What Pillow calls the size of a TIFF may be that of the turned image.
        tags = image.tag_v2
        width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    if image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
        width, height = height, width
    return height, width


def pixels(image: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return an image's pixels, uint8 of shape (H, W, C).

    Parameters
    ----------
    image : Image.Image
        An opened image of one of the modes above.
    shape : tuple[int, int, int]
        Height, width and channels.

    Raises
    ------
    OSError, SyntaxError, ValueError
        The image is damaged.
    """
    height, width, channels = shape
    ImageOps.exif_transpose(image, in_place=True)
    mode = "L" if channels == 1 else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    if converted.size != (width, height):
        converted = ImageOps.pad(converted, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(converted, np.uint8).reshape(shape)
