"""Compressed images to one array of pixels on disk, a batch at a time.

Shapes: N images of a split, M of them that are used, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ahfal_app.data.encoded import UnusableImage, use_image, without_warnings
from ahfal_app.data.pixels import GRAY_MODES, pixels, upright_size
from ahfal_app.data.rows import MISSING, Encoded, EncodedImages
from ahfal_app.errors import ImageSizesDiffer

#: Images that one thread takes at a time; a batch is one such part for each thread.
_PART = 128

_Result = TypeVar("_Result")
_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Headers:
    """What the headers of a split's images say.

    Attributes
    ----------
    sizes_N2 : NDArray[np.int64]
        Height and width, upright; 0 where the image cannot be used.
    is_gray_N : NDArray[np.bool_]
        Whether an image has one channel.
    problems : dict[int, str]
        Why images cannot be used, by row.
    """

    sizes_N2: NDArray[np.int64]
    is_gray_N: NDArray[np.bool_]
    problems: dict[int, str]


def read_headers(images: EncodedImages, several: bool) -> Headers:
    """Read the headers of all images of a split.

    Parameters
    ----------
    images : EncodedImages
        The images.
    several : bool
        Whether the first one is meant where a file holds several images.
    """
    sizes_N2 = np.zeros((len(images), 2), np.int64)
    is_gray_N = np.zeros(len(images), np.bool_)
    problems: dict[int, str] = {}
    rows_N = np.arange(len(images))
    for row, found in zip(rows_N, _used(images, rows_N, _header, several), strict=True):
        if isinstance(found, UnusableImage):
            problems[int(row)] = found.reason
        else:
            *sizes_N2[row], is_gray_N[row] = found
    return Headers(sizes_N2, is_gray_N, problems)


def common_shape(
    headers: Sequence[tuple[Headers, NDArray[np.int64]]], name: str, image_size: int = 0
) -> _Shape:
    """Return height, width and channels that all images are brought to.

    Grey images of any mode have 1 channel. All others have 3, and so has a mixture.

    Parameters
    ----------
    headers : Sequence[tuple[Headers, NDArray[np.int64]]]
        Those of each split, and its rows that are used.
    name : str
        The data set, for messages.
    image_size : int
        Height and width that images are brought to; 0: they must have one size.

    Raises
    ------
    ImageSizesDiffer
        Images are of different sizes, and none is wanted.
    """
    is_gray_M = np.concatenate([split.is_gray_N[rows_M] for split, rows_M in headers])
    channels = 1 if is_gray_M.all() else 3
    if image_size:
        return image_size, image_size, channels
    sizes_M2 = np.concatenate([split.sizes_N2[rows_M] for split, rows_M in headers])
    sizes = Counter(map(tuple, sizes_M2.tolist()))
    if len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({count} images)" for (h, w), count in sizes.most_common(5))
        raise ImageSizesDiffer(
            f"{name}: images have {len(sizes)} different sizes (height x width): {shown}; set "
            "image-size to bring all of them to one"
        )
    ((height, width),) = sizes
    return height, width, channels


def decode(
    images: EncodedImages,
    rows_M: NDArray[np.int64],
    shape: _Shape,
    path: Path,
    *,
    scaled: bool,
    several: bool,
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode images into a `.npy` file; return it, memory-mapped, and what is damaged, by row.

    Parameters
    ----------
    images : EncodedImages
        The images of a split.
    rows_M : NDArray[np.int64]
        Those that are wanted, in this order.
    shape : tuple[int, int, int]
        Height, width and channels, as `common_shape` returned them.
    path : Path
        The file to write: uint8 of shape (M, H, W, C).
    scaled : bool
        Whether images may be of another size, and are scaled to this one.
    several : bool
        Whether the first one is meant where a file holds several images.
    """
    problems: dict[int, str] = {}
    use = partial(pixels, shape=shape) if scaled else partial(_exact_pixels, shape)
    # Written in order, and not through memory-mapped pages, which would all stay in memory.
    with path.open("wb") as file:
        whole = {"descr": "|u1", "fortran_order": False, "shape": (len(rows_M), *shape)}
        np.lib.format.write_array_header_1_0(file, whole)
        for place, found in enumerate(_used(images, rows_M, use, several)):
            if isinstance(found, UnusableImage):
                problems[int(rows_M[place])] = found.reason
                file.write(bytes(math.prod(shape)))
            else:
                file.write(found.tobytes())
        file.flush()
        os.fsync(file.fileno())
    images_MHWC: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return images_MHWC, problems


def _used(
    images: EncodedImages,
    rows_M: NDArray[np.int64],
    use: Callable[[Image.Image], _Result],
    several: bool,
) -> Iterator[_Result | UnusableImage]:
    """Apply a function to images in threads, in order, with one batch in memory."""
    workers = os.cpu_count() or 1
    apply = partial(_apply, use, several)
    with without_warnings(), ThreadPoolExecutor(workers) as pool:
        for batch in images.batches(rows_M, _PART * workers):
            parts = [batch[start : start + _PART] for start in range(0, len(batch), _PART)]
            for part in pool.map(apply, parts):
                yield from part


def _apply(
    use: Callable[[Image.Image], _Result], several: bool, images: Sequence[Encoded]
) -> list[_Result | UnusableImage]:
    found: list[_Result | UnusableImage] = []
    for encoded in images:
        try:
            if encoded is None:
                raise UnusableImage(MISSING)
            found.append(use_image(encoded, use, several))
        except UnusableImage as problem:
            found.append(problem)
    return found


def _header(image: Image.Image) -> tuple[int, int, bool]:
    height, width = upright_size(image)
    return height, width, image.mode in GRAY_MODES


def _exact_pixels(shape: _Shape, image: Image.Image) -> NDArray[np.uint8]:
    found = pixels(image, shape)
    height, width, _ = shape
    # Decoding has turned it upright.
    if image.size != (width, height):
        raise UnusableImage(
            f"its header says {height}x{width}, but it is {image.height}x{image.width}"
        )
    return found
