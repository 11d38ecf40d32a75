"""Known data sets by name and by content, and what is usual where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence

from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.known.core.base import KnownDataset
from ahfal_app.errors import DatasetError
from ahfal_app.plugins import DATASETS

#: Largest distance of a channel's mean at which a data set is taken for a known one.
_MEAN_TOLERANCE = 0.02

#: Padding in parts of an image's shorter side where nothing is known of the images.
_USUAL_SHARE = 1 / 8

#: Padding of random crops where a data set's own augmentation has none.
_DEFAULT_PADDING = 4


def known_datasets() -> tuple[KnownDataset, ...]:
    """Return our own known data sets."""
    return tuple(_known(name) for name in DATASETS.own_names())


def registered(dataset: str) -> KnownDataset | None:
    """Return the data set of a name, ours or another package's, or None.

    Raises
    ------
    DatasetError
        Another package's is no `KnownDataset`.
    """
    return _known(dataset) if dataset in DATASETS.names() else None


def _known(name: str) -> KnownDataset:
    known = DATASETS.component(name)
    if not isinstance(known, KnownDataset):
        raise DatasetError(
            f"dataset={name!r}: {DATASETS.where(name)} is no KnownDataset "
            "(ahfal_app.data.known.core.base)"
        )
    return known


def hub_source(dataset: str) -> tuple[str, str | None]:
    """Return the Hugging Face name and configuration that a data set's name stands for."""
    named = registered(dataset)
    for known in (*known_datasets(), *([named] if named else [])):
        if known.hub and dataset in (known.name, known.hub):
            return known.hub, known.configuration
    return dataset, None


def recognise(
    image_shape: tuple[int, int, int], num_classes: int, mean_C: Sequence[float]
) -> KnownDataset | None:
    """Return the known data set with this shape, number of classes and mean, if any.

    By its content, a data set is recognised wherever it comes from and however its
    columns are called, and so is a large enough part of it.

    Parameters
    ----------
    image_shape : tuple[int, int, int]
        Height, width and channels.
    num_classes : int
        Number of classes.
    mean_C : Sequence[float]
        Mean of the training pixels, scaled to [0, 1], for each channel.
    """
    for known in known_datasets():
        if (
            known.mean_C
            and (known.image_shape, known.num_classes) == (image_shape, num_classes)
            and all(
                abs(mean - expected) <= _MEAN_TOLERANCE
                for mean, expected in zip(mean_C, known.mean_C, strict=True)
            )
        ):
            return known
    return None


def is_known(path: str) -> bool:
    """Return whether a Hugging Face name is that of a known data set."""
    return any(path == known.hub for known in known_datasets())


def usual_augmentation(image_shape: tuple[int, int, int]) -> Augmentation:
    """Return how photographs of a shape are augmented where nothing is known of them.

    They are moved by up to an eighth of their shorter side, as CIFAR-10's are by 4 of 32 pixels,
    and mirrored if they are in colour. Grey ones are not: letters and digits would not be
    themselves any more, and radiographs have a left and a right.
    """
    height, width, channels = image_shape
    padding = max(1, round(min(height, width) * _USUAL_SHARE))
    return Augmentation(padding=padding, flip=channels > 1)


def resolve_augmentation(
    augment: str, known: KnownDataset | None, usual: Augmentation = NO_AUGMENTATION
) -> Augmentation:
    """Return what the setting `augment` means for a data set.

    `auto` is what a known data set's literature uses, and what is usual for an unknown one.
    """
    own = known.augmentation if known else usual
    if augment == "auto":
        return own
    if augment == "none":
        return NO_AUGMENTATION
    return Augmentation(padding=own.padding or _DEFAULT_PADDING, flip=augment == "crop-flip")
