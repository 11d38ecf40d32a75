"""A data set as it is found: images that are not decoded yet, and labels.

Shapes: N rows of a split.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.rows import EncodedImages


@dataclass(frozen=True)
class Columns:
    """The settings `image-column` and `label-column`; empty: to be found."""

    image: str
    label: str


@dataclass(frozen=True)
class RawSplit:
    """A split: its images, not decoded, and their labels, from 0."""

    images: EncodedImages
    labels_N: NDArray[np.int64]


@dataclass(frozen=True)
class RawData:
    """A data set as it was found.

    Attributes
    ----------
    where : str
        The setting that names it, for messages.
    splits : dict[str, RawSplit]
        `train`, and `test` where there is such a split.
    class_names : tuple[str, ...]
        Names of the classes, by label.
    not_used : dict[str, str]
        What was found besides, and why it is not used.
    notes : list[str]
        What may be meant otherwise.
    sets_aside : bool
        Whether an image that cannot be used is set aside, as at a site; else it is an error.
    """

    where: str
    splits: dict[str, RawSplit]
    class_names: tuple[str, ...]
    not_used: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sets_aside: bool = False
