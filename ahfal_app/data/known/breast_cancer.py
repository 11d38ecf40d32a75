"""scikit-learn's breast cancer data, which it brings along: 569 vectors of 30 measurements."""

from __future__ import annotations

import numpy as np

from ahfal_app.data.known.core.base import Arrays, KnownDataset


def load() -> Arrays:
    """Return the measurements as vectors, as they are: a run standardises them."""
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    return Arrays(
        raw.data.astype(np.float32)[:, np.newaxis, np.newaxis, :],
        raw.target.astype(np.int64),
        tuple(str(name) for name in raw.target_names),
    )


DATASET = KnownDataset("breast-cancer", load=load, model="linear")
