"""Mean and deviation over all sites' vectors, from sums that each site takes of its own.

Sums are integers, so that they are the same however they are added up, and can be masked.

Shapes: N vectors, D numbers of a vector, E = 2 D + 1 entries: N, then sums, then sums of squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.images import DataFormat, Images
from ahfal_app.data.preparation import rounded_moments

#: Integers per unit of what is summed.
UNITS = 2**16

#: What is further from the mean, in deviations, counts as this far: so no sum overflows, of up to
#: 10^8 vectors together.
FURTHEST = 1000.0

_BLOCK = 4096


def moment_sums(
    images: Images, rows_N: NDArray[np.int64], reference: DataFormat
) -> NDArray[np.int64]:
    """Return a site's sums, of vectors shifted and scaled by what the server knows, int64 (E,).

    Parameters
    ----------
    images : Images
        The site's vectors.
    rows_N : NDArray[np.int64]
        Those that can be used.
    reference : DataFormat
        Mean and deviation of the server's test set.
    """
    mean_D, std_D = (np.array(each) for each in (reference.mean_C, reference.std_C))
    sums_2D = np.zeros((2, len(mean_D)))
    for start in range(0, len(rows_N), _BLOCK):
        rows = rows_N[start : start + _BLOCK]
        vectors_BD = images.images_NHWC[rows].reshape(len(rows), -1)
        scaled_BD = np.clip((vectors_BD - mean_D) / std_D, -FURTHEST, FURTHEST)
        sums_2D += scaled_BD.sum(axis=0), (scaled_BD**2).sum(axis=0)
    quantised = np.rint(sums_2D.ravel() * UNITS).astype(np.int64)
    return np.concatenate([[len(rows_N)], quantised])


def check_sums(sums_E: NDArray[np.int64], most: int) -> None:
    """Check that these can be sums of at least one vector, and of at most so many.

    Raises
    ------
    ValueError
        They cannot.
    """
    count, sums_D, squares_D = _parts(sums_E)
    if not 1 <= count <= most:
        raise ValueError(f"moments of {count} vectors: allowed is 1 to {most}")
    furthest = count * FURTHEST * UNITS + 1
    fits = (np.abs(sums_D) <= furthest).all() and (squares_D >= 0).all()
    if not fits or (squares_D > furthest * FURTHEST).any():
        raise ValueError("moments: sums that no vectors have")


def standardisation(
    sums_E: NDArray[np.int64], reference: DataFormat
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each number over all vectors in the sums."""
    count, sums_D, squares_D = _parts(sums_E)
    mean_D, std_D = (np.array(each) for each in (reference.mean_C, reference.std_C))
    shift_D = sums_D / (UNITS * count)
    variance_D = np.maximum(squares_D / (UNITS * count) - shift_D**2, 0.0)
    # Below what the sums resolve there is no deviation.
    variance_D[variance_D < 1.0 / UNITS**2] = 0.0
    return rounded_moments(mean_D + std_D * shift_D, std_D**2 * variance_D)


def _parts(sums_E: NDArray[np.int64]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    half = len(sums_E) // 2
    return int(sums_E[0]), sums_E[1 : half + 1], sums_E[half + 1 :]
