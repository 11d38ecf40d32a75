"""KCFU: knowledge-compensatory federated update, the local training of KAFAL.

Cao, Shi, Yu and Wang, Knowledge-aware federated active learning with non-IID data, ICCV
2023. The labelled batch is learnt with a balanced softmax, so that classes of which a client
has many samples do not drown the others; what the client lacks is distilled from the global
model on mixed images of its pool, weighted by how rare the classes are here.

Shapes: B samples of a batch, c channels, H height, W width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import (
    AugmentationDraws,
    DeviceImages,
    draw_augmentation,
    normalised,
    uploaded,
)
from ahfal_app.models import Classifier
from ahfal_app.query import QueryStrategy
from ahfal_app.seeds import numpy_generator, torch_generator
from ahfal_app.training.local_updates.core.base import (
    LocalSituation,
    LocalUpdateMethod,
    Objective,
)
from ahfal_app.training.resources import Resources
from ahfal_app.training.sgd import Recipe, batches, network_logits

#: Both parameters of the Beta distribution that mixing weights are drawn from.
_BETA = 2.0

# Added to the counts in the published formula.
_COUNT_OFFSET = 1e-6


class BalancedSoftmax:
    """Cross-entropy of logits shifted by the logarithm of the class counts.

    A class without labelled samples has probability 0 and no gradient; a label of such a
    class costs infinity.

    Parameters
    ----------
    class_counts_C : NDArray[np.int64]
        Class counts of the labelled set that is trained on. Shape (C,).
    device : torch.device
        Where logits come from.
    """

    def __init__(self, class_counts_C: NDArray[np.int64], device: torch.device) -> None:
        self.log_counts_C = torch.from_numpy(class_counts_C).double().log().float()
        """The logarithms, on the CPU. Shape (C,)."""
        self._device = device

    @cached_property
    def _shift_C(self) -> Tensor:
        return self.log_counts_C.to(self._device)

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        return cross_entropy(logits_BC + self._shift_C, labels_B)


@dataclass(frozen=True)
class Compensation:
    """How the compensatory loss is computed; the defaults are the paper's, mended.

    Attributes
    ----------
    mixing : str
        Whom each image is mixed with: another image each (`permutation`), or the same one
        image for the whole batch (`single-partner`), as the published code does.
    teacher : str
        The global model in evaluation mode (`eval`), or in training mode (`train`) with the
        statistics of the batch, as in the published code.
    batch_size : int
        Unlabelled images in a batch.
    augmentation : Augmentation
        Of the unlabelled images.
    precision : str
        `fp32` or `bf16`.
    """

    mixing: Literal["permutation", "single-partner"]
    teacher: Literal["eval", "train"]
    batch_size: int
    augmentation: Augmentation
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class PoolBatch:
    """What is drawn at random for the compensatory loss of one step.

    Attributes
    ----------
    rows_B : Tensor
        Rows of unlabelled samples, int64. Shape (B,).
    draws : AugmentationDraws
        Their augmentation.
    weight_B : Tensor
        Share of each image in its mixture, float32. Shape (B,).
    partner_B : Tensor
        Position in the batch of the image that it is mixed with, int64. Shape (B,).
    """

    rows_B: Tensor
    draws: AugmentationDraws
    weight_B: Tensor
    partner_B: Tensor


@dataclass(frozen=True, eq=False)
class DrawsPosition:
    """Where the draws of a compensatory loss are.

    Attributes
    ----------
    left : tuple[Tensor, ...]
        Batches of the pool that are yet to come before it is gone through anew.
    generator, torch_generator : Mapping[str, object], Tensor
        States of the generators.
    """

    left: tuple[Tensor, ...]
    generator: Mapping[str, object]
    torch_generator: Tensor


class CompensatoryLoss:
    """Distillation from the global model on mixed images of the pool.

    Parameters
    ----------
    teacher : Classifier
        The global model as it was received; not changed but for batch-norm statistics in
        training mode.
    images : DeviceImages
        The split that the pool is part of.
    pool_rows_N : Tensor
        Rows of unlabelled samples, int64, at least one.
    class_counts_C : NDArray[np.int64]
        Class counts of the labelled set. Shape (C,).
    how : Compensation
        Variants and sizes.
    generator : np.random.Generator
        Draws batches, mixing weights and partners.
    torch_generator : torch.Generator
        Draws augmentations.
    """

    def __init__(
        self,
        teacher: Classifier,
        images: DeviceImages,
        pool_rows_N: Tensor,
        class_counts_C: NDArray[np.int64],
        how: Compensation,
        generator: np.random.Generator,
        torch_generator: torch.Generator,
    ) -> None:
        self.teacher = teacher.train(how.teacher == "train")
        self.how = how
        self.weights_C = rarity_weights(class_counts_C)
        """Weights of the classes, on the CPU. Shape (C,)."""
        self._images = images
        self._generator = generator
        self._torch_generator = torch_generator
        self._pool_rows_N = pool_rows_N
        # Batches of the pool that are yet to come before it is gone through anew.
        self._left: tuple[Tensor, ...] = ()

    def __call__(self, model: Classifier) -> Tensor:
        """Return the compensatory loss of the next unlabelled batch, a scalar."""
        batch, images = self.draw(), self._images
        device = images.device
        images_BHWC = images.transformed(batch.rows_B, self.how.augmentation, batch.draws)
        inputs_BcHW = normalised(images_BHWC, images.scale_C, images.shift_C)
        weight_B, partner_B = (uploaded(each, device) for each in (batch.weight_B, batch.partner_B))
        mixed_BcHW = mix(inputs_BcHW, weight_B[:, None, None, None], partner_B)
        with torch.no_grad():
            teacher_BC = network_logits(self._near_teacher, mixed_BcHW, self.how.precision)
        student_BC = network_logits(model, mixed_BcHW, self.how.precision)
        rarity_B = self._near_weights_C[teacher_BC.argmax(dim=1)]
        rarity_B = mix(rarity_B, weight_B, partner_B)
        return weighted_divergence(teacher_BC, student_BC, rarity_B)

    def draw(self) -> PoolBatch:
        """Draw the next unlabelled batch and how it is augmented and mixed, on the CPU."""
        rows_B = self._next_rows()
        size = len(rows_B)
        draws = draw_augmentation(size, self.how.augmentation, self._torch_generator)
        weight_B = torch.from_numpy(self._generator.beta(_BETA, _BETA, size)).float()
        return PoolBatch(rows_B, draws, weight_B, torch.from_numpy(self._partners(size)))

    def position(self) -> DrawsPosition:
        """Return where the draws are, to come back to."""
        return DrawsPosition(
            self._left, self._generator.bit_generator.state, self._torch_generator.get_state()
        )

    def return_to(self, position: DrawsPosition) -> None:
        """Draw again what was drawn since."""
        self._left = position.left
        self._generator.bit_generator.state = position.generator
        self._torch_generator.set_state(position.torch_generator)

    @cached_property
    def _near_teacher(self) -> Classifier:
        return self.teacher.to(self._images.device)

    @cached_property
    def _near_weights_C(self) -> Tensor:
        return self.weights_C.to(self._images.device)

    def _partners(self, size: int) -> NDArray[np.int64]:
        if self.how.mixing == "single-partner":
            return np.full(size, self._generator.integers(size), dtype=np.int64)
        return self._generator.permutation(size)

    def _next_rows(self) -> Tensor:
        """Return the next batch of the pool, in a new order each time it has been gone through."""
        if not self._left:
            rows_N = self._pool_rows_N
            order_N = torch.from_numpy(self._generator.permutation(len(rows_N)))
            self._left = tuple(batches(rows_N[order_N], self.how.batch_size))
        rows_B, *rest = self._left
        self._left = tuple(rest)
        return rows_B


def rarity_weights(class_counts_C: NDArray[np.int64]) -> Tensor:
    """Return weights inverse to the class counts, summing to 1; 0 for absent classes.

    Shape (C,), float32.
    """
    counts_C = torch.from_numpy(class_counts_C).double()
    inverse_C = counts_C.sum() / (counts_C + _COUNT_OFFSET)
    weights_C = torch.where(counts_C > 0, inverse_C, 0.0)
    return (weights_C / weights_C.sum()).float()


def weighted_divergence(teacher_BC: Tensor, student_BC: Tensor, weights_B: Tensor) -> Tensor:
    """Return the mean over B and C of the weighted terms of KL(teacher || student), a scalar.

    Divided by C, too, as in the published code.
    """
    return (weights_B * mean_divergence_terms(teacher_BC, student_BC)).mean()


def mean_divergence_terms(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """Return the mean over C of the terms of KL(teacher || student). Shape (B,)."""
    teacher_log_BC = log_softmax(teacher_BC, dim=1)
    terms_BC = teacher_log_BC.exp() * (teacher_log_BC - log_softmax(student_BC, dim=1))
    return terms_BC.mean(dim=1)


def mix(values_B: Tensor, weight_B: Tensor, partner_B: Tensor) -> Tensor:
    """Return each value mixed with its partner's; the first dimension is the batch's."""
    return weight_B * values_B + (1 - weight_B) * values_B[partner_B]


class KCFU(LocalUpdateMethod):
    """KAFAL's: balanced softmax, and distillation of what a client lacks."""

    name = "kcfu"
    paper = (
        "Cao, Shi, Yu and Wang, Knowledge-aware federated active learning with non-IID data, "
        "ICCV 2023"
    )

    class Parameters(LocalUpdateMethod.Parameters):
        """Where the paper and its published code differ."""

        mixing: Literal["permutation", "single-partner"] = Field(
            default="permutation",
            description="Mixes each image with another one each, or all with one (the published "
            "code).",
        )
        teacher: Literal["eval", "train"] = Field(
            default="eval",
            description="Batch norm of the teacher: in evaluation mode, or by batch (the published "
            "code).",
        )
        pool: Literal["current", "initial"] = Field(
            default="current",
            description="Distils on what is unlabelled now, or was at the start (the published "
            "code).",
        )

    parameters: Parameters

    def objective(
        self,
        strategy: QueryStrategy,
        resources: Resources,
        recipe: Recipe,
        situation: LocalSituation,
    ) -> Objective:
        """Return what a client minimises in a round."""
        how = self.parameters
        loss = BalancedSoftmax(situation.class_counts_C, resources.device)
        pool_N = situation.initial_pool_N if how.pool == "initial" else situation.pool_N
        # A global model that is fresh has nothing to teach.
        if situation.is_fresh or not len(pool_N):
            return Objective(loss)
        key = (situation.seed, "kcfu", situation.client, situation.cycle, situation.round)
        penalty = CompensatoryLoss(
            resources.loaded_model(situation.global_tensors),
            resources.train_images,
            torch.from_numpy(pool_N),
            situation.class_counts_C,
            Compensation(
                mixing=how.mixing,
                teacher=how.teacher,
                batch_size=recipe.batch_size,
                augmentation=recipe.augmentation,
                precision=recipe.precision,
            ),
            numpy_generator(*key),
            torch_generator(*key),
        )
        return Objective(loss, penalty)
