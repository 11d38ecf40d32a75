"""Sites with handwritten digits as files, as a hospital would have them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.images import DataFormat

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

FORMAT = DataFormat(CLASSES, (8, 8, 1), (0.3,), (0.38,), Augmentation(0, False))


def long_since(path: Path) -> None:
    """Give a file a time at which nobody can be copying it any more, so that none is waited for."""
    os.utime(path, (1e9, 1e9))


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, uint8 (N, 8, 8), and their classes (N,), read only."""
    raw = load_digits()
    pixels_NHW = np.round(raw.images * (255 / 16)).astype(np.uint8)
    for values in (pixels_NHW, raw.target):
        values.setflags(write=False)
    return pixels_NHW, raw.target


def write_images(
    folder: Path, rows: Iterable[int], classes: Sequence[str] = CLASSES
) -> dict[str, str]:
    """Write some digits as PNG files into nested folders; return class names by file."""
    pixels_NHW, labels_N = digits()
    truth = {}
    for row in rows:
        name = f"ward-{row % 3}/{row:04d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_NHW[row]).save(folder / name)
        long_since(folder / name)
        truth[name] = classes[labels_N[row]]
    return truth


def write_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Write a file of labels."""
    lines = [f"{file},{label}\n" for file, label in labels.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("file,label\n" + "".join(lines))
    long_since(path)
