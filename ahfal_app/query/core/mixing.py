"""What clients' values are together, by the state of the run: mixers of LeaDQ.

Rashid et al., QMIX: Monotonic value function factorisation for deep multi-agent reinforcement
learning, ICML 2018: layers whose weights are functions of the state, and not negative, so that what
is best for each client is best for all. Sunehag et al., Value-decomposition networks, AAMAS 2018:
a plain sum.

Shape suffixes: M numbers of a state, K clients, D width of the mixer; a leading `...` is any batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import elu, linear

from ahfal_app.query.core.agents import Weights

#: What a mixer makes of states: tensors whose first axes are the states' own.
Mixing = tuple[Tensor, ...]


#: Numbers between the two layers that make a weight of a state.
INNER = 64

_WITH_INNER = ("first", "second")


class Mixer(ABC):
    """Makes one value of those of all clients."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name."""

    @abstractmethod
    def mixing(self, weights: Weights, states_M: Tensor) -> Mixing:
        """Return how values are mixed in some states. Of shape (..., M)."""

    @abstractmethod
    def mixed(self, mixing: Mixing, values_K: Tensor) -> Tensor:
        """Return the value of all, of values (..., K). Shape (...)."""


class MonotonicMixer(Mixer):
    """QMIX: Q = ELU(q W₁ + b₁) · W₂ + b₂, where all are functions of the state s.

    W₁ = |H₁ s + c₁| (K, D), b₁ = H₂ s + c₂, W₂ = |H₃ s + c₃|, b₂ = v · ReLU(H₄ s + c₄) + c₅. With
    two layers W₁ and W₂ are functions of ReLU(H s + c) of their own, of 64 numbers, instead of s.

    Parameters
    ----------
    states, clients, width : int
        Sizes M, K and D.
    layers : int
        1, or 2.
    """

    def __init__(self, states: int, clients: int, width: int, layers: int = 1) -> None:
        self._states, self._clients, self._width = states, clients, width
        self._has_inner = layers == 2

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name."""
        width, both = self._width, self._clients * self._width
        layers = {"first": both, "first-shift": width, "second": width, "second-shift": width}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, size in layers.items():
            inputs = self._states
            if self._has_inner and name in _WITH_INNER:
                shapes[f"{name}-inner.weight"] = (INNER, inputs)
                shapes[f"{name}-inner.bias"] = (INNER,)
                inputs = INNER
            shapes[f"{name}.weight"] = (size, inputs)
            shapes[f"{name}.bias"] = (size,)
        return {**shapes, "value.weight": (1, width), "value.bias": (1,)}

    def mixing(self, weights: Weights, states_M: Tensor) -> Mixing:
        """Return W₁ (..., K, D), b₁ (..., D), W₂ (..., D) and b₂ (...)."""

        def layer(name: str, inputs: Tensor) -> Tensor:
            if self._has_inner and name in _WITH_INNER:
                inputs = layer(f"{name}-inner", inputs).relu()
            return linear(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"])

        first = layer("first", states_M).abs()
        first = first.reshape(*first.shape[:-1], self._clients, self._width)
        shift = layer("value", layer("second-shift", states_M).relu()).squeeze(-1)
        return first, layer("first-shift", states_M), layer("second", states_M).abs(), shift

    def mixed(self, mixing: Mixing, values_K: Tensor) -> Tensor:
        """Return the value of all. Shape (...)."""
        first_KD, first_shift_D, second_D, shift = mixing
        hidden_D = elu((values_K[..., None] * first_KD).sum(dim=-2) + first_shift_D)
        return (hidden_D * second_D).sum(dim=-1) + shift


class Sum(Mixer):
    """Value decomposition: the sum of all clients' values, whatever the state is."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """No weights."""
        return {}

    def mixing(self, weights: Weights, states_M: Tensor) -> Mixing:
        """Return nothing: it is always the same."""
        return ()

    def mixed(self, mixing: Mixing, values_K: Tensor) -> Tensor:
        """Return the sum. Shape (...)."""
        return values_K.sum(dim=-1)
