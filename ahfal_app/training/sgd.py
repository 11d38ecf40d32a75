"""Local training of one client at a time: SGD as the AHFAL paper trains.

With momentum and weight decay, on the labelled set. The learning rate drops once, after a number
of local epochs of the cycle; momentum persists over the rounds of a cycle although the weights
are overwritten by the global model's. Other code that runs networks: `prediction.py`, and
`together/` for several clients at a time, `local_only.py` for LoGo's extra model.

Shapes: N samples, B of a batch, C classes, c channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages, normalised
from ahfal_app.models import Classifier, network_facts
from ahfal_app.training.compilation import compiled

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

    momentum: dict[str, Tensor]
    epochs: int


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What a client trains in a round.

    Attributes
    ----------
    model : Classifier
        Trained in place; on the device of the images.
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
    after_epoch : Callable[[int], None] | None
        Called with the number of each epoch of the round, from 1, when it is over; it leaves the
        model as it is. Such an update is not trained together with others.
    """

    model: Classifier
    images: DeviceImages
    rows_N: Tensor
    labels_N: Tensor
    recipe: Recipe
    state: TrainingState | None
    generator: torch.Generator
    objective: Objective = Objective(cross_entropy)
    after_epoch: Callable[[int], None] | None = None


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
    precision: str, device: torch.device, model_name: str
) -> Literal["fp32", "bf16"]:
    """Return the arithmetic that a setting means."""
    if precision == "auto":
        return (
            "bf16" if _has_native_bf16(device) and network_facts(model_name).bf16_pays else "fp32"
        )
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
    optimizer = _optimizer(model, recipe, state)
    labels_N = update.labels_N.to(update.images.device)
    was_training = model.training
    model.train()
    total = torch.zeros((), dtype=torch.float64)
    for epoch in range(epochs_before, epochs):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(epoch)
        total = _train_epoch(update, labels_N, optimizer)
        if update.after_epoch is not None:
            update.after_epoch(epoch - epochs_before + 1)
    model.train(was_training)
    momentum = {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    num_examples = len(update.rows_N)
    return TrainingResult(
        num_examples, float(total) / num_examples, TrainingState(momentum, epochs)
    )


def _train_epoch(update: LocalUpdate, labels_N: Tensor, optimizer: torch.optim.SGD) -> Tensor:
    """Go once through the labelled set, in an order of its own; return the sum of its losses."""
    model, images, rows_N, recipe = update.model, update.images, update.rows_N, update.recipe
    penalty = update.objective.penalty
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    order_N = torch.randperm(len(rows_N), generator=update.generator)
    for batch_B in torch.split(order_N, recipe.batch_size):
        images_BHWC = images.augmented(rows_N[batch_B], recipe.augmentation, update.generator)
        loss = _batch_loss(update, images_BHWC, labels_N[batch_B.to(images.device)])
        if penalty is not None:
            loss = loss + penalty(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(batch_B)
    return total


def _optimizer(model: nn.Module, recipe: Recipe, state: TrainingState | None) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    for name, parameter in model.named_parameters():
        if state is not None and name in state.momentum:
            # In the parameter's own layout: the fused step walks memory, whatever the strides.
            buffer = torch.empty_like(parameter).copy_(state.momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    return optimizer


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
