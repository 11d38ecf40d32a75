"""A whole network for people who have images or vectors: these in, probabilities out.

Shapes: B samples, H height, W width, c channels, D features, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ahfal_app.backbones import Backbone, Preprocessing
from ahfal_app.models import Classifier

_HALF = torch.finfo(torch.float16)


class Deployed(nn.Module):
    """Maps images as bytes (B, H, W, c), or vectors as float32 (B, D), to probabilities (B, C).

    Parameters
    ----------
    model : Classifier
        The trained model.
    shape : tuple[int, int, int]
        Height, width and channels of the images; (1, 1, D) of vectors.
    mean, deviation : tuple[float, ...]
        What pixels scaled to [0, 1], or vectors, are normalised with before `model`.
    backbone : Backbone, optional
        The network whose features the model takes; without one it takes the samples themselves.
    vectors : bool
        Whether the samples are vectors, and no images.
    """

    scale_C: Tensor
    shift_C: Tensor

    def __init__(
        self,
        model: Classifier,
        shape: tuple[int, int, int],
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        backbone: Backbone | None = None,
        vectors: bool = False,
    ) -> None:
        super().__init__()
        self._takes_vectors = vectors
        self.model = model
        self.features: nn.Module | None = None if backbone is None else backbone.network
        self._fit = None if backbone is None else _Fit(backbone.preprocessing, shape)
        mean_C, white = torch.tensor(mean), 1.0 if vectors else 255.0
        scale_C = 1.0 / (white * torch.tensor(deviation))
        self.register_buffer("scale_C", scale_C, persistent=False)
        self.register_buffer("shift_C", -mean_C / torch.tensor(deviation), persistent=False)
        self.eval()

    def forward(self, samples_B: Tensor) -> Tensor:
        """Return the probabilities of the classes, shape (B, C)."""
        return torch.softmax(self.logits(samples_B), dim=1)

    def logits(self, samples_B: Tensor) -> Tensor:
        """Return the logits, shape (B, C)."""
        if self.features is None or self._fit is None:
            normal_B = samples_B.float() * self.scale_C + self.shift_C
            if self._takes_vectors:
                return self._classified(normal_B[:, :, None, None])
            return self._classified(normal_B.permute(0, 3, 1, 2))
        features_BD = self.features(self._fit(samples_B)).float()
        # As training had them.
        features_BD = features_BD.clamp(_HALF.min, _HALF.max).half().float()
        return self._classified(features_BD[:, :, None, None])

    def _classified(self, inputs_BcHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.model(inputs_BcHW)
        return logits_BC

    # The mode is that of use; torch's returns its own type.
    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode."""
        return super().train(False)


class _Fit(nn.Module):
    """What `Preprocessing` does to images of one size, as two matrix products.

    Scaling with antialiasing is linear along each axis. As matrices it goes into every format of
    exchange, whose own scaling differs from torch's.
    """

    down_SH: Tensor
    across_SW: Tensor
    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, wanted: Preprocessing, shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, _ = shape
        self.register_buffer("down_SH", _scaling(wanted, height), persistent=False)
        self.register_buffer("across_SW", _scaling(wanted, width), persistent=False)
        mean_C, std_C = torch.tensor(wanted.mean_C), torch.tensor(wanted.std_C)
        self.register_buffer("mean_C11", mean_C[:, None, None], persistent=False)
        self.register_buffer("std_C11", std_C[:, None, None], persistent=False)

    def forward(self, images_BHWc: Tensor) -> Tensor:
        """Return bytes (B, H, W, c) as the backbone wants them, float32 (B, 3, S, S)."""
        images_BcHW = images_BHWc.permute(0, 3, 1, 2).float() / 255.0
        scaled_BcSS = self.down_SH @ images_BcHW @ self.across_SW.transpose(0, 1)
        scaled_BcSS = scaled_BcSS.clamp(0.0, 1.0).expand(-1, 3, -1, -1)
        return (scaled_BcSS - self.mean_C11) / self.std_C11


def _scaling(wanted: Preprocessing, length: int) -> Tensor:
    """Return the matrix that brings an axis of some pixels to the backbone's size.

    Shape (S, length). It is what torch does to each unit vector.
    """
    wide = round(wanted.size / wanted.crop)
    units_11LL = torch.eye(length, dtype=torch.float64)[None, None]
    scaled_11SL = units_11LL
    if length != wide:
        scaled_11SL = interpolate(
            units_11LL,
            size=(wide, length),
            mode=wanted.interpolation,
            antialias=True,
            align_corners=False,
        )
    start = (wide - wanted.size) // 2
    return scaled_11SL[0, 0, start : start + wanted.size].float()
