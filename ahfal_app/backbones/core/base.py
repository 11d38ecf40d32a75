"""What a backbone is: a network that turns images into features, and what images it wants.

Shapes: B images, c channels, H height, W width, D features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """What images a backbone was trained on.

    Attributes
    ----------
    size : int
        Height and width in pixels.
    interpolation : str
        How images are brought to that size; always with antialiasing.
    mean_C, std_C : tuple[float, ...]
        Mean and standard deviation of each of three channels, of pixels scaled to [0, 1].
    crop : float
        1: images are scaled whole. Less: they are scaled to `size` / `crop`, and the middle is
        cut out.
    """

    size: int
    interpolation: Interpolation
    mean_C: tuple[float, float, float]
    std_C: tuple[float, float, float]
    crop: float = 1.0

    def __call__(self, images_BHWC: Tensor) -> Tensor:
        """Return bytes (B, H, W, c) as the backbone wants them: float32 (B, 3, size, size).

        In channels_last. An image of one channel counts as grey in all three.
        """
        images_BcHW = images_BHWC.permute(0, 3, 1, 2).float().div_(255.0)
        return self._standardised(self._fitted(images_BcHW).clamp_(0.0, 1.0))

    def fitted(self, images_BcHW: Tensor) -> Tensor:
        """Return standardised images (B, 3, H, W) at the backbone's size."""
        if images_BcHW.shape[2:] == (self.size, self.size) and self.crop == 1:
            return images_BcHW
        mean_C11, std_C11 = self._moments(images_BcHW)
        fitted_BcHW = self._fitted(images_BcHW)
        # Bicubic interpolation leaves the range of pixels.
        black_C11, white_C11 = -mean_C11 / std_C11, (1.0 - mean_C11) / std_C11
        return fitted_BcHW.clamp(black_C11, white_C11)

    def _fitted(self, images_BcHW: Tensor) -> Tensor:
        wide = round(self.size / self.crop)
        if images_BcHW.shape[2:] != (wide, wide):
            images_BcHW = interpolate(
                images_BcHW,
                size=(wide, wide),
                mode=self.interpolation,
                antialias=True,
                align_corners=False,
            )
        start = (wide - self.size) // 2
        end = start + self.size
        images_BcHW = images_BcHW[:, :, start:end, start:end].expand(-1, 3, -1, -1)
        return images_BcHW.contiguous(memory_format=torch.channels_last)

    def _standardised(self, images_BcHW: Tensor) -> Tensor:
        mean_C11, std_C11 = self._moments(images_BcHW)
        return images_BcHW.sub_(mean_C11).div_(std_C11)

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean_C, std_C = like.new_tensor(self.mean_C), like.new_tensor(self.std_C)
        return mean_C[:, None, None], std_C[:, None, None]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that gives features, with the weights that are set.

    Attributes
    ----------
    name : str
        What the setting `backbone` calls it.
    network : nn.Module
        Maps standardised images (B, 3, H, W) to features (B, D); in evaluation mode.
    preprocessing : Preprocessing
        What images it wants.
    features : int
        Number of features D.
    digest : str
        SHA-256, in hexadecimal, of name, weights and preprocessing.
    source : str
        SHA-256 of the code of another package's backbone; empty of timm's and torchvision's.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    features: int
    digest: str
    source: str = ""

    @property
    def computation(self) -> str:
        """SHA-256 of all that features depend on: code may change beside equal weights."""
        if not self.source:
            return self.digest
        return hashlib.sha256(f"{self.digest} {self.source}".encode()).hexdigest()


def digest_of(name: str, network: nn.Module, preprocessing: Preprocessing) -> str:
    """Return the SHA-256 of a backbone: equal where its features are."""
    digest = hashlib.sha256(json.dumps([name, asdict(preprocessing)]).encode())
    for key, value in sorted(network.state_dict().items()):
        # Counts batches of training, and changes no feature.
        if key.endswith("num_batches_tracked"):
            continue
        head = json.dumps([key, str(value.dtype), list(value.shape)])
        digest.update(head.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
