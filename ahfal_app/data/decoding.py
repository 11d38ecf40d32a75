"""Compressed images to one array of pixels on disk, a batch at a time.

Shapes: N images, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ahfal_app.data.pixels import COLOUR_MODES, GRAY_MODES, pixels
from ahfal_app.errors import DatasetError

#: Images that one thread takes at a time; a batch is one such part for each thread.
_PART = 128

#: EXIF orientations from this one on swap width and height.
_FIRST_TURNED = 5

_Encoded = dict[str, object]
_Result = TypeVar("_Result")


def image_shape(
    splits: dict[str, Dataset], column: str, image_size: int = 0
) -> tuple[int, int, int]:
    """Return height, width and channels of all images, reading only their headers.

    Grey images of any mode have 1 channel. All others have 3, and so has a mixture.

    Parameters
    ----------
    splits : dict[str, Dataset]
        The splits by name.
    column : str
        The column with the images.
    image_size : int
        Height and width that images are brought to; 0: they must have one size.

    Raises
    ------
    DatasetError
        Images are missing, unreadable, of different sizes or of more than 8 bits.
    """
    headers: Counter[tuple[int, int, str]] = Counter()
    for split, dataset in splits.items():
        for part in _in_threads(_read_headers, dataset, split, column):
            headers.update(part)
    modes = {mode for _, _, mode in headers}
    if unusable := modes - GRAY_MODES - COLOUR_MODES:
        raise DatasetError(
            f"image-column={column!r}: images of mode {', '.join(sorted(unusable))} cannot be "
            "used; convert them to 8 bits for each channel"
        )
    channels = 1 if modes <= GRAY_MODES else 3
    if image_size:
        return image_size, image_size, channels
    sizes: Counter[tuple[int, int]] = Counter()
    for (height, width, _), count in headers.items():
        sizes[height, width] += count
    if len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({count} images)" for (h, w), count in sizes.most_common(5))
        raise DatasetError(
            f"image-column={column!r}: images have {len(sizes)} different sizes (height x "
            f"width): {shown}; set image-size to bring all of them to one"
        )
    ((height, width),) = sizes
    return height, width, channels


def decode(
    dataset: Dataset, split: str, column: str, shape: tuple[int, int, int], path: Path
) -> NDArray[np.uint8]:
    """Decode a split's images into a `.npy` file and return it, memory-mapped.

    Parameters
    ----------
    dataset : Dataset
        The split.
    split : str
        Its name, for messages.
    column : str
        The column with the images.
    shape : tuple[int, int, int]
        Height, width and channels, as `image_shape` returned them.
    path : Path
        The file to write: uint8 of shape (N, H, W, C).

    Raises
    ------
    DatasetError
        An image is damaged.
    """
    images_NHWC = np.lib.format.open_memmap(path, "w+", np.uint8, (len(dataset), *shape))
    start = 0
    for part_NHWC in _in_threads(partial(_read_pixels, shape), dataset, split, column):
        images_NHWC[start : start + len(part_NHWC)] = part_NHWC
        start += len(part_NHWC)
    images_NHWC.flush()
    return images_NHWC


def _in_threads(
    read: Callable[[list[_Encoded], str, int], _Result], dataset: Dataset, split: str, column: str
) -> Iterator[_Result]:
    """Apply a function to all parts of a split, in order, with one batch in memory."""
    encoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        first = 0
        for batch in encoded.iter(_PART * workers):
            images = batch[column]
            starts = range(0, len(images), _PART)
            parts = [images[start : start + _PART] for start in starts]
            rows = [first + start for start in starts]
            yield from pool.map(read, parts, [split] * len(parts), rows)
            first += len(images)


def _read_headers(images: list[_Encoded], split: str, row: int) -> Counter[tuple[int, int, str]]:
    headers: Counter[tuple[int, int, str]] = Counter()
    for offset, encoded in enumerate(images):
        headers[_read(encoded, split, row + offset, _header)] += 1
    return headers


def _read_pixels(
    shape: tuple[int, int, int], images: list[_Encoded], split: str, row: int
) -> NDArray[np.uint8]:
    part_NHWC = np.empty((len(images), *shape), np.uint8)
    for offset, encoded in enumerate(images):
        part_NHWC[offset] = _read(encoded, split, row + offset, partial(pixels, shape=shape))
    return part_NHWC


def _read(
    encoded: _Encoded, split: str, row: int, use: Callable[[Image.Image], _Result]
) -> _Result:
    """Open an image and use it, naming the row if it is missing or damaged."""
    where = f"split `{split}`, row {row}"
    content, path = (encoded.get(key) for key in ("bytes", "path")) if encoded else (None, None)
    if content is None and path is None:
        raise DatasetError(f"{where}: the image is missing")
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else str(path)) as image:
            return use(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: the image cannot be read: {error}") from error


def _header(image: Image.Image) -> tuple[int, int, str]:
    width, height = image.size
    if image.getexif().get(ExifTags.Base.Orientation, 1) >= _FIRST_TURNED:
        width, height = height, width
    return height, width, image.mode
