"""MNIST, normalised and augmented as is usual."""

from __future__ import annotations

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.known.core.base import KnownDataset

DATASET = KnownDataset(
    "mnist",
    hub="ylecun/mnist",
    num_classes=10,
    image_shape=(28, 28, 1),
    mean_C=(0.1307,),
    std_C=(0.3081,),
    augmentation=Augmentation(padding=2, flip=False),
)
