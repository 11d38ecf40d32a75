"""A training step of several linear heads, its gradient written out.

The gradient of the cross-entropy by a linear layer is a product of two matrices. Written out, a
step is two batched products in the layout in which these are fastest (a client's vectors in one
piece of memory, classes before samples), and the second adds to the momentum in place. That is some
times as fast on a CPU as automatic differentiation of heads that lie side by side.

Shapes: k clients that take part, B samples of a padded batch, D numbers of a vector, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ahfal_app.training.sgd import Recipe
from ahfal_app.training.together.separable import StackedLoss
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.steps import Batch, ClientConstants, MixedBatch, mean_of
from ahfal_app.training.together.vectors import ReadyVectors

_WEIGHT, _BIAS = "head.weight", "head.bias"


class LinearHeadsStep:
    """Takes steps of linear heads on vectors that are ready, as `TogetherStep` does up to rounding.

    With bf16 both products are computed in it, as autocast has it; weights, momentum and the loss
    are not.

    Parameters
    ----------
    network : StackedNetwork
        The clients' heads.
    recipe : Recipe
        How they are trained.
    constants : ClientConstants
        Of the clients.
    vectors : ReadyVectors
        What the heads are trained on.
    """

    def __init__(
        self,
        network: StackedNetwork,
        recipe: Recipe,
        constants: ClientConstants,
        vectors: ReadyVectors,
    ) -> None:
        weights, momentum = network.trained_by_copy()
        self._weights_KCD, self._biases_KC = weights[_WEIGHT], weights[_BIAS]
        self._momentum_KCD, self._bias_momentum_KC = momentum[_WEIGHT], momentum[_BIAS]
        self._recipe, self._constants, self._vectors = recipe, constants, vectors
        proximal = constants.proximal
        self._anchors = {} if proximal is None else network.by_copy(proximal.anchors_n)

    @torch.no_grad()
    def __call__(self, rates_k: Tensor, batch: Batch, mixed: MixedBatch | None) -> Tensor:
        """Take a step of the first k clients; return their losses before it. Shape (k,).

        Parameters
        ----------
        rates_k : Tensor
            Learning rates.
        batch : Batch
            Labelled samples.
        mixed : MixedBatch | None
            None: what needs unlabelled samples is not trained so.
        """
        vectors_kBD = self._vectors.by_client(batch.rows_kB)
        logits_kCB = self._logits(vectors_kBD)
        losses_k, by_logits_kCB = self._differentiated(logits_kCB, batch)
        rates_k = rates_k.to(by_logits_kCB.dtype)
        if (proximal := self._constants.proximal) is not None:
            losses_k = losses_k + proximal.losses(len(losses_k))
        self._descend(by_logits_kCB, vectors_kBD, rates_k)
        return losses_k

    def _differentiated(self, logits_kCB: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the clients' losses (k,), and their gradient by the logits (k, C, B)."""
        if self._constants.loss is not None:
            return _by_autograd(self._constants.loss, logits_kCB, batch)
        logits_kCB += self._constants.log_counts_KC[: len(logits_kCB), :, None]
        labels_k1B = batch.labels_kB[:, None]
        logs_kCB = logits_kCB.log_softmax(dim=1)
        losses_k = mean_of(-logs_kCB.gather(1, labels_k1B)[:, 0], batch.counting_kB)
        by_logits_kCB = logs_kCB.exp_()
        by_logits_kCB.scatter_add_(
            1, labels_k1B, by_logits_kCB.new_full((1, 1, 1), -1.0).expand(labels_k1B.shape)
        )
        by_logits_kCB *= _shares(batch, by_logits_kCB)
        return losses_k, by_logits_kCB

    def _logits(self, vectors_kBD: Tensor) -> Tensor:
        count, turned_kDB = len(vectors_kBD), vectors_kBD.transpose(1, 2)
        weights_kCD, biases_kC1 = self._weights_KCD[:count], self._biases_KC[:count, :, None]
        if vectors_kBD.dtype == weights_kCD.dtype:
            return torch.baddbmm(biases_kC1, weights_kCD, turned_kDB)
        return torch.bmm(weights_kCD.to(vectors_kBD.dtype), turned_kDB) + biases_kC1

    def _descend(self, by_logits_kCB: Tensor, vectors_kBD: Tensor, rates_k: Tensor) -> None:
        """Take a step of SGD with momentum and weight decay, as `StackedNetwork.descend` does."""
        recipe, count = self._recipe, len(rates_k)
        weights_kCD, biases_kC = self._weights_KCD[:count], self._biases_KC[:count]
        momentum_kCD = self._momentum_KCD[:count]
        bias_momentum_kC = self._bias_momentum_KC[:count]
        if vectors_kBD.dtype == momentum_kCD.dtype:
            momentum_kCD.baddbmm_(by_logits_kCB, vectors_kBD, beta=recipe.momentum)
        else:
            gradient_kCD = torch.bmm(by_logits_kCB.to(vectors_kBD.dtype), vectors_kBD)
            momentum_kCD.mul_(recipe.momentum).add_(gradient_kCD)
        bias_momentum_kC.mul_(recipe.momentum).add_(by_logits_kCB.sum(dim=2))
        if self._constants.proximal is not None:
            mu = self._constants.proximal.mu
            momentum_kCD.add_(weights_kCD - self._anchors[_WEIGHT][:count], alpha=mu)
            bias_momentum_kC.add_(biases_kC - self._anchors[_BIAS][:count], alpha=mu)
        momentum_kCD.add_(weights_kCD, alpha=recipe.weight_decay)
        weights_kCD.addcmul_(momentum_kCD, rates_k[:, None, None], value=-1)
        bias_momentum_kC.add_(biases_kC, alpha=recipe.weight_decay)
        biases_kC.addcmul_(bias_momentum_kC, rates_k[:, None], value=-1)


def _by_autograd(loss: StackedLoss, logits_kCB: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        logits_kBC = logits_kCB.transpose(1, 2).detach().requires_grad_()
        losses_k = mean_of(loss(logits_kBC, batch.labels_kB), batch.counting_kB)
        (by_logits_kBC,) = torch.autograd.grad(losses_k.sum(), logits_kBC)
    return losses_k.detach(), by_logits_kBC.transpose(1, 2)


def _shares(batch: Batch, like: Tensor) -> Tensor | float:
    """Return what each sample counts for in its client's mean; shape (k, 1, B) where it differs."""
    if batch.counting_kB is None:
        return 1.0 / batch.rows_kB.shape[1]
    counting_kB = batch.counting_kB.to(like.dtype)
    return (counting_kB / counting_kB.sum(dim=1, keepdim=True).clamp_min(1))[:, None]
