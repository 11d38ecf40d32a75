"""scikit-learn's handwritten digits, which it brings along: 1,797 images of 8x8 pixels."""

from __future__ import annotations

import numpy as np

from ahfal_app.data.known.core.base import Arrays, KnownDataset


def load() -> Arrays:
    """Return the digits; their pixels from 0 to 16 are scaled to 255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return Arrays(
        np.round(raw.images * (255 / 16)).astype(np.uint8)[..., np.newaxis],
        raw.target.astype(np.int64),
        tuple(str(name) for name in raw.target_names),
    )


DATASET = KnownDataset("digits", load=load, model="small-cnn")
