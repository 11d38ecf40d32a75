"""How good a model is on labelled images, with what such a number is worth.

Shapes: N images, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ahfal_app.config import Settings
from ahfal_app.data.images import ImageDataset, Images
from ahfal_app.data.preparation import parted_tests, with_classes
from ahfal_app.data.sources import load_dataset
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.evaluation import Interval, ModelFigures, evaluation_sums, figures_of
from ahfal_app.inference.predicting import Predictor
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import bounds_text, metric_text
from ahfal_app.training.model_use import ModelUse

Split = Literal["test", "train", "all"]
SPLITS: tuple[Split, ...] = ("test", "train", "all")

_OTHER_DATA = (
    "these are not the data that the model's run has tested on; whether it was trained on some of "
    "these images is not known"
)
_OWN_DATA = "these are the data of the model's run: it was trained on some of these images"

_BATCH = 32
_LEAST = 1e-45


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """What a model gave for labelled images.

    Attributes
    ----------
    classes : tuple[str, ...]
        Names of its classes.
    figures : ModelFigures
        All figures.
    note : str
        What is to be known of images that it may have been trained on; empty: it was on none.
    """

    classes: tuple[str, ...]
    figures: ModelFigures
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """Return all of it as JSON has it."""
        figures = self.figures
        return {
            "images": figures.sums.num_samples,
            "note": self.note,
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

    Where it has no test split, that is the one that the model's run has held out.

    Raises
    ------
    ConfigError
        The model's file does not say what its run has tested on, and `split` is not all.
    DatasetError
        It cannot be read, its images cannot be brought to the model's, or it has other classes.
    """
    images, is_own = _images(predictor, dataset, split, data_dir)
    probabilities_NC = np.concatenate(list(_probabilities(predictor, images.images_NHWC)))
    found = measured(predictor.model.classes, images.labels_N, probabilities_NC)
    return dataclasses.replace(found, note=_note(predictor.model.use, split, is_own))


def measured(
    classes: tuple[str, ...], labels_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating]
) -> ModelEvaluation:
    """Return what predictions are worth, given the true classes."""
    # Below the smallest number of float32 there is no order of probabilities to go by.
    log_p_NC = np.log(np.maximum(probabilities_NC.astype(np.float64), _LEAST))
    sums = evaluation_sums(log_p_NC, labels_N, probabilities_NC.argmax(axis=1))
    return ModelEvaluation(classes, figures_of(sums))


def _note(use: ModelUse, split: Split, is_own: bool) -> str:
    """Return what is to be known of images that a model may have been trained on."""
    if split == "test":
        return "" if is_own else _OTHER_DATA
    # With data of the sites' own, none of the server's is trained on.
    return _OWN_DATA if is_own and use.split and not use.split.is_of_sites else ""


def _images(predictor: Predictor, dataset: str, split: Split, data_dir: str) -> tuple[Images, bool]:
    """Return labelled images of the model's size, and whether they are of its run's data.

    Their labels are in the model's classes.
    """
    use = predictor.model.use
    height, width, channels = use.shape
    if use.split is None and split != "all":
        raise ConfigError(
            [
                f"split={split!r}: allowed is all, on images that the model was not trained on; "
                f"{predictor.model.path} does not say what its run has tested on"
            ]
        )
    values: dict[str, object] = {"dataset": dataset}
    if height == width and not use.vectors:
        values["image-size"] = height
    if data_dir:
        values["data-dir"] = data_dir
    loaded, is_own = _loaded(use, values, split)
    loaded = with_classes(loaded, predictor.model.classes, "classes of the model")
    parts = {"test": [loaded.test], "train": [loaded.train], "all": [loaded.train, loaded.test]}
    pixels_NHWC = np.concatenate([part.images_NHWC for part in parts[split]])
    labels_N = np.concatenate([part.labels_N for part in parts[split]])
    if pixels_NHWC.shape[3] == 1 and channels == 3:
        pixels_NHWC = np.repeat(pixels_NHWC, 3, axis=3)
    if pixels_NHWC.shape[1:] != (height, width, channels) or (loaded.holds_vectors != use.vectors):
        given = _shape_text(pixels_NHWC.shape[1:], loaded.holds_vectors)
        raise DatasetError(
            f"{dataset!r}: {given}; allowed with this model are "
            f"{_shape_text(use.shape, use.vectors)}"
        )
    if not len(labels_N):
        raise DatasetError(f"{dataset!r}: the split {split!r} has no images")
    return Images(pixels_NHWC, labels_N), is_own


def _loaded(use: ModelUse, values: Mapping[str, object], split: Split) -> tuple[ImageDataset, bool]:
    """Load data split as those of the model's run were, and tell whether they are those.

    Of the run's own data all test images are used, also where it has tested with fewer; but for
    those that it has held out of its tests, since its strategy has learned by them.
    """
    if use.split is None:
        return load_dataset(Settings.model_validate(values)), False
    settings = use.split.of(values)
    try:
        own = load_dataset(settings)
    except (DatasetError, ValidationError):
        if not use.split.chooses:
            raise
        # What lacks the columns or takes no such parameters is not what the model was trained on.
        return load_dataset(Settings.model_validate(values)), False
    is_own = own.fingerprint == use.split.fingerprint
    if split != "test" and use.split.is_of_sites:
        # All of it is for testing, and is there twice.
        return load_dataset(settings.model_copy(update={"partition": "iid"})), is_own
    if is_own and settings.held_out and split == "test":
        tests, _ = parted_tests(own.test, settings.held_out, settings.seed)
        return dataclasses.replace(own, test=tests), is_own
    unlimited = {"max_train_samples": 0, "max_test_samples": 0}
    return load_dataset(settings.model_copy(update=unlimited)), is_own


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
