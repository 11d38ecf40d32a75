"""ResNet-8 with pre-activation: normalisation and ReLU come before each convolution.

He, Zhang, Ren and Sun, Identity mappings in deep residual networks, ECCV 2016, in the sizes of
`resnet8`: 77,850 parameters for 3 channels and 10 classes, 77,562 for one channel. The
published MNIST numbers of federated active learning with "ResNet-8" rest on this graph,
those on CIFAR-10 on `resnet8`.

Shapes: B samples of a batch, c channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.models.resnet8 import ResNet8

FACTS = NetworkFacts(stackable=True)


class PreActivationBlock(nn.Module):
    """Two convolutions, each after normalisation, and a shortcut around them.

    Parameters
    ----------
    channels, width : int
        Of its input and of its output.
    stride : int
        Of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x_BcHW: Tensor) -> Tensor:
        """Return the block's output, not rectified."""
        rectified_BcHW = torch.relu(self.bn1(x_BcHW))
        # Where the size changes, the shortcut starts from the rectified map.
        short_BcHW = x_BcHW if self.shortcut is None else self.shortcut(rectified_BcHW)
        hidden_BcHW = torch.relu(self.bn2(self.conv1(rectified_BcHW)))
        result_BcHW: Tensor = self.conv2(hidden_BcHW) + short_BcHW
        return result_BcHW


class PreActResNet8(ResNet8):
    """Pre-activation ResNet-8 with `channels` input channels and `num_classes` outputs."""

    block = PreActivationBlock


def build(image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Return the network for images of this shape (H, W, c)."""
    return PreActResNet8(image_shape[2], num_classes)
