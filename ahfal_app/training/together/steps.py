"""One training step of several clients: images, losses, gradients, descent.

All of it reads and changes tensors that lie on the device, and gives nothing to the host, so that a
step can be recorded and replayed.

Shapes: k clients that take part, B samples of a padded batch, c channels, H height, W width,
C classes, n trainable numbers of all copies, F = k c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.data.device import AugmentationDraws, DeviceImages, normalised
from ahfal_app.models import Classifier
from ahfal_app.training.local_updates.kcfu import mean_divergence_terms
from ahfal_app.training.sgd import Recipe, network_logits
from ahfal_app.training.together.separable import StackedLoss, StackedProximal
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.vectors import ReadyVectors


@dataclass(frozen=True, eq=False)
class Rows:
    """Which images a step takes, and how they are augmented.

    Attributes
    ----------
    rows_kB : Tensor
        Rows of the split, int64.
    offsets_2kB, flip_kB, views_kB : Tensor | None
        The draws of the augmentation, int64, bool and int64.
    """

    rows_kB: Tensor
    offsets_2kB: Tensor | None
    flip_kB: Tensor | None
    views_kB: Tensor | None

    def draws(self) -> AugmentationDraws:
        """Return the draws of all clients as those of one batch."""
        return AugmentationDraws(
            None if self.offsets_2kB is None else self.offsets_2kB.flatten(1),
            None if self.flip_kB is None else self.flip_kB.flatten(),
            None if self.views_kB is None else self.views_kB.flatten(),
        )


@dataclass(frozen=True, eq=False)
class Batch(Rows):
    """Labelled samples of a step.

    Attributes
    ----------
    labels_kB : Tensor
        Int64.
    counting_kB : Tensor | None
        Which samples count, bool; None: all.
    """

    labels_kB: Tensor
    counting_kB: Tensor | None


@dataclass(frozen=True, eq=False)
class MixedBatch(Rows):
    """Unlabelled samples of a step, for KCFU.

    Attributes
    ----------
    weight_kB, partner_kB : Tensor
        Share of each image in its mixture, float32, and position of the other one, int64.
    counting_kB : Tensor
        Which samples count, bool; none of a client without unlabelled samples.
    """

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
    loss : StackedLoss | None
        A query strategy's own loss; None: cross-entropy.
    proximal : StackedProximal | None
        FedProx's terms, where there are any.
    """

    log_counts_KC: Tensor
    rarity_KC: Tensor
    loss: StackedLoss | None = None
    proximal: StackedProximal | None = None


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
    images : DeviceImages
        What they are trained on.
    constants : ClientConstants
        Of the clients.
    teacher : Teacher | None
        Of KCFU.
    vectors : ReadyVectors | None
        Where what the networks take in is ready; None: it is made of the images in each step.
    """

    def __init__(
        self,
        network: StackedNetwork,
        recipe: Recipe,
        images: DeviceImages,
        constants: ClientConstants,
        teacher: Teacher | None,
        vectors: ReadyVectors | None = None,
    ) -> None:
        self._network = network
        self._recipe = recipe
        self._images = images
        self._constants = constants
        self._teacher = teacher
        self._vectors = vectors

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
        weights_n = self._network.weights_n.detach().requires_grad_()
        losses_k = self._labelled_losses(weights_n, batch)
        if mixed is not None:
            losses_k = losses_k + self._compensatory_losses(weights_n, mixed)
        (gradient_n,) = torch.autograd.grad(losses_k.sum(), weights_n)
        losses_k = losses_k.detach()
        with torch.no_grad():
            if (proximal := self._constants.proximal) is not None:
                losses_k = losses_k + proximal.losses(len(losses_k))
                gradient_n = proximal.add_gradient(gradient_n)
            self._network.descend(gradient_n, rates_k, self._recipe)
        return losses_k

    def _labelled_losses(self, weights_n: Tensor, batch: Batch) -> Tensor:
        count = len(batch.rows_kB)
        logits_kBC = self._network.logits(
            weights_n, self._inputs(batch), batch.counting_kB, count, self._recipe.precision
        )
        if self._constants.loss is not None:
            return mean_of(self._constants.loss(logits_kBC, batch.labels_kB), batch.counting_kB)
        logits_kBC = logits_kBC + self._constants.log_counts_KC[:count, None]
        losses_B = cross_entropy(
            logits_kBC.flatten(0, 1), batch.labels_kB.flatten(), reduction="none"
        )
        return mean_of(losses_B.view_as(batch.labels_kB), batch.counting_kB)

    def _inputs(self, batch: Batch) -> Tensor:
        """Return what the networks take in, side by side, (B, F) or (B, F, H, W)."""
        if self._vectors is not None:
            return self._vectors.side_by_side(batch.rows_kB)
        count = len(batch.rows_kB)
        images_kBHWc = self._augmented(batch)
        # Brought side by side as bytes, which is a quarter of what it is as numbers.
        images_BHWF = images_kBHWc.permute(1, 2, 3, 0, 4).flatten(3)
        scale_c, shift_c = self._images.scale_C, self._images.shift_C
        return normalised(images_BHWF, scale_c.repeat(count), shift_c.repeat(count))

    def _compensatory_losses(self, weights_n: Tensor, mixed: MixedBatch) -> Tensor:
        """Return the losses of `CompensatoryLoss`, client by client. Shape (k,)."""
        count = len(mixed.rows_kB)
        images_kBHWc = self._augmented(mixed)
        inputs_BcHW = normalised(
            images_kBHWc.flatten(0, 1), self._images.scale_C, self._images.shift_C
        )
        mixed_kBcHW = _mix(inputs_BcHW.view(*mixed.rows_kB.shape, *inputs_BcHW.shape[1:]), mixed)
        mixed_BFHW = _side_by_side(mixed_kBcHW)
        with torch.no_grad():
            teacher_kBC = self._teacher_logits(mixed_kBcHW, mixed_BFHW, mixed.counting_kB)
        student_kBC = self._network.logits(
            weights_n, mixed_BFHW, mixed.counting_kB, count, self._recipe.precision
        )
        rarity_kC = self._constants.rarity_KC[:count]
        rarity_kB = _mix(rarity_kC.gather(1, teacher_kBC.argmax(dim=2)), mixed)
        terms_B = mean_divergence_terms(teacher_kBC.flatten(0, 1), student_kBC.flatten(0, 1))
        return mean_of(rarity_kB * terms_B.view_as(rarity_kB), mixed.counting_kB)

    def _teacher_logits(
        self, inputs_kBcHW: Tensor, inputs_BFHW: Tensor, counting_kB: Tensor
    ) -> Tensor:
        precision = self._recipe.precision
        if isinstance(self._teacher, StackedNetwork):
            weights_n = self._teacher.weights_n
            return self._teacher.logits(
                weights_n, inputs_BFHW, counting_kB, len(counting_kB), precision
            )
        if self._teacher is None:
            raise ValueError("unlabelled samples need a teacher")
        logits_BC = network_logits(self._teacher, inputs_kBcHW.flatten(0, 1), precision)
        return logits_BC.view(*counting_kB.shape, -1)

    def _augmented(self, rows: Rows) -> Tensor:
        """Return the images of a step, uint8 (k, B, H, W, c)."""
        images_BHWc = self._images.transformed(
            rows.rows_kB.flatten(), self._recipe.augmentation, rows.draws()
        )
        return images_BHWc.view(*rows.rows_kB.shape, *images_BHWc.shape[1:])


def _side_by_side(inputs_kBcHW: Tensor) -> Tensor:
    """Return the inputs of all clients side by side in the channels, (B, F, H, W)."""
    inputs_BHWF = inputs_kBcHW.permute(1, 3, 4, 0, 2).flatten(3)
    return inputs_BHWF.permute(0, 3, 1, 2)


def mean_of(losses_kB: Tensor, counting_kB: Tensor | None) -> Tensor:
    """Return each client's mean over the samples that count. Shape (k,)."""
    if counting_kB is None:
        return losses_kB.mean(dim=1)
    total_k = torch.where(counting_kB, losses_kB, 0.0).sum(dim=1)
    return total_k / counting_kB.sum(dim=1).clamp_min(1)


def _mix(values_kB: Tensor, mixed: MixedBatch) -> Tensor:
    """Return each client's values, each mixed with its partner's."""
    clients_k1 = torch.arange(len(values_kB), device=values_kB.device)[:, None]
    weight = mixed.weight_kB.view(*mixed.weight_kB.shape, *[1] * (values_kB.dim() - 2))
    return weight * values_kB + (1 - weight) * values_kB[clients_k1, mixed.partner_kB]
