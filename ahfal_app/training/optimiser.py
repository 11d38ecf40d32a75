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

from ahfal_app.training.flat import FlatAccess


class _Known:
    """What is known of a network that is trained again and again: its parameters and inner modules.

    And a place for the momentum of the parameters that are trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.named = list(model.named_parameters())
        # Not the network itself, or it would be known for ever.
        self.inner = [module for module in model.modules() if module is not model]
        self._trained: tuple[str, ...] = ()
        self._places: dict[str, Tensor] = {}
        self._access = FlatAccess({})

    def momentum(self) -> tuple[dict[str, Tensor], FlatAccess]:
        """Return where momentum lies, by the names of the parameters that have a gradient."""
        trained = [(name, value) for name, value in self.named if value.requires_grad]
        if tuple(name for name, _ in trained) != self._trained:
            self._trained = tuple(name for name, _ in trained)
            # In the parameter's own layout: the fused step walks memory, whatever the strides.
            self._places = {n: torch.empty_like(v, requires_grad=False) for n, v in trained}
            self._access = FlatAccess(self._places, move=True)
        return self._places, self._access


_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


class FusedSGD:
    """Steps on a model's parameters that have a gradient, as `torch.optim.SGD(fused=True)` does.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    momentum, weight_decay : float
        As of `torch.optim.SGD`.
    buffers : Mapping[str, Tensor]
        Momentum of rounds before, by parameter; copied. All optimisers of a model keep theirs in
        the same place: only the one that was made last may be used.
    """

    def __init__(
        self, model: nn.Module, momentum: float, weight_decay: float, buffers: Mapping[str, Tensor]
    ) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        known = _known_of(model)
        self._places, self._access = known.momentum()
        self._parameters = [value for _, value in known.named if value.requires_grad]
        self._buffers: list[Tensor | None] = [None] * len(self._parameters)
        if self._access.holds(buffers):
            self._access.set(buffers)
            self._buffers = list(self._places.values())
        else:
            for place, (name, buffer) in enumerate(self._places.items()):
                if name in buffers:
                    self._buffers[place] = buffer.copy_(buffers[name])

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
    def buffers(self) -> Mapping[str, Tensor]:
        """A copy of the momentum of each parameter that has any, by name."""
        with torch.no_grad():
            for place, buffer in zip(self._places.values(), self._buffers, strict=True):
                if buffer is not None and buffer is not place:
                    place.copy_(buffer)
        if all(buffer is not None for buffer in self._buffers):
            return self._access.read()
        return {
            name: buffer.clone()
            for name, buffer in zip(self._places, self._buffers, strict=True)
            if buffer is not None
        }


def set_training(model: nn.Module) -> None:
    """Set a network to training, unless it is: to walk through all modules takes long.

    A module that is told of it in its own way is told each time.
    """
    modules = (model, *_known_of(model).inner)
    if not all(each.training and type(each).train is nn.Module.train for each in modules):
        model.train()


def _known_of(model: nn.Module) -> _Known:
    if model not in _known:
        _known[model] = _Known(model)
    return _known[model]
