"""The pool as it is before there is a model: features of every sample, where there are any.

Shapes: N samples, D numbers of a feature vector.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.labels.store import LabelStore
from ahfal_app.query import PoolView, Signal
from ahfal_app.training.resources import Resources


def pool_of_features(loaded: Resources, store: LabelStore) -> PoolView:
    """Return a client's pool with its features in place of any model's embeddings.

    Features are the vectors, standardised, or those of a frozen backbone. Where there are none, the
    pool has no signals.

    Parameters
    ----------
    loaded : Resources
        The client's data.
    store : LabelStore
        Its labels; a site may have some from before.
    """
    ids_N = store.unlabelled()
    if not loaded.has_features:
        return PoolView(ids_N, {})

    def features(rows: NDArray[np.int64]) -> Tensor:
        return loaded.train_images.batch(torch.from_numpy(rows)).flatten(1)

    def of_pool() -> Tensor:
        return features(ids_N)

    def of_labelled() -> Tensor:
        return features(store.labelled().samples_N)

    return PoolView(
        ids_N,
        {
            Signal.LOCAL_EMBEDDINGS: of_pool,
            Signal.GLOBAL_EMBEDDINGS: of_pool,
            Signal.LABELLED_LOCAL_EMBEDDINGS: of_labelled,
            Signal.LABELLED_GLOBAL_EMBEDDINGS: of_labelled,
        },
    )
