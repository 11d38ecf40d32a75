"""How good a model is on labelled images, with what such a number is worth.

Shapes: N images, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.data.images import Images
from ahfal_app.data.preparation import with_classes
from ahfal_app.data.sources import load_dataset
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.evaluation import Interval, ModelFigures, evaluation_sums, figures_of
from ahfal_app.inference.predicting import Predictor
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import bounds_text, metric_text

Split = Literal["test", "train", "all"]
SPLITS: tuple[Split, ...] = ("test", "train", "all")

_BATCH = 32
_LEAST = 1e-45


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """What a model gave for labelled images: the names of its classes, and all figures."""

    classes: tuple[str, ...]
    figures: ModelFigures

    def to_json(self) -> dict[str, object]:
        """Return all of it as JSON has it."""
        figures = self.figures
        return {
            "images": figures.sums.num_samples,
            "accuracy": _told(figures.accuracy),
            "metrics": figures.metrics,
            "intervals": figures.intervals,
            "classes": [
                {
                    "class": name,
                    "recall": _told(recall),
                    "precision": _told(precision),
                    "auroc": area,
                    "auroc-interval": bounds,
                }
                for name, recall, precision, area, bounds in zip(
                    self.classes,
                    figures.recall_C,
                    figures.precision_C,
                    figures.auroc_C,
                    figures.auroc_bounds_C,
                    strict=True,
                )
            ],
            "confusion": figures.sums.confusion_CC.tolist(),
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
    figures = found.figures
    whole = [
        (name.replace("-", " "), metric_text(name, value), bounds_text(figures.intervals.get(name)))
        for name, value in figures.metrics.items()
    ]
    title = f"{figures.sums.num_samples} images"
    rows = [
        (name, *_shown(recall), *_shown(precision), metric_text("auroc", area), bounds_text(bounds))
        for name, recall, precision, area, bounds in zip(
            found.classes,
            figures.recall_C,
            figures.precision_C,
            figures.auroc_C,
            figures.auroc_bounds_C,
            strict=True,
        )
    ]
    headings = ("class", "recall", "95 %", "precision", "95 %", "AUROC", "95 %")
    return [
        TextTable(title, ("metric", "value", "95 %"), whole),
        TextTable("by class", headings, rows),
    ]


def _shown(interval: Interval) -> tuple[str, str]:
    return metric_text("share", interval.share), bounds_text(interval.bounds)


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
    # Below the smallest number of float32 there is no order of probabilities to go by.
    log_p_NC = np.log(np.maximum(probabilities_NC.astype(np.float64), _LEAST))
    sums = evaluation_sums(log_p_NC, labels_N, probabilities_NC.argmax(axis=1))
    return ModelEvaluation(classes, figures_of(sums))


def _images(predictor: Predictor, dataset: str, split: Split, data_dir: str) -> Images:
    """Load labelled images of the model's size, their labels in the model's classes."""
    height, width, channels = predictor.model.use.shape
    values: dict[str, object] = {"dataset": dataset}
    if height == width and not predictor.model.use.vectors:
        values["image-size"] = height
    if data_dir:
        values["data-dir"] = data_dir
    loaded = with_classes(
        load_dataset(Settings.model_validate(values)),
        predictor.model.classes,
        "classes of the model",
    )
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


def _told(interval: Interval) -> dict[str, object]:
    share = interval.share
    known = share is not None and math.isfinite(share)
    return {
        "share": share if known else None,
        "interval": interval.bounds,
        **dataclasses.asdict(interval),
    }
