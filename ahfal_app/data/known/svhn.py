"""Street View House Numbers, cropped, normalised and augmented as is usual."""

from __future__ import annotations

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.known.core.base import KnownDataset

DATASET = KnownDataset(
    "svhn",
    hub="ufldl-stanford/svhn",
    configuration="cropped_digits",
    num_classes=10,
    image_shape=(32, 32, 3),
    mean_C=(0.4377, 0.4438, 0.4728),
    std_C=(0.1980, 0.2010, 0.1970),
    augmentation=Augmentation(padding=4, flip=False),
)
