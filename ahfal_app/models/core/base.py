"""What every network has: a feature map, features of it, and a linear head on them.

Shapes: B samples of a batch, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """A network whose logits are a linear function of its features."""

    head: nn.Linear

    @property
    def is_head_alone(self) -> bool:
        """Whether the head on the samples as `vectors` takes them is all that there is."""
        return False

    @property
    def has_fixed_features(self) -> bool:
        """Whether its features of a sample, in evaluation, are the same whatever it learned."""
        return False

    @abstractmethod
    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the input of the last linear layer, shape (B, D)."""

    def feature_map(self, images_BcHW: Tensor) -> Tensor:
        """Return the last map with spatial dimensions, shape (B, c', H', W').

        A network that does not say otherwise has none: its features as (B, D, 1, 1).
        """
        return self.features(images_BcHW)[:, :, None, None]

    def features_of_map(self, map_BcHW: Tensor) -> Tensor:
        """Return the features, shape (B, D), from the feature map."""
        return map_BcHW.flatten(1)

    def forward(self, images_BcHW: Tensor) -> Tensor:
        """Return the logits, shape (B, C)."""
        logits_BC: Tensor = self.head(self.features(images_BcHW))
        return logits_BC
