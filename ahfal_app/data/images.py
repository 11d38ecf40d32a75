"""Data sets as arrays: of images, or of vectors, which are images of one pixel.

Shapes: N images, H height, W width, C channels: 1 or 3, or the numbers of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.not_used import NotUsed


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of each row of a split: bytes one after the other, memory-mapped.

    Attributes
    ----------
    content : NDArray[np.uint8]
        The bytes of all rows.
    ends_N : NDArray[np.int64]
        Where each row's end. Shape (N,).
    """

    content: NDArray[np.uint8]
    ends_N: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[bytes]) -> Shown:
        """Return these rows."""
        ends_N = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(np.frombuffer(b"".join(rows), np.uint8), ends_N)

    def __getitem__(self, row: int) -> bytes:
        """Return a row's bytes."""
        start = int(self.ends_N[row - 1]) if row else 0
        return self.content[start : int(self.ends_N[row])].tobytes()

    def taken(self, rows_M: NDArray[np.int64]) -> Shown:
        """Return some of the rows."""
        return Shown.of([self[row] for row in rows_M.tolist()])


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    Parameters
    ----------
    images_NHWC : NDArray[np.uint8] | NDArray[np.float32]
        Pixels from 0 to 255, or vectors as float32 (N, 1, 1, D); read-only and memory-mapped from
        the cache of decoded data.
    labels_N : NDArray[np.int64]
        Classes from 0 to the number of classes - 1, read-only.
    shown : Shown | None
        What people see of each vector, if there is anything.
    """

    images_NHWC: NDArray[np.uint8] | NDArray[np.float32]
    labels_N: NDArray[np.int64]
    shown: Shown | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels_N)


@dataclass(frozen=True)
class DataFormat:
    """What all data of a run has in common, wherever it lies.

    Attributes
    ----------
    class_names : tuple[str, ...]
        Names of the classes, by label.
    image_shape : tuple[int, int, int]
        Height, width and channels of every image; of vectors (1, 1, D).
    mean_C, std_C : tuple[float, ...]
        What pixels scaled to [0, 1], or vectors, are normalised with, for each channel; both empty
        before the sites were asked for it, where the server has no data to measure.
    augmentation : Augmentation
        What is done at random to the images in training.
    vectors : bool
        Whether these are vectors.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    augmentation: Augmentation
    vectors: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether it is known what data are normalised with."""
        return bool(self.mean_C)

    def to_json(self) -> str:
        """Return the format as text."""
        found = asdict(self)
        # Of features there are views, and these are told by a setting.
        del found["augmentation"]["views"]
        return json.dumps(found)

    @classmethod
    def from_json(cls, text: str) -> DataFormat:
        """Return the format that `to_json` wrote."""
        found = json.loads(text)
        height, width, channels = found["image_shape"]
        return cls(
            class_names=tuple(found["class_names"]),
            image_shape=(height, width, channels),
            mean_C=tuple(found["mean_C"]),
            std_C=tuple(found["std_C"]),
            augmentation=Augmentation(**found["augmentation"]),
            vectors=found.get("vectors", False),
        )


@dataclass(frozen=True)
class ImageDataset:
    """A labelled data set with a training and a test split.

    Parameters
    ----------
    name : str
        The known data set that it was recognised as, else the last part of its name.
    train, test : Images
        The two splits.
    class_names : tuple[str, ...]
        Names of the classes, by label.
    mean_C, std_C : tuple[float, ...]
        Mean and standard deviation, for each channel, that pixels scaled to [0, 1] are
        normalised with; empty as those of `DataFormat` are.
    augmentation : Augmentation
        What is done at random to the images in training.
    fingerprint : str
        SHA-256 in hexadecimal of pixels, labels and class names of both splits; empty where there
        are no data.
    not_used : tuple[NotUsed, ...]
        What was found besides and is not used.
    notes : tuple[str, ...]
        What may be meant otherwise.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    augmentation: Augmentation
    fingerprint: str
    not_used: tuple[NotUsed, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def format(self) -> DataFormat:
        """What other data must have in common with this."""
        return DataFormat(
            self.class_names,
            self.image_shape,
            self.mean_C,
            self.std_C,
            self.augmentation,
            self.holds_vectors,
        )

    @property
    def holds_vectors(self) -> bool:
        """Whether it has vectors and no images."""
        return self.train.images_NHWC.dtype == np.float32

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images_NHWC.shape[1:]
        return height, width, channels
