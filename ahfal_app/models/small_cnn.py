"""A small convolutional network for tiny images, such as 8x8 digits.

Shapes: B samples of a batch, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.models.core.facts import NetworkFacts

FACTS = NetworkFacts(stackable=True, bf16_pays=False, bf16_pays_on_cpu_from=16 * 16)

_WIDTH = 32
_FEATURES = 64


class SmallCNN(Classifier):
    """Two convolutions with batch norm, pooling to 2x2, and one hidden layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTH, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(_WIDTH)
        self.conv2 = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(_WIDTH)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(4 * _WIDTH, _FEATURES)
        self.head = nn.Linear(_FEATURES, num_classes)

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the input of the last linear layer, shape (B, 64)."""
        return self.features_of_map(self.feature_map(images_BcHW))

    def feature_map(self, images_BcHW: Tensor) -> Tensor:
        """Return what the second convolution gives, shape (B, 32, H, W)."""
        hidden_BcHW = torch.relu(self.bn1(self.conv1(images_BcHW)))
        return torch.relu(self.bn2(self.conv2(hidden_BcHW)))

    def features_of_map(self, map_BcHW: Tensor) -> Tensor:
        """Return the hidden layer, shape (B, 64)."""
        return torch.relu(self.hidden(self.pool(map_BcHW).flatten(1)))


def build(image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Return the network for images of this shape (H, W, c)."""
    return SmallCNN(image_shape[2], num_classes)
