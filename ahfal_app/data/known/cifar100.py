"""CIFAR-100, normalised and augmented as is usual."""

from __future__ import annotations

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.known.core.base import KnownDataset

DATASET = KnownDataset(
    "cifar100",
    hub="uoft-cs/cifar100",
    num_classes=100,
    image_shape=(32, 32, 3),
    mean_C=(0.5071, 0.4867, 0.4408),
    std_C=(0.2675, 0.2565, 0.2761),
    augmentation=Augmentation(padding=4, flip=True),
)
