"""Random augmentation of training images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to a training image.

    Parameters
    ----------
    padding : int
        Pixels of padding on each side before a random crop to the old size; 0: no crop.
    flip : bool
        Whether an image is mirrored left to right with probability one half.
    """

    padding: int
    flip: bool


NO_AUGMENTATION = Augmentation(padding=0, flip=False)
