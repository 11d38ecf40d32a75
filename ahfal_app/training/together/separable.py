"""Losses and terms of several clients that can be trained together, and what is their own of them.

Shapes: K clients, k of them at a step, B samples of a padded batch, C classes, n trainable numbers
of all copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.query import SampleLoss
from ahfal_app.training.local_updates.kcfu import BalancedSoftmax, CompensatoryLoss
from ahfal_app.training.penalties import part_of, parts_of
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.sgd import LocalUpdate, Loss
from ahfal_app.training.together.stacked_network import StackedNetwork


def can_train_together(updates: Sequence[LocalUpdate]) -> bool:
    """Return whether these updates have losses that are known to be separable by client.

    Nor can those be trained together whose epochs somebody watches, or of whose networks a part
    rests: steps of a stack move all of it.
    """
    kinds = [kind_of_loss(update.objective.loss) for update in updates]
    return (
        all(update.after_epoch is None for update in updates)
        and all(each.requires_grad for update in updates for each in update.model.parameters())
        and kinds[0] is not None
        and all(kind == kinds[0] for kind in kinds)
        and all(_is_separable(update) for update in updates)
        and len({proximal_mu(update) for update in updates}) == 1
    )


def proximal_mu(update: LocalUpdate) -> float:
    """Return the weight of FedProx's term; 0: there is none."""
    term = part_of(update.objective.penalty, ProximalTerm)
    return term.mu if term is not None else 0.0


def kind_of_loss(loss: Loss) -> object:
    """Return what must be equal of losses that are stacked; None where they cannot be.

    Of a `SampleLoss` also its constants' shapes, since they lie at fixed places.
    """
    if isinstance(loss, SampleLoss):
        return loss.of_samples, tuple(constant.shape for constant in loss.constants)
    return cross_entropy if loss is cross_entropy or isinstance(loss, BalancedSoftmax) else None


def _is_separable(update: LocalUpdate) -> bool:
    parts = parts_of(update.objective.penalty)
    near = part_of(update.objective.penalty, ProximalTerm)
    return (
        all(isinstance(part, CompensatoryLoss | ProximalTerm) for part in parts)
        and len({type(part) for part in parts}) == len(parts)
        and (near is None or near.anchors.keys() >= dict(update.model.named_parameters()).keys())
    )


class StackedLoss:
    """Losses of samples, with the constants of several clients at fixed places in memory.

    Parameters
    ----------
    loss : SampleLoss
        That of one client, whose constants' values are not used.
    copies : int
        K.
    like : Tensor
        On which device and in which type it is computed.
    """

    def __init__(self, loss: SampleLoss, copies: int, like: Tensor) -> None:
        self._of_samples = loss.of_samples
        self._constants_K = [like.new_zeros((copies, *each.shape)) for each in loss.constants]

    def load(self, losses: Sequence[Loss]) -> None:
        """Take over the constants of the first clients' losses."""
        own = [loss.constants for loss in losses if isinstance(loss, SampleLoss)]
        for target_K, values in zip(self._constants_K, zip(*own, strict=True), strict=True):
            target_K[: len(own)].copy_(torch.stack(values))

    def __call__(self, logits_kBC: Tensor, labels_kB: Tensor) -> Tensor:
        """Return the samples' losses. Shape (k, B)."""
        count, size = labels_kB.shape
        constants = [
            each_K[:count].repeat_interleave(size, dim=0, output_size=count * size)
            for each_K in self._constants_K
        ]
        losses_n = self._of_samples(logits_kBC.flatten(0, 1), labels_kB.flatten(), *constants)
        return losses_n.view(count, size)


class StackedProximal:
    """FedProx's terms of several clients, with the models that hold them near.

    Parameters
    ----------
    mu : float
        Their weight.
    network : StackedNetwork
        What is trained.
    """

    def __init__(self, mu: float, network: StackedNetwork) -> None:
        self.mu = mu
        self._network = network
        self.anchors_n = torch.zeros_like(network.weights_n)
        """The models as they were received, all copies."""

    def load(self, updates: Sequence[LocalUpdate]) -> None:
        """Take over the first clients' anchors, once the network has loaded their models.

        A parameter that layers share has an anchor by each of its names, which are equal.
        """
        targets = self._network.by_copy(self.anchors_n)
        for position, update in enumerate(updates):
            term = part_of(update.objective.penalty, ProximalTerm)
            if term is not None:
                for name, target_K in targets.items():
                    target_K[position].copy_(term.anchors[name])

    def losses(self, count: int) -> Tensor:
        """Return the terms of the first k clients. Shape (k,)."""
        squares_n = (self._network.weights_n - self.anchors_n).square()
        return 0.5 * self.mu * self._network.sums_by_copy(squares_n)[:count]

    def add_gradient(self, gradient_n: Tensor) -> Tensor:
        """Return the gradient of the clients' losses with that of their terms."""
        return gradient_n.add(self._network.weights_n - self.anchors_n, alpha=self.mu)
