"""One training step of several clients: images, losses, gradients, descent.

Shapes: k clients that take part, B samples of a padded batch, c channels, H height, W width,
C classes, P trainable numbers of one network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.data.device import normalised
from ahfal_app.models import Classifier
from ahfal_app.training.local_updates.kcfu import mean_divergence_terms
from ahfal_app.training.sgd import Recipe, network_logits
from ahfal_app.training.together.stacked_network import StackedNetwork


@dataclass(frozen=True, eq=False)
class Batch:
    """Labelled samples of a step.

    Attributes
    ----------
    images_kBHWC : Tensor
        Augmented, uint8.
    labels_kB : Tensor
        Int64.
    counting_kB : Tensor | None
        Which samples count, bool; None: all.
    """

    images_kBHWC: Tensor
    labels_kB: Tensor
    counting_kB: Tensor | None


@dataclass(frozen=True, eq=False)
class MixedBatch:
    """Unlabelled samples of a step, for KCFU.

    Attributes
    ----------
    images_kBHWC : Tensor
        Augmented, uint8.
    weight_kB, partner_kB : Tensor
        Share of each image in its mixture, float32, and position of the other one, int64.
    counting_kB : Tensor
        Which samples count, bool; none of a client without unlabelled samples.
    """

    images_kBHWC: Tensor
    weight_kB: Tensor
    partner_kB: Tensor
    counting_kB: Tensor


@dataclass(frozen=True, eq=False)
class ClientConstants:
    """What is the same in all steps of a round, for each client.

    Attributes
    ----------
    log_counts_KC : Tensor
        Added to the logits: logarithms of class counts in a balanced softmax, else 0.
    rarity_KC : Tensor
        Weights of the classes in KCFU's compensatory loss.
    """

    log_counts_KC: Tensor
    rarity_KC: Tensor


#: The global model that KCFU distils from: one network in evaluation mode, or a copy for each
#: client, normalised by the batch, as in the published code.
Teacher = Classifier | StackedNetwork


class TogetherStep:
    """Takes steps of a stack of networks.

    Parameters
    ----------
    network : StackedNetwork
        The clients' networks.
    recipe : Recipe
        How they are trained.
    scale_C, shift_C : Tensor
        Normalisation of the images.
    constants : ClientConstants
        Of the clients.
    teacher : Teacher | None
        Of KCFU.
    """

    def __init__(
        self,
        network: StackedNetwork,
        recipe: Recipe,
        scale_C: Tensor,
        shift_C: Tensor,
        constants: ClientConstants,
        teacher: Teacher | None,
    ) -> None:
        self._network = network
        self._recipe = recipe
        self._scale_C, self._shift_C = scale_C, shift_C
        self._constants = constants
        self._teacher = teacher

    def __call__(self, rates_k: Tensor, batch: Batch, mixed: MixedBatch | None) -> Tensor:
        """Take a step of the first k clients; return their losses before it. Shape (k,).

        Parameters
        ----------
        rates_k : Tensor
            Learning rates.
        batch : Batch
            Labelled samples.
        mixed : MixedBatch | None
            Unlabelled samples, where KCFU has them.
        """
        weights_kP = self._network.weights_KP[: len(rates_k)].detach().requires_grad_()
        losses_k = self._labelled_losses(weights_kP, batch)
        if mixed is not None:
            losses_k = losses_k + self._compensatory_losses(weights_kP, mixed)
        (gradient_kP,) = torch.autograd.grad(losses_k.sum(), weights_kP)
        with torch.no_grad():
            self._network.descend(gradient_kP, rates_k, self._recipe)
        return losses_k.detach()

    def _labelled_losses(self, weights_kP: Tensor, batch: Batch) -> Tensor:
        inputs_kBcHW = self._normalised(batch.images_kBHWC)
        logits_kBC = self._network.logits(
            weights_kP, inputs_kBcHW, batch.counting_kB, self._recipe.precision
        )
        logits_kBC = logits_kBC + self._constants.log_counts_KC[: len(weights_kP), None]
        losses_B = cross_entropy(
            logits_kBC.flatten(0, 1), batch.labels_kB.flatten(), reduction="none"
        )
        return _mean_of(losses_B.view_as(batch.labels_kB), batch.counting_kB)

    def _compensatory_losses(self, weights_kP: Tensor, mixed: MixedBatch) -> Tensor:
        """Return the losses of `CompensatoryLoss`, client by client. Shape (k,)."""
        inputs_kBcHW = self._normalised(mixed.images_kBHWC)
        mixed_kBcHW = _mix(inputs_kBcHW, mixed)
        with torch.no_grad():
            teacher_kBC = self._teacher_logits(mixed_kBcHW, mixed.counting_kB)
        student_kBC = self._network.logits(
            weights_kP, mixed_kBcHW, mixed.counting_kB, self._recipe.precision
        )
        rarity_KC = self._constants.rarity_KC[: len(weights_kP)]
        rarity_kB = _mix(rarity_KC.gather(1, teacher_kBC.argmax(dim=2)), mixed)
        terms_B = mean_divergence_terms(teacher_kBC.flatten(0, 1), student_kBC.flatten(0, 1))
        return _mean_of(rarity_kB * terms_B.view_as(rarity_kB), mixed.counting_kB)

    def _teacher_logits(self, inputs_kBcHW: Tensor, counting_kB: Tensor) -> Tensor:
        if isinstance(self._teacher, StackedNetwork):
            weights_kP = self._teacher.weights_KP[: len(inputs_kBcHW)]
            return self._teacher.logits(
                weights_kP, inputs_kBcHW, counting_kB, self._recipe.precision
            )
        if self._teacher is None:
            raise ValueError("unlabelled samples need a teacher")
        inputs_BcHW = inputs_kBcHW.flatten(0, 1)
        logits_BC = network_logits(self._teacher, inputs_BcHW, self._recipe.precision)
        return logits_BC.view(*counting_kB.shape, -1)

    def _normalised(self, images_kBHWC: Tensor) -> Tensor:
        inputs_BcHW = normalised(images_kBHWC.flatten(0, 1), self._scale_C, self._shift_C)
        channels, height, width = inputs_BcHW.shape[1:]
        return inputs_BcHW.view(*images_kBHWC.shape[:2], channels, height, width)


def _mean_of(losses_kB: Tensor, counting_kB: Tensor | None) -> Tensor:
    if counting_kB is None:
        return losses_kB.mean(dim=1)
    total_k = torch.where(counting_kB, losses_kB, 0.0).sum(dim=1)
    return total_k / counting_kB.sum(dim=1).clamp_min(1)


def _mix(values_kB: Tensor, mixed: MixedBatch) -> Tensor:
    """Return each client's values, each mixed with its partner's."""
    clients_k1 = torch.arange(len(values_kB), device=values_kB.device)[:, None]
    weight = mixed.weight_kB.view(*mixed.weight_kB.shape, *[1] * (values_kB.dim() - 2))
    return weight * values_kB + (1 - weight) * values_kB[clients_k1, mixed.partner_kB]
