"""What heads on vectors share: their input, normalised, and dropout that all clients can have.

Shapes: B samples of a batch, D numbers of a vector, H hidden features.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.parameters import Parameters

#: What is done to each vector before the head sees it.
Normalisation = Literal["none", "unit", "batch"]

# Constants of Chris Wellons' lowbias32, a hash of 32 bits with little bias.
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
_BITS = 0xFFFFFFFF
# An odd number near 2^32 divided by the golden ratio: steps that follow each other lie far apart.
_STRIDE = 0x9E3779B1


class VectorParameters(Parameters):
    """What a head does to its input; all heads on vectors have these."""

    normalise: Normalisation = Field(
        default="none",
        description="Vectors: as they are, of one length each (`model.scale`), or standardised by "
        "the batch, in tests by running statistics.",
    )
    scale: float = Field(
        default=10.0, gt=0, le=1e4, description="Length of a vector after `model.normalise=unit`."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the features that a training step leaves out.",
    )


class VectorInput(nn.Module):
    """Takes samples as vectors, normalised as parameters say.

    Parameters
    ----------
    numbers : int
        Numbers D of a vector.
    parameters : VectorParameters
        Its normalisation.
    """

    def __init__(self, numbers: int, parameters: VectorParameters) -> None:
        super().__init__()
        self._numbers = numbers
        self._length = parameters.scale if parameters.normalise == "unit" else 0.0
        #: Whether samples come as this module has returned them before, so that nothing is to do.
        self.is_done = False
        self.norm: nn.Module | None = None
        if parameters.normalise == "batch":
            self.norm = BatchNorm2d(numbers)

    @property
    def is_fixed(self) -> bool:
        """Whether what becomes of a sample depends on nothing else, so that it can be kept."""
        return self.norm is None

    def forward(self, samples_B: Tensor) -> Tensor:
        """Return vectors (B, D) of samples (B, D) or of images of any size (B, c, H, W).

        Of several copies, whose samples lie side by side in the channels, so do the vectors.
        """
        vectors_BD = samples_B.flatten(1)
        if self.is_done:
            return vectors_BD
        if self._length:
            # `shape` and not `len`, which an exported program would have as a constant.
            by_copy = vectors_BD.view(vectors_BD.shape[0], -1, self._numbers)
            vectors_BD = (normalize(by_copy, dim=2) * self._length).flatten(1)
        if self.norm is not None:
            vectors_BD = self.norm(vectors_BD[:, :, None, None]).flatten(1)
        return vectors_BD


class CountedDropout(nn.Module):
    """Dropout whose choice follows from the step, the sample's place and the feature.

    `nn.Dropout` draws from torch's global generator, which all clients of a process share, so
    that results would depend on how threads take turns. Here nothing is drawn: a hash of step,
    place and feature decides. Clients that train the same step leave out the same features.

    Parameters
    ----------
    share : float
        Probability that a feature is left out; the others are scaled up by 1 / (1 - share).
    features : int
        Number of features D.
    """

    steps: Tensor

    #: Which samples count, of several copies, bool (k, B); None: all. A copy of which none does
    #: takes no step.
    counting_kB: Tensor | None = None

    def __init__(self, share: float, features: int) -> None:
        super().__init__()
        self._share = share
        self._features = features
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the features (B, D), in training with some of them 0.

        Those of several copies lie side by side, and there is a number of steps for each.
        """
        if not self.training:
            return features_BD
        size = len(features_BD)
        cells_BD = torch.arange(size * self._features, device=features_BD.device)
        cells_B1D = cells_BD.view(size, 1, self._features)
        steps_k1 = _hashed(self.steps.reshape(-1, 1) * _STRIDE)
        kept_BkD = _hashed(cells_B1D ^ steps_k1) >= self._share * (_BITS + 1)
        with torch.no_grad():
            taken = 1 if self.counting_kB is None else self.counting_kB.any(dim=1).long()
            self.steps.add_(taken)
        return features_BD * kept_BkD.flatten(1) / (1.0 - self._share)


def dropout(share: float, features: int) -> nn.Module:
    """Return dropout of that share of so many features, or nothing for 0."""
    return CountedDropout(share, features) if share else nn.Identity()


def numbers_of(image_shape: tuple[int, int, int]) -> int:
    """Return how many numbers a sample of this shape (H, W, c) has as a vector."""
    return math.prod(image_shape)


def _hashed(values: Tensor) -> Tensor:
    """Return 32 bits for each integer, as int64."""
    values = values & _BITS
    values = ((values ^ (values >> 16)) * _FIRST) & _BITS
    values = ((values ^ (values >> 15)) * _SECOND) & _BITS
    return values ^ (values >> 15)
