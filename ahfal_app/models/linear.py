"""A linear head on vectors: multinomial logistic regression.

Its features are the vectors themselves, normalised as is set. Images are taken as vectors of their
pixels.

Shapes: B samples of a batch, D numbers of a vector, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.models.core.vectors import (
    VectorInput,
    VectorParameters,
    dropout,
    numbers_of,
)

FACTS = NetworkFacts(stackable=True, together_pays_on_cpu=True, takes_vectors=True)


class Parameters(VectorParameters):
    """Normalisation and dropout of the vectors."""


class LinearHead(Classifier):
    """One linear layer, on vectors of `numbers` numbers."""

    def __init__(self, numbers: int, num_classes: int, parameters: Parameters) -> None:
        super().__init__()
        self.vectors = VectorInput(numbers, parameters)
        self.dropout = dropout(parameters.dropout, numbers)
        self.head = nn.Linear(numbers, num_classes)

    @property
    def is_head_alone(self) -> bool:
        """Whether nothing lies between vectors and head; dropout would."""
        return isinstance(self.dropout, nn.Identity)

    @property
    def has_fixed_features(self) -> bool:
        """Whether vectors are normalised by nothing that is learned."""
        return self.vectors.is_fixed

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the normalised vectors, shape (B, D); samples may be (B, D), too."""
        features_BD: Tensor = self.dropout(self.vectors(images_BcHW))
        return features_BD


def build(
    image_shape: tuple[int, int, int], num_classes: int, parameters: Parameters | None = None
) -> Classifier:
    """Return the head for samples of this shape (H, W, c); a vector's is (1, 1, D)."""
    return LinearHead(numbers_of(image_shape), num_classes, parameters or Parameters())
