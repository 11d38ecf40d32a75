"""A small convolutional network for tiny images, such as 8x8 digits.

Shapes: B samples of a batch, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.models.core.facts import NetworkFacts

FACTS = NetworkFacts(
    stackable=True, compiling_pays_from=16 * 16, bf16_pays=False, bf16_pays_on_cpu_from=16 * 16
)

_WIDTH = 32
_FEATURES = 64
_SIDE = 2


class SmallCNN(Classifier):
    """Two convolutions with batch norm, pooling to 2x2, and one hidden layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _WIDTH, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(_WIDTH)
        self.conv2 = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(_WIDTH)
        self.pool = nn.AdaptiveAvgPool2d(_SIDE)
        self.hidden = nn.Linear(_SIDE * _SIDE * _WIDTH, _FEATURES)
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
        return torch.relu(self.hidden(self._pooled(map_BcHW).flatten(1)))

    def _pooled(self, map_BcHW: Tensor) -> Tensor:
        """Return the means of the quarters of each map, shape (B, 32, 2, 2)."""
        batch, channels, height, width = map_BcHW.shape
        if not torch.compiler.is_compiling() or height % _SIDE or width % _SIDE:
            pooled_Bc22: Tensor = self.pool(map_BcHW)
            return pooled_Bc22
        # The compiler fuses means with what is around them, and leaves the operator, whose
        # gradient is written in another layout, as it is: a sixth of a step of ten images.
        shape = (batch, channels, _SIDE, height // _SIDE, _SIDE, width // _SIDE)
        return map_BcHW.reshape(shape).mean(dim=(3, 5))


def build(image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Return the network for images of this shape (H, W, c)."""
    return SmallCNN(image_shape[2], num_classes)
