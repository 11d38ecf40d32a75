"""A client's part of the federation's stop set: drawn once, predicted after each cycle.

Shape suffixes: N samples of it, C classes, E entries of sums (`ahfal_app.stop_set`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.client.state import ClientState
from ahfal_app.config import Settings
from ahfal_app.seeds import numpy_generator
from ahfal_app.stop_set import entropy_units, prediction_sums
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import Resources


class StopSet:
    """One client's part of the stop set.

    It stays as it was drawn, whether its samples are labelled later or not: one that shrank with
    the pool would measure the pool.

    Parameters
    ----------
    settings : Settings
        The run's settings, with `num_clients` resolved.
    client : int
        The client's partition.
    state : ClientState
        Where it is kept, with what was predicted.
    loaded : Resources
        Data and network.
    """

    def __init__(
        self, settings: Settings, client: int, state: ClientState, loaded: Resources
    ) -> None:
        self._settings = settings
        self._client = client
        self._state = state
        self._loaded = loaded

    def sums(self, tensors: Mapping[str, Tensor], cycle: int) -> NDArray[np.int64]:
        """Predict, and return sums over this cycle and the one before, int64 (E,).

        Parameters
        ----------
        tensors : dict[str, Tensor]
            The global model f^G.
        cycle : int
            The cycle that was just trained.
        """
        now, before = self._predict(tensors, cycle), self._state.load_predictions(cycle - 1)
        before_N = np.full(len(now["ids"]), -1, np.int64)
        if before is not None:
            _, here_K, there_K = np.intersect1d(
                now["ids"], before["ids"], assume_unique=True, return_indices=True
            )
            before_N[here_K] = before["classes"][there_K]
        num_classes = self._loaded.num_classes
        return prediction_sums(now["classes"], now["entropies"], before_N, num_classes)

    def _predict(self, tensors: Mapping[str, Tensor], cycle: int) -> dict[str, NDArray[np.int64]]:
        """Return, and keep, what a model predicts; images that are gone are left out."""
        ids_N = np.intersect1d(self._drawn(), self._loaded.client_rows(self._client))
        classes_N, entropies_N = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if len(ids_N):
            model = self._loaded.model_with(tensors)
            found = predict(model, self._loaded.train_images, torch.from_numpy(ids_N))
            logits_NC = found.logits_NC.float().cpu().numpy()
            classes_N = logits_NC.argmax(axis=1).astype(np.int64)
            entropies_N = entropy_units(logits_NC)
        kept = {"ids": ids_N, "classes": classes_N, "entropies": entropies_N}
        self._state.save_predictions(cycle, kept)
        return kept

    def _drawn(self) -> NDArray[np.int64]:
        """Return the ids that were drawn, increasing; at the first call they are."""
        kept = self._state.load_stop_set()
        if kept is not None:
            return kept
        ids_N = self._loaded.client_rows(self._client)
        size = min(len(ids_N), self._settings.stop_set_share)
        generator = numpy_generator(self._settings.seed, "stop-set", self._client)
        drawn_N = np.sort(generator.choice(ids_N, size=size, replace=False))
        self._state.save_stop_set(drawn_N)
        return drawn_N
