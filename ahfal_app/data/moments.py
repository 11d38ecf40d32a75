"""Mean and deviation over all sites' samples, from sums that each site takes of its own.

Sums are integers, so that they are the same however they are added up, and can be masked.

Shapes: N samples, D numbers of a vector or channels of an image, B of a block, E entries of sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data import totals
from ahfal_app.data.images import DataFormat, Images
from ahfal_app.data.pixel_counts import LEVELS, channel_counts
from ahfal_app.data.preparation import rounded_moments
from ahfal_app.errors import DatasetError

#: Integers per unit of what is summed by a reference.
UNITS = 2**16

#: What is further from the reference's mean, in deviations, counts as this far: so no sum
#: overflows, of up to 10^8 vectors together.
FURTHEST = 1000.0

_BLOCK = 4096

_Pair = tuple[tuple[float, ...], tuple[float, ...]]


class Moments(ABC):
    """How sums are taken at sites, checked, and made into mean and deviation."""

    #: Samples of all sites together for which no sum overflows.
    most_samples: int

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of entries E; the first one is the number of samples."""

    @abstractmethod
    def of(self, images: Images, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a site's sums, int64 (E,).

        Parameters
        ----------
        images : Images
            The site's images or vectors.
        rows_N : NDArray[np.int64]
            Those that can be used.

        Raises
        ------
        DatasetError
            A number is too large to be summed.
        """

    def check(self, sums_E: NDArray[np.int64], most: int, sites: int = 1) -> None:
        """Check that these can be sums over so many sites.

        Parameters
        ----------
        sums_E : NDArray[np.int64]
            The sums.
        most : int
            Samples that they may have together.
        sites : int
            How many sites have told sums that are in these.

        Raises
        ------
        ValueError
            They cannot.
        """
        count, most = int(sums_E[0]), min(most, self.most_samples)
        if not 1 <= count <= most:
            raise ValueError(f"moments of {count} samples: allowed is 1 to {most}")
        self._check(sums_E, sites)

    @abstractmethod
    def standardisation(self, sums_E: NDArray[np.int64], sites: int) -> _Pair:
        """Return mean and deviation of each number or channel over all samples in the sums.

        They have six significant digits, as they travel as text with each message. The deviation
        of a constant is given as 1, to be divided by.
        """

    @abstractmethod
    def _check(self, sums_E: NDArray[np.int64], sites: int) -> None:
        """Raise `ValueError` where no samples have these sums."""


def moments_for(data_format: DataFormat) -> Moments:
    """Return how the moments of data of this format are taken.

    Where the server has measured its test set, vectors are shifted and scaled by that before they
    are summed; else nothing is known, and sums have all bits.
    """
    if data_format.is_measured:
        return ByReference(np.array(data_format.mean_C), np.array(data_format.std_C))
    numbers = data_format.image_shape[2]
    return OfVectors(numbers) if data_format.vectors else OfPixels(numbers)


@dataclass(frozen=True, eq=False)
class ByReference(Moments):
    """Sums of vectors that are shifted and scaled by what the server has measured.

    E = 2 D + 1: the number of vectors, then sums, then sums of squares, in units of 2^-16.

    Attributes
    ----------
    mean_D, std_D : NDArray[np.float64]
        Mean and deviation of the server's test set.
    """

    mean_D: NDArray[np.float64]
    std_D: NDArray[np.float64]

    most_samples = 10**8

    @property
    def size(self) -> int:
        """Number of entries E."""
        return 2 * len(self.mean_D) + 1

    def of(self, images: Images, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a site's sums, int64 (E,)."""
        sums_2D = np.zeros((2, len(self.mean_D)))
        for start in range(0, len(rows_N), _BLOCK):
            vectors_BD = _vectors(images, rows_N[start : start + _BLOCK])
            scaled_BD = np.clip((vectors_BD - self.mean_D) / self.std_D, -FURTHEST, FURTHEST)
            sums_2D += scaled_BD.sum(axis=0), (scaled_BD**2).sum(axis=0)
        quantised = np.rint(sums_2D.ravel() * UNITS).astype(np.int64)
        return np.concatenate([[len(rows_N)], quantised])

    def standardisation(self, sums_E: NDArray[np.int64], sites: int) -> _Pair:
        """Return mean and deviation of each number over all vectors in the sums."""
        count, sums_D, squares_D = self._parts(sums_E)
        shift_D = sums_D / (UNITS * count)
        variance_D = np.maximum(squares_D / (UNITS * count) - shift_D**2, 0.0)
        # Below what the sums resolve there is no deviation.
        variance_D[variance_D < 1.0 / UNITS**2] = 0.0
        return rounded_moments(self.mean_D + self.std_D * shift_D, self.std_D**2 * variance_D)

    def _check(self, sums_E: NDArray[np.int64], sites: int) -> None:
        count, sums_D, squares_D = self._parts(sums_E)
        furthest = count * FURTHEST * UNITS + sites
        fits = (np.abs(sums_D) <= furthest).all() and (squares_D >= 0).all()
        if not fits or (squares_D > furthest * FURTHEST).any():
            raise ValueError("moments: sums that no samples have")

    def _parts(self, sums_E: NDArray[np.int64]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        half = len(self.mean_D)
        return int(sums_E[0]), sums_E[1 : half + 1], sums_E[half + 1 :]


@dataclass(frozen=True)
class WithoutReference(Moments):
    """Sums of numbers of whatever scale, in parts (`totals`).

    Attributes
    ----------
    numbers : int
        Numbers D of a vector, or channels of an image.
    """

    numbers: int

    most_samples = totals.MOST_SAMPLES

    @property
    def size(self) -> int:
        """Number of entries E."""
        return totals.size_of(self.numbers)

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that can be summed."""

    def standardisation(self, sums_E: NDArray[np.int64], sites: int) -> _Pair:
        """Return mean and deviation of each number over all samples in the sums."""
        return rounded_moments(*totals.joined(sums_E, sites).moments())

    def _check(self, sums_E: NDArray[np.int64], sites: int) -> None:
        totals.joined(sums_E, sites).check(*self.bounds, sites)


class OfVectors(WithoutReference):
    """Sums of vectors as they are."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that can be summed."""
        return -totals.LARGEST, totals.LARGEST

    def of(self, images: Images, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a site's sums, int64 (E,)."""
        sums_2D = np.zeros((2, self.numbers))
        for start in range(0, len(rows_N), _BLOCK):
            vectors_BD = _vectors(images, rows_N[start : start + _BLOCK])
            furthest = float(np.abs(vectors_BD).max())
            if furthest > totals.LARGEST:
                raise DatasetError(
                    f"a vector has the number ±{furthest:.3g}; allowed with dataset='none' is "
                    f"up to {totals.LARGEST:.3g}: write that number in another unit"
                )
            sums_2D += vectors_BD.sum(axis=0), (vectors_BD**2).sum(axis=0)
        return totals.split(len(rows_N), sums_2D[0], sums_2D[1])


class OfPixels(WithoutReference):
    """Sums of images: of each its mean and its mean of squares, of pixels scaled to [0, 1].

    So samples are counted, and not pixels; all images of a run have as many.
    """

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that can be summed."""
        return 0.0, 1.0

    def of(self, images: Images, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a site's sums, int64 (E,)."""
        height, width = images.images_NHWC.shape[1:3]
        counts_CV = channel_counts(images.images_NHWC, rows_N)
        levels_V = np.arange(LEVELS)
        # Integers up to here: no rounding depends on how the images are distributed.
        sums_2C = np.stack([counts_CV @ levels_V, counts_CV @ levels_V**2])
        white = LEVELS - 1
        scale_21 = np.array([[white], [white**2]], np.float64) * (height * width)
        sums, squares = sums_2C / scale_21
        return totals.split(len(rows_N), sums, squares)


def _vectors(images: Images, rows_B: NDArray[np.int64]) -> NDArray[np.float64]:
    return images.images_NHWC[rows_B].reshape(len(rows_B), -1).astype(np.float64)
