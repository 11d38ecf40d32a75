"""Several copies of a network whose weights lie in one tensor, with SGD on all of them.

Shapes: K copies, P trainable numbers of one copy, B samples, c channels, H height, W width,
C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ahfal_app.models import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.training.sgd import Recipe, at_least_float32

# Momentum's keys in a client's state are the parameters' names; so are the weights' here.
Tensors = Mapping[str, Tensor]


class StackedNetwork:
    """K copies of a network, trained with SGD as `torch.optim.SGD` does.

    Parameters
    ----------
    model : Classifier
        Gives the structure, on the device; its weights are not used.
    copies : int
        How many.

    Attributes
    ----------
    weights_KP, momentum_KP : Tensor
        Trainable weights and their momentum.
    buffers : dict[str, Tensor]
        Buffers by name, each with a first dimension of K.
    """

    def __init__(self, model: Classifier, copies: int) -> None:
        self._skeleton = copy.deepcopy(model).train()
        self._norms = [m for m in self._skeleton.modules() if isinstance(m, BatchNorm2d)]
        parameters = dict(self._skeleton.named_parameters())
        self._shapes = {name: value.shape for name, value in parameters.items()}
        self._sizes = [value.numel() for value in parameters.values()]
        first = next(iter(parameters.values()))
        self.weights_KP = first.new_zeros((copies, sum(self._sizes)))
        self.momentum_KP = torch.zeros_like(self.weights_KP)
        self.buffers = {
            name: torch.stack([value] * copies) for name, value in self._skeleton.named_buffers()
        }

    def load(self, position: int, tensors: Tensors, momentum: Tensors | None) -> None:
        """Take over a copy's state dictionary and its momentum; None: it has none yet."""
        for name, target in self._pieces(self.weights_KP[position]).items():
            target.copy_(tensors[name])
        for name, buffer in self.buffers.items():
            buffer[position].copy_(tensors[name])
        for name, target in self._pieces(self.momentum_KP[position]).items():
            if momentum and name in momentum:
                target.copy_(momentum[name])
            else:
                target.zero_()

    def save(self, position: int, tensors: Tensors) -> dict[str, Tensor]:
        """Write a copy into a state dictionary's tensors; return a copy of its momentum."""
        with torch.no_grad():
            for name, source in self._pieces(self.weights_KP[position]).items():
                tensors[name].copy_(source)
            for name, buffer in self.buffers.items():
                tensors[name].copy_(buffer[position])
        momentum = self._pieces(self.momentum_KP[position])
        return {name: value.clone() for name, value in momentum.items()}

    def logits(
        self,
        weights_kP: Tensor,
        inputs_kBcHW: Tensor,
        counting_kB: Tensor | None,
        precision: str,
    ) -> Tensor:
        """Return the logits of the first k copies in training mode. Shape (k, B, C).

        Running statistics of batch normalisation move.

        Parameters
        ----------
        weights_kP : Tensor
            Their weights; gradients flow to them.
        inputs_kBcHW : Tensor
            Normalised images.
        counting_kB : Tensor | None
            Which samples count for batch normalisation, bool; None: all.
        precision : str
            `fp32` or `bf16`.
        """
        count = len(weights_kP)
        pieces = torch.split(weights_kP, self._sizes, dim=1)
        parameters = {
            name: piece.reshape(count, *shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        # Copies, since KCFU's second pass moves them before the first one's gradient is known.
        buffers = {name: buffer[:count].clone() for name, buffer in self.buffers.items()}
        in_dims = (0, 0, 0, None if counting_kB is None else 0)
        # Weights are used once in a step: autocast's cache of converted ones is of no use.
        with torch.autocast(
            inputs_kBcHW.device.type,
            torch.bfloat16,
            enabled=precision == "bf16",
            cache_enabled=False,
        ):
            # Where nothing goes by the batch, padding may be computed along.
            found_kBC = None
            if not self.buffers:
                found_kBC = self._skeleton.stacked_logits(parameters, inputs_kBcHW)
            logits_kBC: Tensor = (
                found_kBC
                if found_kBC is not None
                else vmap(self._logits_of_one, in_dims=in_dims)(
                    parameters, buffers, inputs_kBcHW, counting_kB
                )
            )
        with torch.no_grad():
            for name, buffer in self.buffers.items():
                buffer[:count].copy_(buffers[name])
        return at_least_float32(logits_kBC)

    def descend(self, gradient_kP: Tensor, rates_k: Tensor, recipe: Recipe) -> None:
        """Take a step of SGD with momentum and weight decay for the first k copies."""
        count = len(gradient_kP)
        weights_kP, momentum_kP = self.weights_KP[:count], self.momentum_KP[:count]
        gradient_kP = gradient_kP.add(weights_kP, alpha=recipe.weight_decay)
        momentum_kP.mul_(recipe.momentum).add_(gradient_kP)
        weights_kP.addcmul_(momentum_kP, rates_k[:, None].to(momentum_kP.dtype), value=-1)

    def _logits_of_one(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        inputs_BcHW: Tensor,
        counting_B: Tensor | None,
    ) -> Tensor:
        for norm in self._norms:
            norm.counting_B = counting_B
        try:
            logits_BC: Tensor = functional_call(
                self._skeleton, (parameters, buffers), (inputs_BcHW,)
            )
        finally:
            for norm in self._norms:
                norm.counting_B = None
        return logits_BC

    def _pieces(self, values_P: Tensor) -> dict[str, Tensor]:
        """Return views of one copy's numbers by parameter."""
        pieces = torch.split(values_P, self._sizes)
        return {
            name: piece.view(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
