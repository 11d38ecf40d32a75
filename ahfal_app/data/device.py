"""Images on the device as bytes; batches are normalised and augmented as whole tensors.

Shapes: N images, B of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.features import Features
from ahfal_app.data.images import Images


@dataclass(frozen=True)
class AugmentationDraws:
    """What was drawn at random to augment a batch; None where the augmentation draws nothing.

    Attributes
    ----------
    offsets_2B : Tensor | None
        Top and left corner of each crop in the padded image, int64. Shape (2, B).
    flip_B : Tensor | None
        Which images are mirrored, bool. Shape (B,).
    views_B : Tensor | None
        Which view's features are taken, int64; 0 is the image itself. Shape (B,).
    """

    offsets_2B: Tensor | None
    flip_B: Tensor | None
    views_B: Tensor | None = None


class DeviceImages:
    """One split of a data set on a device, shared by all clients of a process.

    Images are uint8, vectors are float32 of shape (N, 1, 1, D).

    Parameters
    ----------
    images : Images
        The split; on the CPU its memory-mapped arrays are used as they are.
    mean_C, std_C : tuple[float, ...]
        Mean and standard deviation of each channel, of pixels scaled to [0, 1], or of vectors.
    device : torch.device
        Where batches are made.
    """

    def __init__(
        self,
        images: Images,
        mean_C: tuple[float, ...],
        std_C: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.device = device
        self.images_NHWC = _as_tensor(images.images_NHWC).to(device)
        self.labels_N = _as_tensor(images.labels_N).to(device)
        largest = 1.0 if images.images_NHWC.dtype == np.float32 else 255.0
        self.scale_C = (1.0 / (largest * torch.tensor(std_C))).to(device)
        self.shift_C = (-torch.tensor(mean_C) / torch.tensor(std_C)).to(device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images_NHWC)

    def batch(self, rows_B: Tensor) -> Tensor:
        """Return normalised images, float32 (B, C, H, W) in channels_last, not augmented."""
        images_BHWC = self.images_NHWC[uploaded(rows_B, self.device)]
        return normalised(images_BHWC, self.scale_C, self.shift_C)

    def augmented(
        self, rows_B: Tensor, augmentation: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """Return images cropped and mirrored at random, uint8 (B, H, W, C), not normalised.

        Parameters
        ----------
        rows_B : Tensor
            Rows of the split, int64.
        augmentation : Augmentation
            Padding with black pixels, and whether to mirror.
        generator : torch.Generator
            On the CPU, whatever the device, so that all devices draw the same.
        """
        draws = draw_augmentation(len(rows_B), augmentation, generator)
        return self.transformed(rows_B, augmentation, draws)

    def transformed(
        self, rows_B: Tensor, augmentation: Augmentation, draws: AugmentationDraws
    ) -> Tensor:
        """Return images cropped and mirrored as was drawn, uint8 (B, H, W, C)."""
        images_BHWC = self.images_NHWC[uploaded(rows_B, self.device)]
        return transformed(images_BHWC, augmentation.padding, draws)


class DeviceFeatures(DeviceImages):
    """Features of one split on a device, float16, of its images and of views of them.

    To whoever trains they are images of one pixel with D channels. Augmentation is the choice of a
    view; whoever does not train sees the images themselves.

    Parameters
    ----------
    features : Features
        Of the N images, then of each image's first view, then of each second one, and so on; see
        `ahfal_app/data/views.py`. On the CPU the memory-mapped store is used as it is.
    labels_N : NDArray[np.int64]
        Classes of the split's images.
    device : torch.device
        Where batches are made.
    """

    def __init__(
        self, features: Features, labels_N: NDArray[np.int64], device: torch.device
    ) -> None:
        self.device = device
        self._rows_N: Tensor | None = torch.from_numpy(np.array(features.rows_N))
        values_MD: NDArray[np.generic] = features.values_MD
        if device.type != "cpu":
            # Only what is this split's, one row for each image or view; a row that is none is
            # never asked for.
            values_MD, self._rows_N = values_MD[np.maximum(features.rows_N, 0)], None
        elif _is_range(features.rows_N):
            first = int(features.rows_N[0]) if len(features.rows_N) else 0
            values_MD = values_MD[first : first + len(features.rows_N)]
            self._rows_N = None
        self.images_NHWC = _as_tensor(values_MD)[:, None, None, :].to(device)
        self.labels_N = _as_tensor(labels_N).to(device)
        numbers = self.images_NHWC.shape[3]
        self.scale_C = torch.ones(numbers, device=device)
        self.shift_C = torch.zeros(numbers, device=device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels_N)

    def batch(self, rows_B: Tensor) -> Tensor:
        """Return features as float32 (B, D, 1, 1)."""
        return normalised(self._taken(rows_B), self.scale_C, self.shift_C)

    def transformed(
        self, rows_B: Tensor, augmentation: Augmentation, draws: AugmentationDraws
    ) -> Tensor:
        """Return features as float16 (B, 1, 1, D), of the views that were drawn."""
        if draws.views_B is not None:
            # Both are on the CPU, or both on the device.
            rows_B = rows_B + len(self) * draws.views_B
        return self._taken(rows_B)

    def _taken(self, rows_B: Tensor) -> Tensor:
        if self._rows_N is not None:
            rows_B = self._rows_N[rows_B]
        return self.images_NHWC[rows_B.to(self.device)]


def draw_augmentation(
    size: int, augmentation: Augmentation, generator: torch.Generator
) -> AugmentationDraws:
    """Draw what a batch of `size` images needs, from a generator on the CPU."""
    offsets_2B = flip_B = views_B = None
    if augmentation.padding:
        highest = 2 * augmentation.padding + 1
        offsets_2B = torch.randint(0, highest, (2, size), generator=generator)
    if augmentation.flip:
        flip_B = torch.rand(size, generator=generator) < 0.5
    if augmentation.views:
        views_B = torch.randint(0, augmentation.views + 1, (size,), generator=generator)
    return AugmentationDraws(offsets_2B, flip_B, views_B)


def joined_draws(draws: Sequence[AugmentationDraws]) -> AugmentationDraws:
    """Return the draws of several batches as those of one."""
    offsets = [each.offsets_2B for each in draws if each.offsets_2B is not None]
    flips = [each.flip_B for each in draws if each.flip_B is not None]
    views = [each.views_B for each in draws if each.views_B is not None]
    return AugmentationDraws(
        torch.cat(offsets, dim=1) if offsets else None,
        torch.cat(flips) if flips else None,
        torch.cat(views) if views else None,
    )


def transformed(images_BHWC: Tensor, padding: int, draws: AugmentationDraws) -> Tensor:
    """Return images cropped and mirrored as was drawn, uint8 (B, H, W, C), where they are."""
    device = images_BHWC.device
    if draws.offsets_2B is not None:
        images_BHWC = _cropped(images_BHWC, padding, uploaded(draws.offsets_2B, device))
    if draws.flip_B is not None:
        flip_B111 = uploaded(draws.flip_B, device)[:, None, None, None]
        images_BHWC = torch.where(flip_B111, images_BHWC.flip(2), images_BHWC)
    return images_BHWC


def normalised(images_BHWC: Tensor, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    """Return bytes as normalised float32 (B, C, H, W) in channels_last.

    A function of tensors alone, so that a compiler can fuse it with a network's first layer.
    """
    # The permuted view of (B, H, W, C) is channels_last: nothing is copied for it.
    return torch.addcmul(shift_C, images_BHWC.to(scale_C.dtype), scale_C).permute(0, 3, 1, 2)


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; one of the CPU without waiting for it to arrive there."""
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def downloaded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of a device's tensors on the CPU, waiting once for all of them."""
    copies = [page_locked(tensor) for tensor in tensors]
    for position, (copied, tensor) in enumerate(zip(copies, tensors, strict=True), start=1):
        # The last one arrives last.
        copied.copy_(tensor, non_blocking=position < len(copies))
    return copies


def page_locked(like: Tensor) -> Tensor:
    """Return an empty tensor of the CPU that a device can transfer to and from by itself.

    For a tensor of the CPU it is memory like any other.
    """
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type != "cpu")


def _cropped(images_BHWC: Tensor, padding: int, offsets_2B: Tensor) -> Tensor:
    height, width = images_BHWC.shape[1:3]
    top_B, left_B = offsets_2B
    padded_BHWC = pad(images_BHWC, (0, 0, padding, padding, padding, padding))
    # All crops of each image, as a view: (B, offset down, offset right, C, H, W).
    crops = padded_BHWC.unfold(1, height, 1).unfold(2, width, 1)
    each_B = torch.arange(len(images_BHWC), device=images_BHWC.device)
    return crops.permute(0, 1, 2, 4, 5, 3)[each_B, top_B, left_B]


def _is_range(rows_N: NDArray[np.int64]) -> bool:
    return bool((np.diff(rows_N) == 1).all()) and not (rows_N < 0).any()


def _as_tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # The memory map is read-only, and nothing writes to the tensor.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
