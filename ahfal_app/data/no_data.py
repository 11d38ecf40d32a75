"""What a server knows of the data where it has none: what the settings say.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np

from ahfal_app.config import NO_DATASET, Settings
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.catalog import resolve_augmentation, usual_augmentation
from ahfal_app.data.images import ImageDataset, Images

#: Mean and deviation of each channel, or number.
Moments = tuple[tuple[float, ...], tuple[float, ...]]


def dataset_of_settings(
    settings: Settings, image_size: int = 0, moments: Moments = ((), ())
) -> ImageDataset:
    """Return a data set without a sample, of the format that settings say.

    Nothing can be recognised, so that images are augmented as photographs usually are, by their
    shape and their channels.

    Parameters
    ----------
    settings : Settings
        With `dataset=none`. Read are `classes`, `image-size`, `image-channels`, `vector-length`,
        `standardise` and `augment`.
    image_size : int
        Height and width where `image-size` is 0: what a backbone wants.
    moments : Moments
        What images are normalised with, where a backbone says it; empty: the sites are asked.
    """
    if numbers := settings.vector_length:
        shape, augmentation = (1, 1, numbers), NO_AUGMENTATION
        if settings.standardise == "none":
            moments = ((0.0,) * numbers, (1.0,) * numbers)
    else:
        side = settings.image_size or image_size
        shape = (side, side, int(settings.image_channels))
        augmentation = resolve_augmentation(settings.augment, None, usual_augmentation(shape))
    no_rows = (0, *shape)
    nothing = Images(
        np.empty(no_rows, np.float32) if settings.vector_length else np.empty(no_rows, np.uint8),
        np.empty(0, np.int64),
    )
    return ImageDataset(
        name=NO_DATASET,
        train=nothing,
        test=nothing,
        class_names=settings.class_list,
        mean_C=moments[0],
        std_C=moments[1],
        augmentation=augmentation,
        fingerprint="",
    )
