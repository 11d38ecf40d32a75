"""Which columns hold images and labels, and labels as numbers.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, Value
from numpy.typing import NDArray

from ahfal_app.errors import DatasetError
from ahfal_app.parameters import suggestion

#: Columns that are taken for the label, best first, where types leave a choice.
_LABEL_NAMES = ("label", "labels", "fine_label", "target", "targets", "class")

_LABELS = "text, integers or truth values"


def find_columns(
    features: Mapping[str, object], image_column: str, label_column: str
) -> tuple[str, str]:
    """Return the columns with the images and with the labels.

    A column that is not named by a setting is found by its type: `Image`, and
    `ClassLabel` or, failing that, integers, text or truth values under a usual name.

    Parameters
    ----------
    features : Mapping[str, object]
        The columns of a split and their types in `datasets`.
    image_column, label_column : str
        The settings of these names; empty: to be found.

    Raises
    ------
    DatasetError
        A named column does not exist or has the wrong type, or none or several are found.
    """
    image = image_column or _only(
        [name for name, feature in features.items() if _holds_images(feature)],
        "image-column",
        features,
        "images, and none of vectors, which are lists of floating-point numbers: all numbers of a "
        "sample in one column",
    )
    _check_column("image-column", image, features, _holds_images, "images")
    return image, label_column_of(features, label_column)


def label_column_of(features: Mapping[str, object], label_column: str) -> str:
    """Return the column with the labels.

    Raises
    ------
    DatasetError
        A named column does not exist or has the wrong type, or none or several are found.
    """
    label = label_column or _find_label(features)
    _check_column("label-column", label, features, _holds_labels, _LABELS)
    return label


def encode_labels(
    splits: Mapping[str, Dataset], column: str
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Return the labels of each split as numbers from 0, and the names of the classes.

    A `ClassLabel` keeps its numbers and names. Other labels, integers, text or truth values, are
    numbered in their sorted order over all splits.

    Parameters
    ----------
    splits : Mapping[str, Dataset]
        The splits by name.
    column : str
        The column with the labels.

    Raises
    ------
    DatasetError
        Labels are missing (null, or -1) or out of range, splits disagree on the classes,
        or there are fewer than two classes.
    """
    stored = {split: _stored(dataset, split, column) for split, dataset in splits.items()}
    features = [dataset.features[column] for dataset in splits.values()]
    if any(feature != features[0] for feature in features):
        raise DatasetError(f"label-column={column!r}: type or classes differ between the splits")
    if isinstance(features[0], ClassLabel) and features[0].names:
        names = tuple(str(name) for name in features[0].names)
        labels = {split: _numbers(values, split, column) for split, values in stored.items()}
        _check_range(labels, len(names), column)
    else:
        labels, names = _numbered(stored, column)
    present = len(np.unique(labels["train"]))
    if present < 2:
        raise DatasetError(
            f"label-column={column!r}: {present} class in the training split, at least 2 are needed"
        )
    return labels, names


def _holds_images(feature: object) -> bool:
    # Parquet files from elsewhere lack the mark of `datasets`, but not the fields, or hold bytes.
    return (
        isinstance(feature, Image)
        or (isinstance(feature, Mapping) and feature.keys() == {"bytes", "path"})
        or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))
    )


def _holds_labels(feature: object) -> bool:
    return isinstance(feature, ClassLabel) or (
        isinstance(feature, Value)
        and feature.dtype.startswith(("int", "uint", "string", "large_string", "bool"))
    )


def _find_label(features: Mapping[str, object]) -> str:
    marked = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(marked) == 1:
        return marked[0]
    candidates = marked or [name for name, feature in features.items() if _holds_labels(feature)]
    by_name = {name.lower(): name for name in candidates}
    for name in _LABEL_NAMES:
        if name in by_name:
            return by_name[name]
    usual = f"{_LABELS} is called {' | '.join(_LABEL_NAMES)}"
    return _only(marked or candidates, "label-column", features, usual, always_named=not marked)


def _only(
    found: list[str],
    key: str,
    features: Mapping[str, object],
    content: str,
    always_named: bool = False,
) -> str:
    if len(found) == 1 and not always_named:
        return found[0]
    if not found:
        raise DatasetError(f"{key}: no column of {content}; there are {', '.join(features)}")
    what = f"no column of {content}" if always_named else f"columns {', '.join(found)} all fit"
    raise DatasetError(f"{key}: {what}; name one of {', '.join(found)}")


def _check_column(
    key: str,
    name: str,
    features: Mapping[str, object],
    fits: Callable[[object], bool],
    content: str,
) -> None:
    if name not in features:
        raise DatasetError(
            f"{key}={name!r}: no such column; there are {', '.join(features)}"
            + suggestion(name, features)
        )
    if not fits(features[name]):
        raise DatasetError(
            f"{key}={name!r}: holds {features[name]!r}; allowed are {content}; there are the "
            f"columns {', '.join(features)}"
        )


def _stored(dataset: Dataset, split: str, column: str) -> pa.ChunkedArray:
    values = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    if values.null_count:
        raise DatasetError(
            f"label-column={column!r}: {values.null_count} of {len(values)} labels of split "
            f"`{split}` are missing"
        )
    return values


def _numbers(values: pa.ChunkedArray, split: str, column: str) -> NDArray[np.int64]:
    numbers_N: NDArray[np.int64] = values.to_numpy().astype(np.int64)
    unlabelled = int((numbers_N == -1).sum())
    if unlabelled:
        raise DatasetError(
            f"label-column={column!r}: {unlabelled} of {len(values)} labels of split "
            f"`{split}` are -1, which stands for a missing label"
        )
    return numbers_N


def _numbered(
    stored: Mapping[str, pa.ChunkedArray], column: str
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Give integers or texts numbers in their sorted order."""
    values = {
        split: _numbers(values, split, column)
        if pa.types.is_integer(values.type)
        else np.array(values.to_pylist(), dtype=np.str_)
        for split, values in stored.items()
    }
    distinct = np.unique(np.concatenate(list(values.values())))
    labels = {
        split: np.searchsorted(distinct, values_N).astype(np.int64)
        for split, values_N in values.items()
    }
    return labels, tuple(str(name) for name in distinct)


def _check_range(labels: Mapping[str, NDArray[np.int64]], num_classes: int, column: str) -> None:
    for split, labels_N in labels.items():
        outside = labels_N[(labels_N < 0) | (labels_N >= num_classes)]
        if len(outside):
            raise DatasetError(
                f"label-column={column!r}: label {outside[0]} in split `{split}` is outside 0 "
                f"to {num_classes - 1}"
            )
