"""How images change as they arrive: covariate drift, on bytes.

The strengths of noise, brightness and contrast follow Hendrycks and Dietterich, Benchmarking neural
network robustness to common corruptions and perturbations, ICLR 2019 (CIFAR-10-C), as far as
recalled; those of blur and rotation are chosen to be as plain to see.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

#: Strength at the levels 0, 1, ..., 5; in between it is interpolated.
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "noise": (0.0, 0.04, 0.06, 0.08, 0.09, 0.10),
    "brightness": (0.0, 0.05, 0.10, 0.15, 0.20, 0.30),
    "contrast": (1.0, 0.75, 0.50, 0.40, 0.30, 0.15),
    "blur": (0.0, 0.4, 0.6, 0.7, 0.8, 1.0),
    "rotation": (0.0, 12.0, 24.0, 36.0, 48.0, 60.0),
}

#: Images that are in memory as numbers at the same time.
_CHUNK = 1024

Pixels = NDArray[np.float32]


def strength(look: str, level: float) -> float:
    """Return how strongly images change at a level from 0 to 5."""
    return float(np.interp(level, np.arange(6), STRENGTHS[look]))


def changed_pixels(pixels_NHWC: Pixels, look: str, amount: float) -> Pixels:
    """Return pixels in [0, 1] as they look then, clipped; for looks without chance.

    Parameters
    ----------
    pixels_NHWC : NDArray[np.float32]
        Pixels in [0, 1].
    look : str
        `brightness`, `contrast` (about each channel's mean), `blur` (Gaussian) or `rotation`
        (about the centre, bilinear, black outside).
    amount : float
        What is added; what the distance to the mean is multiplied with; the deviation in pixels;
        degrees.
    """
    return np.clip(_LOOKS[look](pixels_NHWC, amount), 0.0, 1.0)


def changed_images(
    images_NHWC: NDArray[np.uint8],
    levels_N: NDArray[np.float64],
    look: str,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return images as they look at their levels, uint8 (N, H, W, C).

    Parameters
    ----------
    images_NHWC : NDArray[np.uint8]
        The images.
    levels_N : NDArray[np.float64]
        How far each has changed, from 0 to 5; at 0 it stays as it is.
    look : str
        What happens to them.
    generator : np.random.Generator
        Noise is drawn from it, for one image after the other, whatever their levels.
    """
    changed_NHWC = np.array(images_NHWC)
    if look == "noise":
        for start in range(0, len(changed_NHWC), _CHUNK):
            part = slice(start, start + _CHUNK)
            pixels = _as_pixels(changed_NHWC[part])
            amounts = np.interp(levels_N[part], np.arange(6), STRENGTHS[look]).astype(np.float32)
            noise = generator.standard_normal(pixels.shape, dtype=np.float32)
            changed_NHWC[part] = _as_bytes(pixels + amounts[:, None, None, None] * noise)
        return changed_NHWC
    # Those that arrive together have changed alike.
    for level in np.unique(levels_N[levels_N > 0]).tolist():
        rows = np.flatnonzero(levels_N == level)
        amount = strength(look, level)
        for start in range(0, len(rows), _CHUNK):
            part_rows = rows[start : start + _CHUNK]
            pixels = _as_pixels(changed_NHWC[part_rows])
            changed_NHWC[part_rows] = _as_bytes(changed_pixels(pixels, look, amount))
    return changed_NHWC


def _as_pixels(images_NHWC: NDArray[np.uint8]) -> Pixels:
    return images_NHWC.astype(np.float32) / np.float32(255.0)


def _as_bytes(pixels_NHWC: Pixels) -> NDArray[np.uint8]:
    bytes_NHWC: NDArray[np.uint8] = np.rint(np.clip(pixels_NHWC, 0.0, 1.0) * 255.0).astype(np.uint8)
    return bytes_NHWC


def _brightness(pixels_NHWC: Pixels, amount: float) -> Pixels:
    return pixels_NHWC + np.float32(amount)


def _contrast(pixels_NHWC: Pixels, amount: float) -> Pixels:
    mean_N11C = pixels_NHWC.mean(axis=(1, 2), keepdims=True)
    changed_NHWC: Pixels = (pixels_NHWC - mean_N11C) * np.float32(amount) + mean_N11C
    return changed_NHWC


def _blur(pixels_NHWC: Pixels, amount: float) -> Pixels:
    from scipy import ndimage

    blurred: Pixels = ndimage.gaussian_filter(pixels_NHWC, sigma=(0, amount, amount, 0))
    return blurred


def _rotation(pixels_NHWC: Pixels, amount: float) -> Pixels:
    from scipy import ndimage

    turned: Pixels = ndimage.rotate(pixels_NHWC, amount, axes=(2, 1), reshape=False, order=1)
    return turned


_LOOKS: Mapping[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "blur": _blur,
    "rotation": _rotation,
}
