"""Prediction and evaluation: what a model gives for images, not augmented.

Shapes: N samples, B of a batch, C classes, D features, c channels of a map, H height,
W width, F = 9 c numbers of an averaged map.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from ahfal_app.data.device import DeviceImages
from ahfal_app.evaluation import EvaluationSums, ModelFigures, evaluation_sums, figures_of
from ahfal_app.models import Classifier

#: Most images in a batch of prediction, and most pixels: what 1000 of 32x32 have. On a CPU 64 of
#: them, whose activations stay in its caches: twice as fast with ResNet-8.
_PREDICTION_BATCH = 1000
_PREDICTION_PIXELS = 1000 * 32 * 32
_PREDICTION_PIXELS_ON_CPU = 64 * 32 * 32

# Feature maps are averaged to this many rows and columns.
_MAP_SIDE = 3


@dataclass(frozen=True)
class Predictions:
    """What one forward pass gives, float32.

    Attributes
    ----------
    logits_NC, embeddings_ND : Tensor
        Logits, and the features that they are computed from.
    feature_maps_NF : Tensor | None
        The last feature map, averaged to 3x3 and flattened, or as it is where it is one pixel; None
        if it was not asked for.
    """

    logits_NC: Tensor
    embeddings_ND: Tensor
    feature_maps_NF: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model does on a test set.

    Attributes
    ----------
    sums : EvaluationSums
        Sums over the test samples, of which there is at least one.
    loss : float
        Mean cross-entropy.
    """

    sums: EvaluationSums
    loss: float

    @property
    def confusion_CC(self) -> NDArray[np.int64]:
        """Test samples by true class (row) and predicted class (column)."""
        return self.sums.confusion_CC

    @cached_property
    def figures(self) -> ModelFigures:
        """All that follows from the sums."""
        return figures_of(self.sums)

    @property
    def accuracy(self) -> float:
        """Share of the test samples whose class was predicted."""
        return int(self.confusion_CC.trace()) / int(self.confusion_CC.sum())

    @property
    def class_accuracy_C(self) -> tuple[float | None, ...]:
        """Accuracy of each class; None without test samples."""
        right_C, tested_C = self.confusion_CC.diagonal(), self.confusion_CC.sum(axis=1)
        pairs = zip(right_C.tolist(), tested_C.tolist(), strict=True)
        return tuple(right / tested if tested else None for right, tested in pairs)


def predict(
    model: Classifier,
    images: DeviceImages,
    rows_N: Tensor,
    feature_maps: bool = False,
    at_once: int = 1,
) -> Predictions:
    """Return what a model gives for rows of a split, not augmented, in evaluation mode.

    The batches, and so the results, are the same whatever `at_once` is.

    Parameters
    ----------
    model : Classifier
        On the device of the images.
    images : DeviceImages
        The split.
    rows_N : Tensor
        Rows of the split, int64.
    feature_maps : bool
        Whether feature maps are wanted, too; they come from the same forward pass.
    at_once : int
        Batches that are computed at the same time, each on the caller's number of threads.
    """
    threads = torch.get_num_threads()

    def forward(rows_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        # The mode is a thread's own.
        with torch.inference_mode():
            map_BcHW = model.feature_map(images.batch(rows_B))
            embeddings_BD = model.features_of_map(map_BcHW)
            maps_BF = _averaged(map_BcHW) if feature_maps else None
            return model.head(embeddings_BD), embeddings_BD, maps_BF

    batches = torch.split(rows_N, _prediction_batch(images))
    with (
        _evaluation(model),
        ThreadPoolExecutor(
            at_once, initializer=torch.set_num_threads, initargs=(threads,)
        ) as workers,
    ):
        parts = list((workers.map if at_once > 1 else map)(forward, batches))
    logits, embeddings, maps = zip(*parts, strict=True)
    return Predictions(
        torch.cat(logits), torch.cat(embeddings), torch.cat(maps) if feature_maps else None
    )


def predict_by_head(
    model: Classifier, predictions: Predictions, images: DeviceImages
) -> Predictions:
    """Return what `predict` gives of a model with fixed features, by what another such one gave.

    The vectors that both see are the same; they are neither read nor normalised again.

    Parameters
    ----------
    model : Classifier
        `has_fixed_features`.
    predictions : Predictions
        Of the other one, for the same rows.
    images : DeviceImages
        The split; decides how many vectors a batch has.
    """
    batches = torch.split(predictions.embeddings_ND, _prediction_batch(images))
    with torch.inference_mode():
        logits_NC = torch.cat([model.head(batch_BD) for batch_BD in batches])
    return replace(predictions, logits_NC=logits_NC)


def evaluate(
    model: Classifier, images: DeviceImages, num_classes: int, at_once: int = 1
) -> Evaluation:
    """Return the confusion matrix and the mean cross-entropy on a whole split.

    `at_once` batches are computed at the same time.
    """
    rows_N = torch.arange(len(images))
    logits_NC = predict(model, images, rows_N, at_once=at_once).logits_NC
    labels_N = images.labels_N
    predicted_N = logits_NC.argmax(dim=1)
    losses_N = cross_entropy(logits_NC, labels_N, reduction="none")
    on_cpu = (logits_NC.float(), labels_N, predicted_N)
    logits, labels, predicted = (tensor.cpu().numpy() for tensor in on_cpu)
    return Evaluation(
        sums=evaluation_sums(logits, labels, predicted),
        loss=float(losses_N.double().mean()),
    )


def _averaged(map_BcHW: Tensor) -> Tensor:
    """Return a feature map averaged to 3x3; of one pixel, that one, and not nine times the same."""
    if map_BcHW.shape[2:] == (1, 1):
        return map_BcHW.flatten(1)
    return adaptive_avg_pool2d(map_BcHW, _MAP_SIDE).flatten(1)


def _prediction_batch(images: DeviceImages) -> int:
    pixels = images.images_NHWC[0, ..., 0].numel()
    on_cpu = images.device.type == "cpu"
    most = _PREDICTION_PIXELS_ON_CPU if on_cpu else _PREDICTION_PIXELS
    return max(1, min(_PREDICTION_BATCH, most // pixels))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
