"""How good a model is on labelled images, with what such a number is worth.

Shapes: N images, C classes, K bins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from ahfal_app.config import Settings
from ahfal_app.data.images import Images
from ahfal_app.data.preparation import with_classes
from ahfal_app.data.sources import load_dataset
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.inference.predicting import Predictor
from ahfal_app.metrics import measure_all
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent

Split = Literal["test", "train", "all"]
SPLITS: tuple[Split, ...] = ("test", "train", "all")

#: Bins of equal width by confidence, for calibration.
BINS = 15

_LEVEL = 0.95
_BATCH = 32


@dataclass(frozen=True)
class Interval:
    """A share of `count` of `of`, with Wilson's interval of 95 %."""

    count: int
    of: int

    @property
    def share(self) -> float | None:
        """The share; None of nothing."""
        return self.count / self.of if self.of else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lower and upper bound (Wilson, 1927); None of nothing."""
        if not self.of:
            return None
        found = binomtest(self.count, self.of).proportion_ci(_LEVEL, method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """What a model gave for labelled images.

    Attributes
    ----------
    classes : tuple[str, ...]
        Names of the classes.
    confusion_CC : NDArray[np.int64]
        Images by true class (row) and predicted class (column).
    auroc_C : tuple[float | None, ...]
        Area under the ROC curve of each class against the rest; None where all images or none
        are of the class.
    calibration_error : float
        Expected calibration error: Σ_k n_k / N |accuracy_k - confidence_k| over 15 bins of equal
        width by the highest probability (Guo et al., ICML 2017).
    """

    classes: tuple[str, ...]
    confusion_CC: NDArray[np.int64]
    auroc_C: tuple[float | None, ...]
    calibration_error: float

    @property
    def accuracy(self) -> Interval:
        """Share of the images whose class was predicted."""
        return Interval(int(self.confusion_CC.trace()), int(self.confusion_CC.sum()))

    @property
    def recall_C(self) -> tuple[Interval, ...]:
        """Of each class's images, how many were predicted as such."""
        return _intervals(self.confusion_CC, self.confusion_CC.sum(axis=1))

    @property
    def precision_C(self) -> tuple[Interval, ...]:
        """Of the images that were predicted as a class, how many are of it."""
        return _intervals(self.confusion_CC, self.confusion_CC.sum(axis=0))

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics of the confusion matrix, by name, and the mean AUROC of the classes."""
        known = [area for area in self.auroc_C if area is not None]
        mean = sum(known) / len(known) if known else None
        return {**measure_all(self.confusion_CC), "auroc": mean}

    def to_json(self) -> dict[str, object]:
        """Return all of it as JSON has it."""
        return {
            "images": self.accuracy.of,
            "accuracy": _told(self.accuracy),
            "metrics": self.metrics,
            "expected-calibration-error": self.calibration_error,
            "classes": [
                {
                    "class": name,
                    "recall": _told(recall),
                    "precision": _told(precision),
                    "auroc": area,
                }
                for name, recall, precision, area in zip(
                    self.classes, self.recall_C, self.precision_C, self.auroc_C, strict=True
                )
            ],
            "confusion": self.confusion_CC.tolist(),
        }


def checked_split(split: str) -> Split:
    """Return a split's name.

    Raises
    ------
    ConfigError
        There is no such split.
    """
    for name in SPLITS:
        if split == name:
            return name
    raise ConfigError([f"split={split!r}: allowed is {' | '.join(SPLITS)}"])


def evaluation_tables(found: ModelEvaluation) -> list[TextTable]:
    """Return an evaluation as tables: all images, and each class."""
    whole = [("accuracy", *_shown(found.accuracy))]
    whole += [
        (name.replace("_", " "), percent(value) if value is not None else "undefined", "")
        for name, value in found.metrics.items()
    ]
    whole.append(("expected calibration error", percent(found.calibration_error), ""))
    title = f"{found.accuracy.of} images"
    rows = [
        (name, *_shown(recall), *_shown(precision), "" if area is None else f"{area:.3f}")
        for name, recall, precision, area in zip(
            found.classes, found.recall_C, found.precision_C, found.auroc_C, strict=True
        )
    ]
    headings = ("class", "recall", "95 %", "precision", "95 %", "AUROC")
    return [
        TextTable(title, ("metric", "value", "95 %"), whole),
        TextTable("by class", headings, rows),
    ]


def _shown(interval: Interval) -> tuple[str, str]:
    share, bounds = interval.share, interval.bounds
    if share is None or bounds is None:
        return "undefined", ""
    return percent(share), f"{percent(bounds[0])} to {percent(bounds[1])}"


def evaluate_on(
    predictor: Predictor, dataset: str, split: Split, data_dir: str = ""
) -> ModelEvaluation:
    """Evaluate a model on a data set, as the setting `dataset` names it.

    Where it has no test split, that is the one that a run holds out.

    Raises
    ------
    DatasetError
        It cannot be read, its images cannot be brought to the model's, or it has other classes.
    """
    images = _images(predictor, dataset, split, data_dir)
    probabilities_NC = np.concatenate(list(_probabilities(predictor, images.images_NHWC)))
    return measured(predictor.model.classes, images.labels_N, probabilities_NC)


def measured(
    classes: tuple[str, ...], labels_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating]
) -> ModelEvaluation:
    """Return what predictions are worth, given the true classes."""
    num_classes = len(classes)
    predicted_N = probabilities_NC.argmax(axis=1)
    cells_N = labels_N * num_classes + predicted_N
    confusion_CC = np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes)
    areas = tuple(_area(labels_N == c, probabilities_NC[:, c]) for c in range(num_classes))
    confidence_N = probabilities_NC.max(axis=1)
    error = calibration_error(confidence_N, predicted_N == labels_N)
    return ModelEvaluation(classes, confusion_CC, areas, error)


def calibration_error(
    confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_], bins: int = BINS
) -> float:
    """Return the expected calibration error of confidences in (0, 1] (Guo et al., ICML 2017).

    Bin k holds confidences from (k - 1) / bins, exclusive, to k / bins, inclusive.
    """
    bins_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    right_K = np.bincount(bins_N, weights=right_N, minlength=bins)
    confidence_K = np.bincount(bins_N, weights=confidence_N, minlength=bins)
    return float(np.abs(right_K - confidence_K).sum() / len(confidence_N))


def _area(is_class_N: NDArray[np.bool_], scores_N: NDArray[np.floating]) -> float | None:
    if is_class_N.all() or not is_class_N.any():
        return None
    return float(roc_auc_score(is_class_N, scores_N))


def _images(predictor: Predictor, dataset: str, split: Split, data_dir: str) -> Images:
    """Load labelled images of the model's size, their labels in the model's classes."""
    height, width, channels = predictor.model.use.shape
    values: dict[str, object] = {"dataset": dataset}
    if height == width and not predictor.model.use.vectors:
        values["image-size"] = height
    if data_dir:
        values["data-dir"] = data_dir
    loaded = with_classes(load_dataset(Settings.model_validate(values)), predictor.model.classes)
    parts = {"test": [loaded.test], "train": [loaded.train], "all": [loaded.train, loaded.test]}
    pixels_NHWC = np.concatenate([part.images_NHWC for part in parts[split]])
    labels_N = np.concatenate([part.labels_N for part in parts[split]])
    if pixels_NHWC.shape[3] == 1 and channels == 3:
        pixels_NHWC = np.repeat(pixels_NHWC, 3, axis=3)
    if pixels_NHWC.shape[1:] != (height, width, channels) or (
        loaded.holds_vectors != predictor.model.use.vectors
    ):
        use, given = predictor.model.use, _shape_text(pixels_NHWC.shape[1:], loaded.holds_vectors)
        raise DatasetError(
            f"{dataset!r}: {given}; allowed with this model are "
            f"{_shape_text(use.shape, use.vectors)}"
        )
    if not len(labels_N):
        raise DatasetError(f"{dataset!r}: the split {split!r} has no images")
    return Images(pixels_NHWC, labels_N)


def _shape_text(shape: tuple[int, ...], vectors: bool) -> str:
    height, width, channels = shape
    if vectors:
        return f"vectors of {channels} numbers"
    return f"images of {height}x{width} pixels and {channels} channels"


def _probabilities(
    predictor: Predictor, images_NHWc: NDArray[np.uint8] | NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(images_NHWc), _BATCH):
        yield predictor.probabilities(np.ascontiguousarray(images_NHWc[start : start + _BATCH]))


def _intervals(
    confusion_CC: NDArray[np.int64], totals_C: NDArray[np.int64]
) -> tuple[Interval, ...]:
    pairs = zip(confusion_CC.diagonal().tolist(), totals_C.tolist(), strict=True)
    return tuple(Interval(right, total) for right, total in pairs)


def _told(interval: Interval) -> dict[str, object]:
    share = interval.share
    known = share is not None and math.isfinite(share)
    return {
        "share": share if known else None,
        "interval": interval.bounds,
        **dataclasses.asdict(interval),
    }
