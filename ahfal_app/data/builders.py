"""Decode a data set into a folder of the cache.

This module and those it imports are loaded only when a data set is not in the cache.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.cache import Description
from ahfal_app.data.images import Images
from ahfal_app.data.preparation import describe, hold_out
from ahfal_app.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset

    from ahfal_app.data.reading import RawSplits


@dataclass(frozen=True)
class Options:
    """How a data set is read.

    Attributes
    ----------
    image_column, label_column, test_fraction, image_size
        The settings of these names.
    only_tests : bool
        Whether all of a data set without a test split is for testing.
    """

    image_column: str
    label_column: str
    test_fraction: float
    image_size: int = 0
    only_tests: bool = False

    def key(self) -> dict[str, object]:
        """Return what tells two ways of reading apart, for the cache."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("image_size", "only_tests") or value
        }


def build_digits(options: Options, target: Path) -> Description:
    """Write scikit-learn's handwritten digits: 8x8 pixels from 0 to 16, scaled to 255."""
    from PIL import Image
    from sklearn.datasets import load_digits

    from ahfal_app.data.pixels import pixels

    raw = load_digits()
    images_NHWC = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    if size := options.image_size:
        shape = (size, size, 1)
        images_NHWC = np.stack(
            [pixels(Image.fromarray(image_HW), shape) for image_HW in images_NHWC[..., 0]]
        )
    labels_N = raw.target.astype(np.int64)
    train, test = (
        Images(images_NHWC[rows], labels_N[rows]) for rows in _held_out(labels_N, options)
    )
    for split, images in (("train", train), ("test", test)):
        np.save(target / f"{split}-images.npy", images.images_NHWC, allow_pickle=False)
    return _finish(target, train, test, tuple(str(name) for name in raw.target_names))


def build_folder(folder: Path, options: Options, target: Path) -> Description:
    """Write the data set of a local folder.

    Raises
    ------
    DatasetError
        It cannot be read, or its images or labels cannot be used.
    """
    from ahfal_app.data.reading import read_folder

    # Beside the entry there is room for what `datasets` writes in between.
    with TemporaryDirectory(dir=target) as work_dir:
        raw = read_folder(folder, Path(work_dir))
        return _build(raw, f"dataset={str(folder)!r}", options, target)


def build_hub(path: str, configuration: str | None, options: Options, target: Path) -> Description:
    """Write a data set from Hugging Face.

    Raises
    ------
    DatasetError
        It cannot be loaded, or its images or labels cannot be used.
    """
    from ahfal_app.data.reading import read_hub

    return _build(read_hub(path, configuration), f"dataset={path!r}", options, target)


def _build(raw: RawSplits, name: str, options: Options, target: Path) -> Description:
    from ahfal_app.data.columns import encode_labels, find_columns
    from ahfal_app.data.decoding import decode, image_shape

    splits = {"train": raw.train} if raw.test is None else {"train": raw.train, "test": raw.test}
    image, label = find_columns(raw.train.features, options.image_column, options.label_column)
    _check_splits(splits, (image, label), name)
    labels, class_names = encode_labels(splits, label)
    if raw.test is None:
        train_rows, test_rows = _held_out(labels["train"], options)
        splits = {"train": raw.train.select(train_rows), "test": raw.train.select(test_rows)}
        labels = {"train": labels["train"][train_rows], "test": labels["train"][test_rows]}
        _check_splits(splits, (image, label), f"{name}, test-fraction={options.test_fraction:g}")
    shape = image_shape(splits, image, options.image_size)
    train, test = (
        Images(
            decode(splits[split], split, image, shape, target / f"{split}-images.npy"),
            labels[split],
        )
        for split in ("train", "test")
    )
    return _finish(target, train, test, class_names)


def _held_out(
    labels_N: NDArray[np.int64], options: Options
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows for training and for testing."""
    if options.only_tests:
        # For measuring the mean and the deviation, they are all there twice.
        return np.arange(len(labels_N)), np.arange(len(labels_N))
    return hold_out(labels_N, options.test_fraction)


def _finish(target: Path, train: Images, test: Images, class_names: tuple[str, ...]) -> Description:
    for split, images in (("train", train), ("test", test)):
        np.save(target / f"{split}-labels.npy", images.labels_N, allow_pickle=False)
    return describe(train, test, class_names)


def _check_splits(splits: dict[str, Dataset], columns: tuple[str, str], name: str) -> None:
    for split, dataset in splits.items():
        if not len(dataset):
            raise DatasetError(f"{name}: split `{split}` is empty")
        for column in columns:
            if column not in dataset.column_names:
                raise DatasetError(
                    f"{name}: split `{split}` has no column {column!r}; it has "
                    f"{', '.join(dataset.column_names)}"
                )
