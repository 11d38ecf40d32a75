"""torchvision's image classifiers, untrained, with a first convolution that fits the images.

Nothing here is imported before a network of torchvision's is asked for.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

#: Images up to so many pixels a side are small: stems made for 224 would leave too little.
_SMALL = 64

#: Networks with a second output for training, which they can do without.
_OPTIONS = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def torchvision_names() -> tuple[str, ...]:
    """Return the names of torchvision's image classifiers."""
    return tuple(models.list_models(module=models))


def torchvision_network(
    name: str, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Return a network of torchvision's for images of this shape (H, W, c).

    The first convolution takes grey images as if they were given in all of its three
    channels. For images of at most 64 pixels a side its stride is 1 where it was 2, and a
    module `maxpool` after it is dropped (ResNet and its kin, ShuffleNet).

    Parameters
    ----------
    name : str
        One of `torchvision_names()`.
    image_shape : tuple[int, int, int]
        Height, width and channels (1 or 3) of an image.
    num_classes : int
        Number of classes.
    """
    options = _OPTIONS.get(name, {})
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    height, width, channels = image_shape
    first = next(module for module in network.named_modules() if isinstance(module[1], nn.Conv2d))
    path, convolution = first
    if channels == 1:
        convolution = _for_grey(convolution)
        network.set_submodule(path, convolution)
    if max(height, width) <= _SMALL and convolution.stride == (2, 2):
        convolution.stride = (1, 1)
        if hasattr(network, "maxpool"):
            network.maxpool = nn.Identity()
    return network


def _for_grey(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution that sees one channel as the given one sees it three times."""
    # torch types these three as tuples of any length; those of a Conv2d are pairs.
    grey = nn.Conv2d(
        1,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )
    with torch.no_grad():
        grey.weight.copy_(convolution.weight.sum(dim=1, keepdim=True))
        if grey.bias is not None and convolution.bias is not None:
            grey.bias.copy_(convolution.bias)
    return grey
