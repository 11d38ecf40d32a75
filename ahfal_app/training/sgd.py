"""Local training, prediction and evaluation: the only code that runs networks.

SGD with momentum and weight decay on the labelled set, as the AHFAL paper trains. The
learning rate drops once, after a number of local epochs of the cycle; momentum persists
over the rounds of a cycle although the weights are overwritten by the global model's.

Shapes: N samples, B of a batch, C classes, D features, c channels of a map, H height,
W width, F = 9 c numbers of an averaged map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages, normalised
from ahfal_app.models import Classifier, network_facts
from ahfal_app.training.compilation import compiled

#: Maps float32 logits (B, C) and labels (B,) to a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]

#: Maps the model to a scalar that is added to the loss of a batch.
Penalty = Callable[[Classifier], Tensor]

#: Most images in a batch of prediction, and most pixels: what 1000 of 32x32 have. On a CPU 64 of
#: them, whose activations stay in its caches: twice as fast with ResNet-8.
_PREDICTION_BATCH = 1000
_PREDICTION_PIXELS = 1000 * 32 * 32
_PREDICTION_PIXELS_ON_CPU = 64 * 32 * 32

# Feature maps are averaged to this many rows and columns.
_MAP_SIDE = 3


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


@dataclass(frozen=True)
class TrainingResult:
    """What local training gives besides the trained model."""

    num_examples: int
    loss: float
    state: TrainingState


@dataclass(frozen=True)
class Predictions:
    """What one forward pass gives, float32.

    Attributes
    ----------
    logits_NC, embeddings_ND : Tensor
        Logits, and the features that they are computed from.
    feature_maps_NF : Tensor | None
        The last feature map, averaged to 3x3 and flattened; None if it was not asked for.
    """

    logits_NC: Tensor
    embeddings_ND: Tensor
    feature_maps_NF: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a test set; a class without test samples has no accuracy."""

    accuracy: float
    class_accuracy_C: tuple[float | None, ...]
    loss: float


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


def train_locally(
    model: Classifier,
    images: DeviceImages,
    rows_N: Tensor,
    labels_N: Tensor,
    recipe: Recipe,
    state: TrainingState | None,
    generator: torch.Generator,
    loss: Loss = cross_entropy,
    penalty: Penalty | None = None,
) -> TrainingResult:
    """Train a model in place on some rows of a split.

    Parameters
    ----------
    model : Classifier
        On the device of the images.
    images : DeviceImages
        The split.
    rows_N, labels_N : Tensor
        Rows of the split and their labels, int64, at least one.
    recipe : Recipe
        How to train.
    state : TrainingState | None
        Momentum and epochs of the cycle's rounds before; None in a cycle's first.
    generator : torch.Generator
        On the CPU; keyed by cycle and round, or all rounds would see the same batches.
    loss : Loss
        Of a batch's logits and labels.
    penalty : Penalty | None
        What is added to the loss of each batch.

    Returns
    -------
    TrainingResult
        With the mean loss of the last epoch.
    """
    epochs_before = state.epochs if state is not None else 0
    optimizer = _optimizer(model, recipe, state)
    labels_N = labels_N.to(images.device)
    was_training = model.training
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    for epoch in range(epochs_before, epochs_before + recipe.local_epochs):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(epoch)
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        order_N = torch.randperm(len(rows_N), generator=generator)
        for batch_B in torch.split(order_N, recipe.batch_size):
            images_BHWC = images.augmented(rows_N[batch_B], recipe.augmentation, generator)
            labels_B = labels_N[batch_B.to(images.device)]
            batch_loss = _batch_loss(model, images, images_BHWC, labels_B, recipe, loss)
            if penalty is not None:
                batch_loss = batch_loss + penalty(model)
            optimizer.zero_grad(set_to_none=True)
            batch_loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += batch_loss.detach() * len(batch_B)
    model.train(was_training)
    momentum = {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    return TrainingResult(
        len(rows_N),
        float(total) / len(rows_N),
        TrainingState(momentum, epochs_before + recipe.local_epochs),
    )


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
            maps_BF = adaptive_avg_pool2d(map_BcHW, _MAP_SIDE).flatten(1) if feature_maps else None
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


def evaluate(
    model: Classifier, images: DeviceImages, num_classes: int, at_once: int = 1
) -> Evaluation:
    """Return accuracy, accuracy of each class and mean cross-entropy on a whole split.

    `at_once` batches are computed at the same time.
    """
    rows_N = torch.arange(len(images))
    logits_NC = predict(model, images, rows_N, at_once=at_once).logits_NC
    labels_N = images.labels_N
    correct_N = logits_NC.argmax(dim=1) == labels_N
    counts_C = torch.bincount(labels_N, minlength=num_classes).tolist()
    right_C = torch.bincount(labels_N[correct_N], minlength=num_classes).tolist()
    losses_N = cross_entropy(logits_NC, labels_N, reduction="none")
    return Evaluation(
        accuracy=int(correct_N.sum()) / len(labels_N),
        class_accuracy_C=tuple(
            right / count if count else None for right, count in zip(right_C, counts_C, strict=True)
        ),
        loss=float(losses_N.double().mean()),
    )


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


def _batch_loss(
    model: Classifier,
    images: DeviceImages,
    images_BHWC: Tensor,
    labels_B: Tensor,
    recipe: Recipe,
    loss: Loss,
) -> Tensor:
    """Return the loss of a batch, compiled where the recipe says so.

    Only cross-entropy is compiled with the network: other losses are made anew for each
    round, and the compiler would start over with each.
    """

    def step(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return (
            compiled(function, len(labels_B) == recipe.batch_size) if recipe.compile else function
        )

    inputs = (model, images_BHWC, images.scale_C, images.shift_C)
    if loss is cross_entropy:
        return step(forward_cross_entropy)(*inputs, labels_B, recipe.precision)
    return loss(step(forward_logits)(*inputs, recipe.precision), labels_B)


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
