"""Data sets that are known: where they come from and how the literature treats them.

Normalisation and augmentation are those of Cao et al. (KAFAL, ICCV 2023) for CIFAR-10, and
the usual ones for the others. Note that the standard deviations of CIFAR-10 that the
literature uses are near the mean of those of single images, and below those of all pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation

#: Largest distance of a channel's mean at which a data set is taken for a known one.
_MEAN_TOLERANCE = 0.02

#: Padding in parts of an image's shorter side where nothing is known of the images.
_USUAL_SHARE = 1 / 8

#: Padding of random crops where a data set's own augmentation has none.
_DEFAULT_PADDING = 4


@dataclass(frozen=True)
class KnownDataset:
    """A known data set.

    Parameters
    ----------
    name : str
        Short name.
    path, configuration : str, str | None
        Name and configuration on Hugging Face.
    num_classes : int
        Number of classes.
    image_shape : tuple[int, int, int]
        Height, width and channels.
    mean_C, std_C : tuple[float, ...]
        What pixels scaled to [0, 1] are normalised with.
    augmentation : Augmentation
        What is done at random in training.
    """

    name: str
    path: str
    configuration: str | None
    num_classes: int
    image_shape: tuple[int, int, int]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    augmentation: Augmentation


_KNOWN = (
    KnownDataset(
        "cifar10",
        "uoft-cs/cifar10",
        None,
        10,
        (32, 32, 3),
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        Augmentation(padding=4, flip=True),
    ),
    KnownDataset(
        "cifar100",
        "uoft-cs/cifar100",
        None,
        100,
        (32, 32, 3),
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
        Augmentation(padding=4, flip=True),
    ),
    KnownDataset(
        "svhn",
        "ufldl-stanford/svhn",
        "cropped_digits",
        10,
        (32, 32, 3),
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        Augmentation(padding=4, flip=False),
    ),
    KnownDataset(
        "mnist",
        "ylecun/mnist",
        None,
        10,
        (28, 28, 1),
        (0.1307,),
        (0.3081,),
        Augmentation(padding=2, flip=False),
    ),
)


def hub_source(dataset: str) -> tuple[str, str | None]:
    """Return the Hugging Face name and configuration that a data set's name stands for."""
    for known in _KNOWN:
        if dataset in (known.name, known.path):
            return known.path, known.configuration
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
    for known in _KNOWN:
        if (known.image_shape, known.num_classes) == (image_shape, num_classes) and all(
            abs(mean - expected) <= _MEAN_TOLERANCE
            for mean, expected in zip(mean_C, known.mean_C, strict=True)
        ):
            return known
    return None


def is_known(path: str) -> bool:
    """Return whether a Hugging Face name is that of a known data set."""
    return any(path == known.path for known in _KNOWN)


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
