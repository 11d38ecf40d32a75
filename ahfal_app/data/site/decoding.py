"""A site's images to one array of pixels; what cannot be decoded is set aside, not refused.

Shapes: N rows, one for each id; H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.cache import Description
from ahfal_app.data.encoded import UnusableImage, may_pass, told, use_image, without_warnings
from ahfal_app.data.pixels import pixels
from ahfal_app.data.site.files import Columns, SiteImage, Source, contents
from ahfal_app.data.vectors import VectorColumns, VectorRow

_PART = 64
_LONGEST_REASON = 120

_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Decoded:
    digest: bytes
    pixels_HWC: NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class _Problem:
    """Why an image cannot be used; whether it passes, as a disk that is away does."""

    reason: str
    passes: bool = False


def decode_site(
    images: Sequence[SiteImage],
    ids: Mapping[str, int],
    columns: Columns,
    shape: _Shape,
    target: Path,
) -> Description:
    """Write pixels, digests and problems of a site's images into an entry of the cache.

    `images.npy` (N, H, W, C) and `digests.npy` (N, 32) are uint8, by id, 0 where there is
    nothing; vectors are float32 (N, 1, 1, D). `problem-ids.npy` and `problems.npy` say what cannot
    be used, and why, and `passing.npy` (bool) whether the reason may be gone the next time.

    Parameters
    ----------
    images : Sequence[SiteImage]
        What the site has.
    ids : Mapping[str, int]
        Id of each image by name.
    columns : Columns
        How parquet files are read.
    shape : tuple[int, int, int]
        Height, width and channels that images are brought to; (1, 1, D) of vectors.
    target : Path
        The entry's folder.
    """
    rows = 1 + max(ids[image.name] for image in images)
    kind = np.float32 if isinstance(columns, VectorColumns) else np.uint8
    images_NHWC = np.lib.format.open_memmap(target / "images.npy", "w+", kind, (rows, *shape))
    digests_N32 = np.zeros((rows, 32), np.uint8)
    problems: dict[int, _Problem] = {}
    for image, found in _decoded(images, columns, shape):
        row = ids[image.name]
        if isinstance(found, _Problem):
            problems[row] = found
        else:
            images_NHWC[row] = found.pixels_HWC
            digests_N32[row] = np.frombuffer(found.digest, np.uint8)
    images_NHWC.flush()
    np.save(target / "digests.npy", digests_N32, allow_pickle=False)
    np.save(target / "problem-ids.npy", np.array(list(problems), np.int64), allow_pickle=False)
    texts = np.array([problem.reason for problem in problems.values()], f"U{_LONGEST_REASON}")
    np.save(target / "problems.npy", texts, allow_pickle=False)
    passing = np.array([problem.passes for problem in problems.values()], np.bool_)
    np.save(target / "passing.npy", passing, allow_pickle=False)
    # The same files brought to another shape are other images.
    fingerprint = hashlib.sha256(f"{shape} ".encode() + digests_N32.tobytes()).hexdigest()
    return Description(class_names=(), mean_C=(), std_C=(), fingerprint=fingerprint)


def pixels_of(
    images: Sequence[SiteImage], columns: Columns, shape: _Shape
) -> Iterator[tuple[SiteImage, NDArray[np.uint8] | NDArray[np.float32] | str]]:
    """Yield images in order with their pixels (H, W, C), uint8, or why they cannot be used.

    Of vectors, the numbers (1, 1, D), float32.

    A bounded number of them is in memory.
    """
    for image, found in _decoded(images, columns, shape):
        yield image, found.reason if isinstance(found, _Problem) else found.pixels_HWC


def can_be_decoded(image: SiteImage, columns: Columns, shape: tuple[int, int, int]) -> bool:
    """Return whether an image can be decoded now, which could not be read before."""
    return any(not isinstance(found, _Problem) for _, found in _decoded([image], columns, shape))


def _decoded(
    images: Sequence[SiteImage], columns: Columns, shape: _Shape
) -> Iterator[tuple[SiteImage, _Decoded | _Problem]]:
    """Decode in threads, in order, with a bounded number of images in memory."""
    workers = os.cpu_count() or 1
    decode = partial(_decode, shape)
    with without_warnings(), ThreadPoolExecutor(workers) as pool:
        batch: list[tuple[SiteImage, Source]] = []
        for part in contents(images, columns, _PART):
            batch += part
            if len(batch) >= _PART * workers:
                yield from _apply(pool, decode, batch)
                batch = []
        yield from _apply(pool, decode, batch)


def _apply(
    pool: ThreadPoolExecutor,
    decode: Callable[[Source], _Decoded | _Problem],
    batch: Sequence[tuple[SiteImage, Source]],
) -> Iterator[tuple[SiteImage, _Decoded | _Problem]]:
    found = pool.map(decode, [source for _, source in batch])
    return zip([image for image, _ in batch], found, strict=True)


def _decode(shape: _Shape, source: Source) -> _Decoded | _Problem:
    """Return digest and pixels of an image, or why it has none."""
    if isinstance(source, VectorRow):
        return _vector(shape, source)
    encoded = _read(source)
    if isinstance(encoded, Exception):
        return _problem(f"cannot be read: {told(encoded)}", may_pass(encoded))
    try:
        pixels_HWC = use_image(encoded, partial(pixels, shape=shape))
    except UnusableImage as problem:
        return _problem(problem.reason, problem.passes)
    return _Decoded(hashlib.sha256(encoded).digest(), pixels_HWC)


def _vector(shape: _Shape, row: VectorRow) -> _Decoded | _Problem:
    numbers = shape[-1]
    if len(row.values_D) != numbers:
        found = f"a vector of {len(row.values_D)} numbers" if len(row.values_D) else "no vector"
        return _problem(f"{found}; {numbers} are needed")
    if not np.isfinite(row.values_D).all():
        place = int(np.flatnonzero(~np.isfinite(row.values_D))[0])
        return _problem(f"number {place} of the vector is missing, NaN or infinite")
    return _Decoded(row.digest, row.values_D.reshape(shape))


def _read(source: Path | bytes | Exception) -> bytes | Exception:
    try:
        return source.read_bytes() if isinstance(source, Path) else source
    except (OSError, MemoryError) as error:
        return error


def _problem(reason: str, passes: bool = False) -> _Problem:
    return _Problem(reason[:_LONGEST_REASON], passes)
