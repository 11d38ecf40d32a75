"""ResNet-8 for small images: three residual blocks of 16, 32 and 64 channels.

The network of KAFAL (Cao et al., ICCV 2023) and of the AHFAL paper. It has a stem without
normalisation, post-activation blocks, 1x1 shortcuts without normalisation, and one more
normalisation with ReLU before pooling: 77,946 parameters for 3 channels and 10 classes.

Shapes: B samples of a batch, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.models.core.initial_weights import initialise_convolutions

FACTS = NetworkFacts(stackable=True, compiling_pays=True)

_WIDTHS = (16, 32, 64)


class PostActivationBlock(nn.Module):
    """Two convolutions, each followed by normalisation, and a shortcut around them.

    Parameters
    ----------
    channels, width : int
        Of its input and of its output.
    stride : int
        Of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x_BcHW: Tensor) -> Tensor:
        """Return the block's output, rectified."""
        hidden_BcHW = torch.relu(self.bn1(self.conv1(x_BcHW)))
        return torch.relu(self.bn2(self.conv2(hidden_BcHW)) + self.shortcut(x_BcHW))


class ResNet8(Classifier):
    """ResNet-8 with `channels` input channels and `num_classes` outputs."""

    block: ClassVar[type[nn.Module]] = PostActivationBlock
    """Made with the channels of its input and of its output, and a stride."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            self.block(_WIDTHS[0], _WIDTHS[0], 1),
            self.block(_WIDTHS[0], _WIDTHS[1], 2),
            self.block(_WIDTHS[1], _WIDTHS[2], 2),
        )
        self.bn = BatchNorm2d(_WIDTHS[2])
        self.head = nn.Linear(_WIDTHS[2], num_classes)
        initialise_convolutions(self)

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the input of the last linear layer, shape (B, 64)."""
        return self.features_of_map(self.feature_map(images_BcHW))

    def feature_map(self, images_BcHW: Tensor) -> Tensor:
        """Return what the last block gives, before normalisation, shape (B, 64, H/4, W/4)."""
        map_BDHW: Tensor = self.blocks(self.stem(images_BcHW))
        return map_BDHW

    def features_of_map(self, map_BcHW: Tensor) -> Tensor:
        """Return the average of the normalised, rectified map, shape (B, 64)."""
        return torch.relu(self.bn(map_BcHW)).mean(dim=(2, 3))


def build(image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Return the network for images of this shape (H, W, c)."""
    return ResNet8(image_shape[2], num_classes)
