"""Local training of one client at a time: SGD as the AHFAL paper trains.

With momentum and weight decay, on the labelled set. The learning rate drops once, after a number
of local epochs of the cycle; momentum persists over the rounds of a cycle although the weights
are overwritten by the global model's. Other code that runs networks: `prediction.py`, and
`together/` for several clients at a time, `local_only.py` for LoGo's extra model.

Shapes: N samples, B of a batch, C classes, c channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import (
    DeviceImages,
    draw_augmentation,
    joined_draws,
    normalised,
    uploaded,
)
from ahfal_app.models import Classifier, network_facts
from ahfal_app.training.compilation import compiled
from ahfal_app.training.optimiser import FusedSGD, set_training

# Images: what fits into a core's cache.
_AUGMENTED_AT_ONCE = 256

#: Maps float32 logits (B, C) and labels (B,) to a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]

#: Maps the model to a scalar that is added to the loss of a batch.
Penalty = Callable[[Classifier], Tensor]


@dataclass(frozen=True)
class Objective:
    """What is minimised: the loss of a labelled batch, and what is added to it."""

    loss: Loss
    penalty: Penalty | None = None


@dataclass(frozen=True)
class Recipe:
    """How to train locally, with nothing left to be decided."""

    local_epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    lr_decay_epochs: int
    lr_decay_factor: float
    augmentation: Augmentation
    precision: Literal["fp32", "bf16"]
    compile: bool

    def learning_rate_at(self, epoch: int) -> float:
        """Return the learning rate of a cycle's local epoch, from 0."""
        if self.lr_decay_epochs and epoch >= self.lr_decay_epochs:
            return self.learning_rate * self.lr_decay_factor
        return self.learning_rate


@dataclass(frozen=True)
class TrainingState:
    """What persists over the rounds of a cycle: momentum by parameter, and epochs done."""

    momentum: Mapping[str, Tensor]
    epochs: int


#: Called with a model and the number of a round's epoch, from 1, when it is over.
AfterEpoch = Callable[[Classifier, int], None]


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What a client trains in a round.

    Attributes
    ----------
    model : Classifier
        Trained in place; on the device of the images, or on the CPU where an engine trains it.
    images : DeviceImages
        The training split.
    rows_N, labels_N : Tensor
        Rows of the labelled set and their labels, int64, at least one.
    recipe : Recipe
        How to train.
    state : TrainingState | None
        What the cycle's rounds before have left; None in a cycle's first.
    generator : torch.Generator
        Draws batches and augmentations, on the CPU; keyed by cycle and round, or all rounds would
        see the same batches.
    objective : Objective
        What is minimised.
    after_epoch : AfterEpoch | None
        Called with the model that is trained, which may be a copy on another device, and the number
        of each epoch of the round, from 1, when it is over; it leaves the model as it is. Such an
        update is not trained together with others.
    """

    model: Classifier
    images: DeviceImages
    rows_N: Tensor
    labels_N: Tensor
    recipe: Recipe
    state: TrainingState | None
    generator: torch.Generator
    objective: Objective = Objective(cross_entropy)
    after_epoch: AfterEpoch | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What local training gives besides the trained model."""

    num_examples: int
    loss: float
    state: TrainingState


def forward_logits(
    model: Classifier, images_BHWC: Tensor, scale_C: Tensor, shift_C: Tensor, precision: str
) -> Tensor:
    """Return the logits of a batch of bytes, float32 (B, C); a unit that is compiled."""
    return network_logits(model, normalised(images_BHWC, scale_C, shift_C), precision)


def forward_cross_entropy(
    model: Classifier,
    images_BHWC: Tensor,
    scale_C: Tensor,
    shift_C: Tensor,
    labels_B: Tensor,
    precision: str,
) -> Tensor:
    """Return the mean cross-entropy of a batch of bytes; a unit that is compiled."""
    logits_BC = forward_logits(model, images_BHWC, scale_C, shift_C, precision)
    return cross_entropy(logits_BC, labels_B)


def network_logits(model: Classifier, inputs_BcHW: Tensor, precision: str) -> Tensor:
    """Return the logits of normalised images, float32 (B, C); with bf16 computed in it."""
    with torch.autocast(inputs_BcHW.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits_BC: Tensor = model(inputs_BcHW)
    return at_least_float32(logits_BC)


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or as they are where they are more precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def batches(rows_N: Tensor, batch_size: int) -> list[Tensor]:
    """Return rows in batches that batch normalisation can be trained on.

    One sample may have no variance to normalise by: a single row that is left over joins the
    batch before it, and a row that is all there is comes twice.

    Parameters
    ----------
    rows_N : Tensor
        At least one. Shape (N,).
    batch_size : int
        Rows in a batch; the last has fewer, or one more.
    """
    if len(rows_N) == 1:
        return [rows_N.repeat(2)]
    split = list(torch.split(rows_N, batch_size))
    if len(split[-1]) == 1 and len(split) > 1:
        split[-2:] = [torch.cat(split[-2:])]
    return split


def resolve_precision(
    precision: str, device: torch.device, model_name: str, pixels: int
) -> Literal["fp32", "bf16"]:
    """Return the arithmetic that a setting means, for images of so many pixels."""
    if precision == "auto":
        pays = _has_native_bf16(device) and _bf16_pays(device, model_name, pixels)
        return "bf16" if pays else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def train_locally(update: LocalUpdate) -> TrainingResult:
    """Train a client's model in place.

    Returns
    -------
    TrainingResult
        With the mean loss of the last epoch.
    """
    model, recipe, state = update.model, update.recipe, update.state
    epochs_before = state.epochs if state is not None else 0
    epochs = epochs_before + recipe.local_epochs
    optimiser = FusedSGD(
        model, recipe.momentum, recipe.weight_decay, state.momentum if state is not None else {}
    )
    labels_N = uploaded(update.labels_N, update.images.device)
    was_training = model.training
    set_training(model)
    total = 0.0
    for epoch in range(epochs_before, epochs):
        losses = _train_epoch(update, labels_N, optimiser, recipe.learning_rate_at(epoch))
        if epoch == epochs - 1:
            total = _total(losses, recipe.batch_size, len(labels_N))
        if update.after_epoch is not None:
            update.after_epoch(model, epoch - epochs_before + 1)
    if not was_training:
        model.eval()
    num_examples = len(update.rows_N)
    return TrainingResult(
        num_examples, total / num_examples, TrainingState(optimiser.buffers, epochs)
    )


def _train_epoch(
    update: LocalUpdate, labels_N: Tensor, optimiser: FusedSGD, learning_rate: float
) -> list[Tensor]:
    """Go once through the labelled set, in an order of its own; return the batches' losses."""
    penalty = update.objective.penalty
    losses = []
    for images_BHWC, labels_B in _batches(update, labels_N):
        loss = _batch_loss(update, images_BHWC, labels_B)
        if penalty is not None:
            loss = loss + penalty(update.model)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(learning_rate)
        losses.append(loss.detach())
    return losses


def _batches(update: LocalUpdate, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented images and labels of all batches of an epoch.

    Several batches are gathered and augmented at once, since with small ones the calls cost more
    than the pixels; each is drawn for as if it were alone.
    """
    images, recipe, generator = update.images, update.recipe, update.generator
    order_N = torch.randperm(len(labels_N), generator=generator)
    orders = torch.split(order_N, recipe.batch_size)
    # A device gets an epoch's draws in one transfer each, without waiting for it.
    at_once = max(1, _AUGMENTED_AT_ONCE // recipe.batch_size)
    at_once = at_once if images.device.type == "cpu" else len(orders)
    for start in range(0, len(orders), at_once):
        part = orders[start : start + at_once]
        draws = [draw_augmentation(len(each), recipe.augmentation, generator) for each in part]
        order_M = torch.cat(part)
        images_MHWC = images.transformed(
            update.rows_N[order_M], recipe.augmentation, joined_draws(draws)
        )
        labels_M = labels_N[uploaded(order_M, images.device)]
        yield from zip(
            torch.split(images_MHWC, recipe.batch_size),
            torch.split(labels_M, recipe.batch_size),
            strict=True,
        )


def _total(losses: list[Tensor], batch_size: int, num_samples: int) -> float:
    """Return the sum of the samples' losses, of each batch's mean loss."""
    means_T = torch.stack(losses)
    sizes_T = torch.full_like(means_T, batch_size)
    sizes_T[-1] = num_samples - batch_size * (len(losses) - 1)
    losses_T: list[float] = (means_T * sizes_T).tolist()
    return sum(losses_T)


def _bf16_pays(device: torch.device, model_name: str, pixels: int) -> bool:
    """Return whether bf16 was measured to be faster where the hardware has it."""
    facts = network_facts(model_name)
    least = facts.bf16_pays_on_cpu_from
    return facts.bf16_pays or (device.type == "cpu" and least is not None and pixels >= least)


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _batch_loss(update: LocalUpdate, images_BHWC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the loss of a batch, compiled where the recipe says so.

    Only cross-entropy is compiled with the network: other losses are made anew for each
    round, and the compiler would start over with each.
    """
    recipe, images, loss = update.recipe, update.images, update.objective.loss

    def step(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return (
            compiled(function, len(labels_B) == recipe.batch_size) if recipe.compile else function
        )

    inputs = (update.model, images_BHWC, images.scale_C, images.shift_C)
    if loss is cross_entropy:
        return step(forward_cross_entropy)(*inputs, labels_B, recipe.precision)
    return loss(step(forward_logits)(*inputs, recipe.precision), labels_B)
