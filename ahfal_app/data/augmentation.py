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
    views : int
        Features of so many augmented views of each image are there; a training sample's are its
        own or a view's, with equal probability. 0: always its own.
    """

    padding: int
    flip: bool
    views: int = 0


NO_AUGMENTATION = Augmentation(padding=0, flip=False)
