"""SGD with momentum and weight decay, made for a client's round and gone after it.

`torch.optim.SGD` does the same arithmetic, in the same kernel; making one for each message and its
bookkeeping at each step takes longer than a small network's step itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

# A process trains the same few networks again and again, and to walk one takes time.
_known: weakref.WeakKeyDictionary[nn.Module, list[tuple[str, nn.Parameter]]] = (
    weakref.WeakKeyDictionary()
)


class FusedSGD:
    """Steps on a model's parameters that have a gradient, as `torch.optim.SGD(fused=True)` does.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    momentum, weight_decay : float
        As of `torch.optim.SGD`.
    buffers : Mapping[str, Tensor]
        Momentum of rounds before, by parameter; copied.
    """

    def __init__(
        self, model: nn.Module, momentum: float, weight_decay: float, buffers: Mapping[str, Tensor]
    ) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        named = [(name, value) for name, value in _parameters_of(model) if value.requires_grad]
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        # In the parameter's own layout: the fused step walks memory, whatever the strides.
        self._buffers = [
            torch.empty_like(parameter, requires_grad=False).copy_(buffers[name])
            if name in buffers
            else None
            for name, parameter in named
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, learning_rate: float) -> None:
        """Step against the gradients; a parameter without one stays as it is."""
        gradients = [parameter.grad for parameter in self._parameters]
        used = [place for place, gradient in enumerate(gradients) if gradient is not None]
        buffers = [self._buffers[place] for place in used]
        with torch.no_grad():
            sgd(
                [self._parameters[place] for place in used],
                [gradient for gradient in gradients if gradient is not None],
                buffers,
                fused=True,
                weight_decay=self._weight_decay,
                momentum=self._momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
        if self._momentum:
            for place, buffer in zip(used, buffers, strict=True):
                self._buffers[place] = buffer

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The momentum of each parameter that has any, by name."""
        return {
            name: buffer
            for name, buffer in zip(self._names, self._buffers, strict=True)
            if buffer is not None
        }


def _parameters_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    if model not in _known:
        _known[model] = list(model.named_parameters())
    return _known[model]
