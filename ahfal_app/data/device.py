"""Images on the device as bytes; batches are normalised and augmented as whole tensors.

Shapes: N images, B of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.images import Images


class DeviceImages:
    """One split of a data set on a device, uint8, shared by all clients of a process.

    Parameters
    ----------
    images : Images
        The split; on the CPU its memory-mapped arrays are used as they are.
    mean_C, std_C : tuple[float, ...]
        Mean and standard deviation of each channel, of pixels scaled to [0, 1].
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
        self.scale_C = (1.0 / (255.0 * torch.tensor(std_C))).to(device)
        self.shift_C = (-torch.tensor(mean_C) / torch.tensor(std_C)).to(device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images_NHWC)

    def batch(self, rows_B: Tensor) -> Tensor:
        """Return normalised images, float32 (B, C, H, W) in channels_last, not augmented."""
        images_BHWC = self.images_NHWC[rows_B.to(self.device)]
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
        images_BHWC = self.images_NHWC[rows_B.to(self.device)]
        if augmentation.padding:
            images_BHWC = self._cropped(images_BHWC, augmentation.padding, generator)
        if augmentation.flip:
            flip_B = (torch.rand(len(images_BHWC), generator=generator) < 0.5).to(self.device)
            images_BHWC[flip_B] = images_BHWC[flip_B].flip(2)
        return images_BHWC

    def _cropped(self, images_BHWC: Tensor, padding: int, generator: torch.Generator) -> Tensor:
        size, height, width = images_BHWC.shape[:3]
        offsets_2B = torch.randint(0, 2 * padding + 1, (2, size), generator=generator)
        top_B, left_B = offsets_2B.to(self.device)
        padded_BHWC = pad(images_BHWC, (0, 0, padding, padding, padding, padding))
        # All crops of each image, as a view: (B, offset down, offset right, C, H, W).
        crops = padded_BHWC.unfold(1, height, 1).unfold(2, width, 1)
        each_B = torch.arange(size, device=self.device)
        return crops.permute(0, 1, 2, 4, 5, 3)[each_B, top_B, left_B]


def normalised(images_BHWC: Tensor, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    """Return bytes as normalised float32 (B, C, H, W) in channels_last.

    A function of tensors alone, so that a compiler can fuse it with a network's first layer.
    """
    # The permuted view of (B, H, W, C) is channels_last: nothing is copied for it.
    return torch.addcmul(shift_C, images_BHWC.float(), scale_C).permute(0, 3, 1, 2)


def _as_tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # The memory map is read-only, and nothing writes to the tensor.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
