"""Layers of several copies of a network, written out: each is one call for all copies.

What belongs to the copies lies side by side in the channels. A convolution of k copies is a grouped
one, batch normalisation has k times the channels, a linear layer is a batched product. Whatever a
network does between these layers it does to each channel by itself, and so to all copies at once.

Shapes: B samples, k copies, c channels, H height, W width, D features, F = k c or k D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.models.core.vectors import CountedDropout


class StackedConv2d(nn.Module):
    """Convolutions of k copies; weights are (k O, I, height, width).

    Parameters
    ----------
    of : nn.Conv2d
        One copy.
    """

    def __init__(self, of: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = of.weight, of.bias
        self._channels, self._groups = of.out_channels, of.groups
        self._stride, self._padding, self._dilation = of.stride, of.padding, of.dilation

    def forward(self, maps_BFHW: Tensor) -> Tensor:
        """Return the copies' maps, side by side in the channels."""
        groups = self._groups * (len(self.weight) // self._channels)
        return conv2d(
            maps_BFHW,
            self.weight,
            self.bias,
            self._stride,
            self._padding,
            self._dilation,
            groups,
        )


class StackedLinear(nn.Module):
    """Linear layers of k copies; weights are (k O, I).

    Parameters
    ----------
    of : nn.Linear
        One copy.
    """

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = of.weight, of.bias
        self._features = of.out_features

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return the copies' outputs, side by side."""
        weights_kOI = self.weight.view(-1, self._features, self.weight.shape[1])
        shape = (len(features_BF), *weights_kOI.shape[::2])
        features_kBI = features_BF.view(shape).transpose(0, 1)
        outputs_kBO = torch.bmm(features_kBI, weights_kOI.transpose(1, 2))
        outputs_BF = outputs_kBO.transpose(0, 1).flatten(1)
        return outputs_BF if self.bias is None else outputs_BF + self.bias


class StackedBatchNorm2d(nn.Module):
    """Batch normalisation of k copies in training mode; parameters and statistics are (k c,).

    Parameters
    ----------
    of : BatchNorm2d
        One copy, with running statistics that move with a fixed momentum.
    """

    #: Which samples count for the statistics of each copy, bool (k, B); None: all.
    counting_kB: Tensor | None = None

    def __init__(self, of: BatchNorm2d) -> None:
        super().__init__()
        if of.running_mean is None or of.running_var is None or of.momentum is None:
            raise ValueError("running statistics with a fixed momentum are needed")
        self.weight, self.bias = of.weight, of.bias
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", of.running_mean)
        self.register_buffer("running_var", of.running_var)
        self.register_buffer("num_batches_tracked", of.num_batches_tracked)
        self._channels, self._momentum, self._eps = of.num_features, of.momentum, of.eps

    def forward(self, maps_BFHW: Tensor) -> Tensor:
        """Return the normalised maps, in the dtype of the input."""
        if self.counting_kB is not None:
            return self._normalised_by(maps_BFHW, self.counting_kB)
        is_single = maps_BFHW.numel() == maps_BFHW.shape[1]
        if not is_single:
            self.num_batches_tracked.add_(1)
        return batch_norm(
            maps_BFHW,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            # A single value has no variance.
            training=not is_single,
            momentum=self._momentum,
            eps=self._eps,
        )

    def _normalised_by(self, maps_BFHW: Tensor, counting_kB: Tensor) -> Tensor:
        """Return the maps, each copy's normalised by its samples that count."""
        values_BFHW = maps_BFHW.to(torch.promote_types(maps_BFHW.dtype, torch.float32))
        share_BF11 = self._by_channel(counting_kB.T).to(values_BFHW.dtype)[:, :, None, None]
        count_k = counting_kB.sum(dim=1) * (maps_BFHW.shape[2] * maps_BFHW.shape[3])
        count_F = self._by_channel(count_k[None])[0]
        divisor_F = count_F.clamp_min(1)
        mean_F = (values_BFHW * share_BF11).sum(dim=(0, 2, 3)) / divisor_F
        centred_BFHW = values_BFHW - mean_F[:, None, None]
        variance_F = (centred_BFHW.square() * share_BF11).sum(dim=(0, 2, 3)) / divisor_F
        several_F = count_F > 1
        used_mean_F = torch.where(several_F, mean_F, self.running_mean)
        used_variance_F = torch.where(several_F, variance_F, self.running_var)
        scale_F = self.weight * torch.rsqrt(used_variance_F + self._eps)
        shift_F = self.bias - used_mean_F * scale_F
        self._track(several_F, mean_F.detach(), variance_F.detach(), count_F)
        self.num_batches_tracked.add_((count_k > 1).long())
        result_BFHW = values_BFHW * scale_F[:, None, None] + shift_F[:, None, None]
        return result_BFHW.to(maps_BFHW.dtype)

    def _by_channel(self, values_Bk: Tensor) -> Tensor:
        """Return each copy's value for each of its channels."""
        return values_Bk[:, :, None].expand(-1, -1, self._channels).flatten(1)

    def _track(
        self, several_F: Tensor, mean_F: Tensor, variance_F: Tensor, count_F: Tensor
    ) -> None:
        """Move the running statistics where there was more than a single value."""
        weight_F = several_F * self._momentum
        unbiased_F = variance_F * (count_F / (count_F - 1).clamp_min(1))
        self.running_mean.add_((mean_F - self.running_mean) * weight_F)
        self.running_var.add_((unbiased_F - self.running_var) * weight_F)


def stack_layers(network: nn.Module) -> list[StackedBatchNorm2d | CountedDropout]:
    """Replace a network's layers with those of several copies; return those that count samples.

    Parameters
    ----------
    network : nn.Module
        Changed in place; afterwards it is called with tensors of all copies
        (`torch.func.functional_call`).

    Raises
    ------
    TypeError
        A layer with weights is of a kind that is not known here.
    """
    for path, layer in list(network.named_modules()):
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        network.set_submodule(path, _stacked(path, layer))
    kinds = StackedBatchNorm2d | CountedDropout
    return [layer for layer in network.modules() if isinstance(layer, kinds)]


def _stacked(path: str, layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        return StackedConv2d(layer)
    if isinstance(layer, nn.Linear):
        return StackedLinear(layer)
    if isinstance(layer, BatchNorm2d) and layer.affine and layer.track_running_stats:
        return StackedBatchNorm2d(layer)
    raise TypeError(f"{path}: copies of a {type(layer).__name__} cannot be trained together")
