"""Networks that give each sample that a client may choose a value: the agents of LeaDQ.

A network is a function of its weights, which are tensors by name: the same code runs on a client by
weights that came in a message, and at the server by those that are learned. An observation is the
rows of what can be chosen: class probabilities, or confidences.

Shape suffixes: E episodes, S steps of an episode, K clients, N rows of an observation, F features
of a row, H width of the network; a leading `...` is any batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

Weights = Mapping[str, Tensor]


class Agent(ABC):
    """Values of samples, by their own rows, those beside them, and earlier observations.

    Parameters
    ----------
    width : int
        Width H of the network.
    """

    is_recurrent: ClassVar[bool] = False
    """Whether values depend on earlier observations."""

    def __init__(self, width: int) -> None:
        self.width = width

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name."""

    @abstractmethod
    def features(self, weights: Weights, rows_NF: Tensor, sizes: Tensor) -> Tensor:
        """Return what of an observation goes on to the values, or into the memory.

        Parameters
        ----------
        weights : Weights
            The network's.
        rows_NF : Tensor
            Observations, padded with rows of zeros. Shape (..., N, F).
        sizes : Tensor
            How many rows each has. Shape (...).
        """

    @abstractmethod
    def values(self, weights: Weights, features: Tensor) -> Tensor:
        """Return a value for each row, those of the padding among them. Shape (..., N)."""

    def remembered(self, weights: Weights, features_BH: Tensor, before_BH: Tensor) -> Tensor:
        """Return the memory after one more observation. Shape (B, H)."""
        raise NotImplementedError(f"{type(self).__name__} remembers nothing")

    def unrolled(
        self, weights: Weights, rows_ESKNF: Tensor, sizes_ESK: Tensor, begins_S: list[bool]
    ) -> Tensor:
        """Return the values of all steps of episodes.

        A client that has no observation in a step remembers what it did before.

        Parameters
        ----------
        weights : Weights
            The network's.
        rows_ESKNF : Tensor
            Observations. Shape (E, S, K, N, F).
        sizes_ESK : Tensor
            How many rows each has; 0 where there is none. Shape (E, S, K).
        begins_S : list[bool]
            At which steps memory begins anew. Shape (S,).

        Returns
        -------
        Tensor
            Values. Shape (E, S, K, N).
        """
        features = self.features(weights, rows_ESKNF, sizes_ESK)
        if not self.is_recurrent:
            return self.values(weights, features)
        episodes, steps, clients = sizes_ESK.shape
        nothing_BH = features.new_zeros(episodes * clients, self.width)
        memory_BH, memories = nothing_BH, []
        for step in range(steps):
            if begins_S[step]:
                memory_BH = nothing_BH
            after_BH = self.remembered(weights, features[:, step].flatten(0, 1), memory_BH)
            is_there_B1 = sizes_ESK[:, step].reshape(-1, 1) > 0
            memory_BH = torch.where(is_there_B1, after_BH, memory_BH)
            memories.append(memory_BH.reshape(episodes, clients, self.width))
        return self.values(weights, torch.stack(memories, dim=1))


class FlatAgent(Agent):
    """An observation as one vector, through two layers of ReLU: as published, without memory.

    Parameters
    ----------
    rows, features : int
        Most rows N of an observation, and the features F of each.
    width : int
        Width H of the network.
    """

    def __init__(self, rows: int, features: int, width: int) -> None:
        super().__init__(width)
        self._rows, self._features = rows, features

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name."""
        width, inputs = self.width, self._rows * self._features
        return {
            "input.weight": (width, inputs),
            "input.bias": (width,),
            **self._inner,
            "output.weight": (self._rows, width),
            "output.bias": (self._rows,),
        }

    @property
    def _inner(self) -> dict[str, tuple[int, ...]]:
        return {"hidden.weight": (self.width, self.width), "hidden.bias": (self.width,)}

    def features(self, weights: Weights, rows_NF: Tensor, sizes: Tensor) -> Tensor:
        """Return the second hidden layer. Shape (..., H)."""
        first = self._first(weights, rows_NF)
        return linear(first, weights["hidden.weight"], weights["hidden.bias"]).relu()

    def values(self, weights: Weights, features: Tensor) -> Tensor:
        """Return a value for each place of the vector. Shape (..., N)."""
        return linear(features, weights["output.weight"], weights["output.bias"])

    def _first(self, weights: Weights, rows_NF: Tensor) -> Tensor:
        return linear(rows_NF.flatten(-2), weights["input.weight"], weights["input.bias"]).relu()


class RecurrentAgent(FlatAgent):
    """An observation as one vector, with a GRU as its memory: as published.

    With x = ReLU(W₁ o + b₁): r = σ(W_ir x + b_ir + W_hr h + b_hr), z likewise,
    n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn)), h' = (1 - z) ⊙ n + z ⊙ h, and q = W₂ h' + b₂.
    The gates lie one after the other in that order.
    """

    is_recurrent: ClassVar[bool] = True

    @property
    def _inner(self) -> dict[str, tuple[int, ...]]:
        gates = 3 * self.width
        return {
            "gru.input-weight": (gates, self.width),
            "gru.memory-weight": (gates, self.width),
            "gru.input-bias": (gates,),
            "gru.memory-bias": (gates,),
        }

    def features(self, weights: Weights, rows_NF: Tensor, sizes: Tensor) -> Tensor:
        """Return the first layer, which goes into the memory. Shape (..., H)."""
        return self._first(weights, rows_NF)

    def remembered(self, weights: Weights, features_BH: Tensor, before_BH: Tensor) -> Tensor:
        """Return the memory after one more observation. Shape (B, H)."""
        return torch.gru_cell(
            features_BH,
            before_BH,
            weights["gru.input-weight"],
            weights["gru.memory-weight"],
            weights["gru.input-bias"],
            weights["gru.memory-bias"],
        )


class SetAgent(Agent):
    """One network for each row and the mean of all: for any number of rows, in any order (ours).

    Parameters
    ----------
    features : int
        Features F of a row.
    width : int
        Width H of the network.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__(width)
        self._features = features

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name."""
        return {
            "input.weight": (self.width, 2 * self._features),
            "input.bias": (self.width,),
            "output.weight": (1, self.width),
            "output.bias": (1,),
        }

    def features(self, weights: Weights, rows_NF: Tensor, sizes: Tensor) -> Tensor:
        """Return the hidden layer of each row. Shape (..., N, H)."""
        mean_1F = rows_NF.sum(dim=-2, keepdim=True) / sizes.clamp(min=1)[..., None, None]
        both = torch.cat([rows_NF, mean_1F.expand_as(rows_NF)], dim=-1)
        return linear(both, weights["input.weight"], weights["input.bias"]).relu()

    def values(self, weights: Weights, features: Tensor) -> Tensor:
        """Return a value for each row. Shape (..., N)."""
        return linear(features, weights["output.weight"], weights["output.bias"]).squeeze(-1)


def most_valued(values_N: Tensor, is_open_N: Tensor, counts: Tensor) -> Tensor:
    """Return which rows have the highest values, among equals the first ones.

    Parameters
    ----------
    values_N : Tensor
        Values. Shape (..., N).
    is_open_N : Tensor
        Which rows may be chosen. Shape (..., N).
    counts : Tensor
        How many are. Shape (...).

    Returns
    -------
    Tensor
        Booleans. Shape (..., N).
    """
    open_N = values_N.masked_fill(~is_open_N, -torch.inf)
    order_N = open_N.argsort(dim=-1, descending=True, stable=True)
    ranks_N = order_N.argsort(dim=-1)
    return (ranks_N < counts[..., None]) & is_open_N
