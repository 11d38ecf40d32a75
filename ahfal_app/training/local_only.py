"""Training of a fresh model on one client's labels alone, for query strategies.

Shapes: N labelled samples, B of a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.optim.lr_scheduler import MultiStepLR

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages, normalised, uploaded
from ahfal_app.models import Classifier
from ahfal_app.query import LocalOnlyTraining
from ahfal_app.training.sgd import batches, network_logits

# What the learning rate is multiplied with when it drops.
_DECAY = 0.1

_EVALUATION_BATCH = 1000


def train_local_only_model(
    model: Classifier,
    images: DeviceImages,
    rows_N: Tensor,
    labels_N: Tensor,
    training: LocalOnlyTraining,
    augmentation: Augmentation,
    precision: str,
    generator: torch.Generator,
    teacher: Classifier | None = None,
) -> int:
    """Train a model in place on some rows of a split until it fits them.

    Parameters
    ----------
    model : Classifier
        Freshly initialised, on the device of the images.
    images : DeviceImages
        The split.
    rows_N, labels_N : Tensor
        Rows of the split and their labels, int64; nothing is done where there are none.
    training : LocalOnlyTraining
        The recipe.
    augmentation : Augmentation
        Of the images that are trained on, and of those that decide when to stop.
    precision : str
        `fp32` or `bf16`, of the training steps.
    generator : torch.Generator
        On the CPU.
    teacher : Classifier, optional
        What is distilled, in evaluation mode; without it the weight of distillation is 0.

    Returns
    -------
    int
        Epochs that were trained.
    """
    if len(rows_N) == 0:
        return 0
    labels_N = labels_N.to(images.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=True,
    )
    schedule = MultiStepLR(optimizer, [training.decay_after], _DECAY)
    patience = _Patience(training.patience)
    for epoch in range(1, training.epochs + 1):
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        order_N = torch.randperm(len(rows_N), generator=generator)
        for batch_B in batches(order_N, training.batch_size):
            inputs_BcHW = _augmented(images, rows_N[batch_B], augmentation, generator)
            logits_BC = network_logits(model, inputs_BcHW, precision)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(logits_BC, labels_N[uploaded(batch_B, images.device)])
            if teacher is not None:
                loss = _distilling(loss, logits_BC, teacher, inputs_BcHW, training, precision)
            # torch has no types for `backward`.
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(batch_B)
            if training.decay_counts_steps:
                schedule.step()
        if not training.decay_counts_steps:
            schedule.step()
        if training.patience:
            if patience.is_over(float(total)):
                return epoch
            continue
        accuracy = _accuracy(model, images, rows_N, labels_N, augmentation, generator)
        if accuracy >= training.stop_accuracy:
            return epoch
    return training.epochs


class _Patience:
    """Counts epochs without a lower loss."""

    def __init__(self, most: int) -> None:
        self._most, self._lowest, self._since = most, math.inf, 0

    def is_over(self, loss: float) -> bool:
        """Take in an epoch's loss; return whether too many have not lowered it."""
        self._since = 0 if loss < self._lowest else self._since + 1
        self._lowest = min(loss, self._lowest)
        return self._since >= self._most


def _distilling(
    loss: Tensor,
    logits_BC: Tensor,
    teacher: Classifier,
    inputs_BcHW: Tensor,
    training: LocalOnlyTraining,
    precision: str,
) -> Tensor:
    """Mix a batch's loss with the divergence from a teacher's softened predictions."""
    temperature, weight = training.distil_temperature, training.distil_weight
    with torch.no_grad():
        teacher_BC = network_logits(teacher, inputs_BcHW, precision)
    divergence = kl_div(
        log_softmax(logits_BC / temperature, dim=1),
        log_softmax(teacher_BC / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * loss + weight * temperature**2 * divergence


def _accuracy(
    model: Classifier,
    images: DeviceImages,
    rows_N: Tensor,
    labels_N: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> float:
    """Return the share of augmented rows that the model, in evaluation mode, gets right."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    pairs = zip(
        *(torch.split(values, _EVALUATION_BATCH) for values in (rows_N, labels_N)), strict=True
    )
    with torch.no_grad():
        for rows_B, labels_B in pairs:
            predictions_B = model(_augmented(images, rows_B, augmentation, generator)).argmax(1)
            right += (predictions_B == labels_B).sum()
    return int(right) / len(rows_N)


def _augmented(
    images: DeviceImages, rows_B: Tensor, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    images_BHWC = images.augmented(rows_B, augmentation, generator)
    return normalised(images_BHWC, images.scale_C, images.shift_C)
