"""Losses of local training that are means over samples.

Shapes: N samples, B of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

#: Maps logits (N, C), labels (N,) and constants to the samples' losses (N,). A constant that is of
#: shape S at a client comes as (N, *S), or as (1, *S) where all samples are of one client.
OfSamples = Callable[..., Tensor]


class SampleLoss:
    """The mean of losses that samples have one by one.

    A client minimises it as any other loss. Clients whose losses differ in constants alone can be
    trained together, which is many times as fast where their models are small.

    Parameters
    ----------
    of_samples : OfSamples
        The samples' losses: one and the same function at all clients.
    *constants : Tensor
        What is the client's own, or the round's, on the CPU; equal in shape at all clients.
    """

    def __init__(self, of_samples: OfSamples, *constants: Tensor) -> None:
        self.of_samples = of_samples
        self.constants = constants
        self._near: tuple[Tensor, ...] = constants

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        # Once: to send them with each step would make a GPU's host wait each time.
        self._near = tuple(each.to(logits_BC) for each in self._near)
        constants = (each[None] for each in self._near)
        return self.of_samples(logits_BC, labels_B, *constants).mean()
