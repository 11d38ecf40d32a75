"""MobileNetV2 for small images.

Sandler, Howard, Zhu, Zhmoginov and Chen, MobileNetV2: inverted residuals and linear
bottlenecks, CVPR 2018, with less reduction of size: the stem, the stage of 24 channels and
that of 160 keep the resolution, so that 32x32 pixels end as a map of 8x8. The last
convolution has a 3x3 kernel here, as the numbers of the AHFAL paper rest on, instead of the
usual 1x1: 5,513,482 parameters for 3 channels and 10 classes, with the usual one 2,236,682.

Shapes: B samples of a batch, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.models.core.initial_weights import initialise_convolutions
from ahfal_app.parameters import Parameters as NoParameters

FACTS = NetworkFacts(stackable=True)

_STEM = 32
_FEATURES = 1280

#: Expansion, channels, blocks and stride of each stage.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)


class Parameters(NoParameters):
    """What may differ from the network of the paper."""

    head_kernel: Literal[3, 1] = Field(
        default=3, description="Pixels of the last convolution's kernel."
    )


class MobileNetV2(Classifier):
    """MobileNetV2 whose last convolution has a kernel of `head_kernel` pixels."""

    def __init__(self, channels: int, num_classes: int, head_kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(channels, _STEM, 3)]
        width = _STEM
        for expansion, next_width, blocks, stride in _STAGES:
            for block in range(blocks):
                step = stride if block == 0 else 1
                layers.append(InvertedResidual(width, next_width, step, expansion, BatchNorm2d))
                width = next_width
        layers.append(_convolution(width, _FEATURES, head_kernel))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(_FEATURES, num_classes)
        initialise_convolutions(self)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the input of the last linear layer, shape (B, 1280)."""
        return self.features_of_map(self.feature_map(images_BcHW))

    def feature_map(self, images_BcHW: Tensor) -> Tensor:
        """Return what the last convolution gives, rectified, shape (B, 1280, H/4, W/4)."""
        map_BDHW: Tensor = self.body(images_BcHW)
        return map_BDHW

    def features_of_map(self, map_BcHW: Tensor) -> Tensor:
        """Return the average of the map, shape (B, 1280)."""
        return map_BcHW.mean(dim=(2, 3))


def build(
    image_shape: tuple[int, int, int], num_classes: int, parameters: Parameters | None = None
) -> Classifier:
    """Return the network for images of this shape (H, W, c)."""
    return MobileNetV2(image_shape[2], num_classes, (parameters or Parameters()).head_kernel)


def _convolution(channels: int, width: int, kernel: int) -> nn.Module:
    convolution: nn.Module = Conv2dNormActivation(
        channels, width, kernel, norm_layer=BatchNorm2d, activation_layer=nn.ReLU6
    )
    return convolution
