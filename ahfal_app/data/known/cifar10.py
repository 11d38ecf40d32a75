"""CIFAR-10; normalised and augmented as KAFAL does (Cao et al., ICCV 2023).

The standard deviations that the literature uses are near the mean of those of single images, and
below those of all pixels.
"""

from __future__ import annotations

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.known.core.base import KnownDataset

DATASET = KnownDataset(
    "cifar10",
    hub="uoft-cs/cifar10",
    num_classes=10,
    image_shape=(32, 32, 3),
    mean_C=(0.4914, 0.4822, 0.4465),
    std_C=(0.2023, 0.1994, 0.2010),
    augmentation=Augmentation(padding=4, flip=True),
)
