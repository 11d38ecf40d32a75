"""Image data sets as arrays.

Shapes: N images, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.augmentation import Augmentation


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    Parameters
    ----------
    images_NHWC : NDArray[np.uint8]
        Pixels from 0 to 255, read-only and memory-mapped from the cache of decoded data.
    labels_N : NDArray[np.int64]
        Classes from 0 to the number of classes - 1, read-only.
    """

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels_N)


@dataclass(frozen=True)
class ImageDataset:
    """A labelled data set with a training and a test split.

    Parameters
    ----------
    name : str
        The known data set that it was recognised as, else the last part of its name.
    train, test : Images
        The two splits.
    class_names : tuple[str, ...]
        Names of the classes, by label.
    mean_C, std_C : tuple[float, ...]
        Mean and standard deviation, for each channel, that pixels scaled to [0, 1] are
        normalised with.
    augmentation : Augmentation
        What is done at random to the images in training.
    fingerprint : str
        SHA-256 in hexadecimal of pixels, labels and class names of both splits.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    augmentation: Augmentation
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images_NHWC.shape[1:]
        return height, width, channels
