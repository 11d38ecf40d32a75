"""How many pixels of each channel have which value.

Shapes: N images, H height, W width, C channels, V values of a pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Values V that a pixel may have.
LEVELS = 256

#: Pixels of a channel that are counted at a time; counting makes eight bytes of each.
_BLOCK_PIXELS = 1 << 22


def channel_counts(
    images_NHWC: NDArray[np.generic], rows_N: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the number of pixels of each channel and value, over all images.

    Parameters
    ----------
    images_NHWC : NDArray[np.generic]
        Pixels from 0 to 255, uint8.
    rows_N : NDArray[np.int64] | None
        The images that count; None: all.

    Returns
    -------
    NDArray[np.int64]
        Counts (C, V).
    """
    height, width, channels = images_NHWC.shape[1:]
    size = max(1, _BLOCK_PIXELS // (height * width))
    count = len(images_NHWC) if rows_N is None else len(rows_N)
    counts_CV = np.zeros((channels, LEVELS), np.int64)
    for start in range(0, count, size):
        part = slice(start, start + size)
        block_BHWC = images_NHWC[part if rows_N is None else rows_N[part]]
        for channel in range(channels):
            values = block_BHWC[..., channel].ravel()
            counts_CV[channel] += np.bincount(values, minlength=LEVELS)
    return counts_CV
