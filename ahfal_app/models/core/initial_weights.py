"""Initial weights of convolutions.

He, Zhang, Ren and Sun, Delving deep into rectifiers, ICCV 2015, with the fan-out of a kernel
counted over all output channels, as the published ResNet-8 and MobileNetV2 do.
"""

from __future__ import annotations

import math

from torch import nn


def initialise_convolutions(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / (k * k * c_out)), in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
