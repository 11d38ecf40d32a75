"""A head with one hidden layer on vectors.

Its features are the hidden layer. Images are taken as vectors of their pixels.

Shapes: B samples of a batch, H hidden features, C classes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.models.core.vectors import (
    VectorInput,
    VectorParameters,
    dropout,
    numbers_of,
)

FACTS = NetworkFacts(stackable=True, takes_vectors=True)


class Parameters(VectorParameters):
    """Size of the hidden layer; normalisation of the vectors and dropout of hidden features."""

    hidden: int = Field(default=256, ge=1, le=65536, description="Features of the hidden layer.")


class MLPHead(Classifier):
    """A hidden layer with ReLU and a linear layer, on vectors of `numbers` numbers."""

    def __init__(self, numbers: int, num_classes: int, parameters: Parameters) -> None:
        super().__init__()
        self.vectors = VectorInput(numbers, parameters)
        self.hidden = nn.Linear(numbers, parameters.hidden)
        self.dropout = dropout(parameters.dropout, parameters.hidden)
        self.head = nn.Linear(parameters.hidden, num_classes)

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the hidden layer, shape (B, H); samples may be (B, D) or (B, c, H, W)."""
        features_BH: Tensor = self.dropout(torch.relu(self.hidden(self.vectors(images_BcHW))))
        return features_BH


def build(
    image_shape: tuple[int, int, int], num_classes: int, parameters: Parameters | None = None
) -> Classifier:
    """Return the head for samples of this shape (H, W, c); a vector's is (1, 1, D)."""
    return MLPHead(numbers_of(image_shape), num_classes, parameters or Parameters())
