"""Decode a data set into a folder of the cache.

This module and those it imports are loaded only when a data set is not in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import LONGEST_VECTOR
from ahfal_app.data.cache import NOT_USED, Description
from ahfal_app.data.images import Images
from ahfal_app.data.known.core.base import Arrays
from ahfal_app.data.not_used import summary
from ahfal_app.data.preparation import describe, hold_out
from ahfal_app.data.raw import Columns, RawData
from ahfal_app.data.rows import MISSING
from ahfal_app.errors import DatasetError
from ahfal_app.labels.spreadsheet import write_csv

if TYPE_CHECKING:
    from ahfal_app.data.decoding import Headers
    from ahfal_app.data.folders import Folder


#: A split's images, or its vectors.
Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How a data set is read.

    Attributes
    ----------
    image_column, label_column, test_fraction, image_size, vector_column, shown_column
        The settings of these names.
    only_tests : bool
        Whether all of a data set without a test split is for testing.
    """

    image_column: str
    label_column: str
    test_fraction: float
    image_size: int = 0
    only_tests: bool = False
    vector_column: str = ""
    shown_column: str = ""

    @property
    def columns(self) -> Columns:
        """Which columns of a table hold images and labels."""
        return Columns(self.image_column, self.label_column)

    def key(self) -> dict[str, object]:
        """Return what tells two ways of reading apart, for the cache."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name in ("image_column", "label_column", "test_fraction") or value
        }


def build_arrays(arrays: Arrays, where: str, options: Options, target: Path) -> Description:
    """Write a data set that is made in memory.

    Parameters
    ----------
    arrays : Arrays
        The data set.
    where : str
        What it is called in messages.
    options : Options
        How it is read.
    target : Path
        Folder of the entry.

    Raises
    ------
    DatasetError
        Its arrays do not go together.
    """
    if problem := _array_problem(arrays):
        raise DatasetError(f"{where}: {problem}")
    train_images_NHWC, train_labels_N = arrays.train_images_NHWC, arrays.train_labels_N
    if arrays.test_images_NHWC is None or arrays.test_labels_N is None:
        held = _held_out(train_labels_N, options)
        train, test = (
            _scaled(train_images_NHWC[rows], train_labels_N[rows], options) for rows in held
        )
    else:
        train = _scaled(train_images_NHWC, train_labels_N, options)
        test = _scaled(arrays.test_images_NHWC, arrays.test_labels_N, options)
    for split, images in (("train", train), ("test", test)):
        np.save(target / f"{split}-images.npy", images.images_NHWC, allow_pickle=False)
    return _finish(target, train, test, arrays.class_names)


def _array_problem(arrays: Arrays) -> str | None:
    splits = [("train", arrays.train_images_NHWC, arrays.train_labels_N)]
    if (arrays.test_images_NHWC is None) != (arrays.test_labels_N is None):
        return "it has test images without labels, or the other way round"
    if arrays.test_images_NHWC is not None and arrays.test_labels_N is not None:
        splits.append(("test", arrays.test_images_NHWC, arrays.test_labels_N))
    for split, images_NHWC, labels_N in splits:
        shape, kind = images_NHWC.shape, images_NHWC.dtype
        if not (_are_images(images_NHWC) or _are_vectors(images_NHWC)):
            return (
                f"its {split} images are {kind} {shape}; allowed is uint8 (N, height, width, "
                "channels) with 1 or 3 channels, or float32 (N, 1, 1, numbers), at least one"
            )
        if kind == np.float32 and not np.isfinite(images_NHWC).all():
            return f"its {split} vectors have numbers that are not finite; allowed are finite ones"
        if shape[1:] != arrays.train_images_NHWC.shape[1:]:
            return f"its {split} images are of another shape than those for training: {shape[1:]}"
        if kind != arrays.train_images_NHWC.dtype:
            return f"its {split} images are of another type than those for training: {kind}"
        if labels_N.shape != shape[:1] or labels_N.dtype != np.int64:
            return (
                f"its {split} labels are {labels_N.dtype} {labels_N.shape}; allowed is int64 (N,)"
            )
        if labels_N.min() < 0 or labels_N.max() >= len(arrays.class_names):
            return (
                f"its {split} labels go from {labels_N.min()} to {labels_N.max()}; allowed is 0 to "
                f"{len(arrays.class_names) - 1}, the number of its class names less one"
            )
    return None


def _are_images(images_NHWC: Pixels) -> bool:
    shape = images_NHWC.shape
    return images_NHWC.dtype == np.uint8 and len(shape) == 4 and shape[3] in (1, 3) and shape[0] > 0


def _are_vectors(vectors_N11D: Pixels) -> bool:
    shape = vectors_N11D.shape
    are_rows = len(shape) == 4 and shape[1:3] == (1, 1) and shape[0] > 0
    is_length = are_rows and 0 < shape[3] <= LONGEST_VECTOR
    return vectors_N11D.dtype == np.float32 and is_length


def _scaled(images_NHWC: Pixels, labels_N: NDArray[np.int64], options: Options) -> Images:
    # Vectors have no size: that one is set is told of when they are there.
    if not (size := options.image_size) or images_NHWC.dtype == np.float32:
        return Images(images_NHWC, labels_N)
    from PIL import Image

    from ahfal_app.data.pixels import pixels

    channels = images_NHWC.shape[3]
    shown = images_NHWC[..., 0] if channels == 1 else images_NHWC
    scaled = [pixels(Image.fromarray(image), (size, size, channels)) for image in shown]
    return Images(np.stack(scaled), labels_N)


def build_folder(folder: Folder, options: Options, target: Path) -> Description:
    """Write the data set of a local folder.

    Raises
    ------
    DatasetError
        It cannot be read, or its images or labels cannot be used.
    """
    from ahfal_app.data.folders import read_folder

    # Beside the entry there is room for what `datasets` writes in between.
    with TemporaryDirectory(dir=target) as work_dir:
        return _build(read_folder(folder, options.columns, Path(work_dir)), options, target)


def build_hub(path: str, configuration: str | None, options: Options, target: Path) -> Description:
    """Write a data set from Hugging Face.

    Raises
    ------
    DatasetError
        It cannot be loaded, or its images or labels cannot be used.
    """
    from ahfal_app.data.reading import read_hub

    return _build(read_hub(path, configuration, options.columns), options, target)


def _build(raw: RawData, options: Options, target: Path) -> Description:
    """Decode what can be used, and name what cannot."""
    from ahfal_app.data.decoding import read_headers

    headers = {
        split: read_headers(part.images, several=not raw.sets_aside)
        for split, part in raw.splits.items()
    }
    problems = {split: dict(found.problems) for split, found in headers.items()}
    # Some damage shows in decoding alone: what is left then is split and decoded anew.
    while True:
        _check_usable(raw, problems)
        decoded, damaged = _decoded(raw, headers, _rows(raw, problems, options), options, target)
        if not any(damaged.values()):
            break
        problems = {split: found | damaged[split] for split, found in problems.items()}
    not_used = raw.not_used | {
        raw.splits[split].images.name(row): reason
        for split, found in problems.items()
        for row, reason in found.items()
    }
    class_names, notes = raw.class_names, tuple(raw.notes)
    del raw  # Its tables are mapped into memory, and what follows goes over all pixels.
    description = _finish(target, decoded["train"], decoded["test"], class_names)
    return _with_not_used(description, not_used, notes, target)


def _with_not_used(
    description: Description, not_used: Mapping[str, str], notes: tuple[str, ...], target: Path
) -> Description:
    """Return what an entry says with what is not used, which is written down by name, too."""
    if not_used:
        write_csv(target / NOT_USED, ("file", "reason"), sorted(not_used.items()))
    notes += description.notes
    return description.model_copy(update={"not_used": summary(not_used), "notes": notes})


def _decoded(
    raw: RawData,
    headers: Mapping[str, Headers],
    rows: Mapping[str, tuple[str, NDArray[np.int64]]],
    options: Options,
    target: Path,
) -> tuple[dict[str, Images], dict[str, dict[int, str]]]:
    """Decode both splits; return what is damaged, too, by split and row as they were found."""
    from ahfal_app.data.decoding import common_shape, decode

    found = [(headers[source], rows_M) for source, rows_M in rows.values()]
    shape = common_shape(found, raw.where, options.image_size)
    images: dict[str, Images] = {}
    damaged: dict[str, dict[int, str]] = {split: {} for split in raw.splits}
    for split, (source, rows_M) in rows.items():
        part = raw.splits[source]
        images_MHWC, problems = decode(
            part.images,
            rows_M,
            shape,
            target / f"{split}-images.npy",
            scaled=options.image_size > 0,
            several=not raw.sets_aside,
        )
        images[split] = Images(images_MHWC, part.labels_N[rows_M])
        damaged[source] |= problems
    return images, damaged


def _check_usable(raw: RawData, problems: Mapping[str, Mapping[int, str]]) -> None:
    """Refuse what cannot be set aside: a row of a table, or all images of a class."""
    for split, part in raw.splits.items():
        found = problems[split]
        if found and not raw.sets_aside:
            row = min(found)
            missing = found[row] == MISSING
            told = MISSING if missing else f"the image cannot be read: {found[row]}"
            raise DatasetError(f"{raw.where}: {part.images.name(row)}: {told}")
        all_K = np.bincount(part.labels_N, minlength=len(raw.class_names))
        lost_K = np.bincount(part.labels_N[list(found)], minlength=len(raw.class_names))
        for label in np.flatnonzero((all_K > 0) & (all_K == lost_K)).tolist():
            row = next(row for row in found if part.labels_N[row] == label)
            raise DatasetError(
                f"{raw.where}: none of the {all_K[label]} images of the class "
                f"{raw.class_names[label]!r} in the split `{split}` can be used; "
                f"{part.images.name(row)}: {found[row]}"
            )


def _rows(
    raw: RawData, problems: Mapping[str, Mapping[int, str]], options: Options
) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Return of both splits where their rows lie, and which they are."""
    left = {
        split: np.setdiff1d(np.arange(len(part.images)), list(problems[split]))
        for split, part in raw.splits.items()
    }
    if "test" in left:
        return {split: (split, rows_M) for split, rows_M in left.items()}
    usable_M = left["train"]
    both = _held_out(raw.splits["train"].labels_N[usable_M], options)
    rows = {split: usable_M[held] for split, held in zip(("train", "test"), both, strict=True)}
    for split, rows_M in rows.items():
        if not len(rows_M):
            raise DatasetError(
                f"{raw.where}, test-fraction={options.test_fraction:g}: split `{split}` is empty"
            )
    return {split: ("train", rows_M) for split, rows_M in rows.items()}


def _held_out(
    labels_N: NDArray[np.int64], options: Options
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows for training and for testing."""
    if options.only_tests:
        # For measuring the mean and the deviation, they are all there twice.
        return np.arange(len(labels_N)), np.arange(len(labels_N))
    return hold_out(labels_N, options.test_fraction)


def build_vectors(folder: Folder, options: Options, target: Path) -> Description:
    """Write the data set of parquet files with vectors.

    Raises
    ------
    DatasetError
        They cannot be read, or a vector or a label cannot be used.
    """
    from ahfal_app.data.vector_tables import read_vectors

    tables = read_vectors(folder, options)
    found = tables.splits
    if "test" not in found:
        whole = found["train"]
        rows = dict(zip(("train", "test"), _held_out(whole.labels_N, options), strict=True))
        if not all(map(len, rows.values())):
            raise DatasetError(
                f"{folder.where}: label-column={options.label_column!r}: with "
                f"{len(np.unique(whole.labels_N))} classes of {len(whole)} samples and "
                f"test-fraction={options.test_fraction:g} a split is empty; each class keeps a "
                "sample to train with"
            )
        found = {split: _rows_of(whole, rows_N) for split, rows_N in rows.items()}
    for split, images in found.items():
        np.save(target / f"{split}-images.npy", images.images_NHWC, allow_pickle=False)
        if images.shown is not None:
            np.save(target / f"{split}-shown.npy", images.shown.content, allow_pickle=False)
            np.save(target / f"{split}-shown-ends.npy", images.shown.ends_N, allow_pickle=False)
    description = _finish(target, found["train"], found["test"], tables.class_names)
    return _with_not_used(description, tables.not_used, tables.notes, target)


def _rows_of(images: Images, rows_N: NDArray[np.int64]) -> Images:
    shown = images.shown.taken(rows_N) if images.shown else None
    return Images(images.images_NHWC[rows_N], images.labels_N[rows_N], shown)


def _finish(target: Path, train: Images, test: Images, class_names: tuple[str, ...]) -> Description:
    for split, images in (("train", train), ("test", test)):
        np.save(target / f"{split}-labels.npy", images.labels_N, allow_pickle=False)
    return describe(train, test, class_names)
