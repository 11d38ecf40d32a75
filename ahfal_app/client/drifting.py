"""A client's comparison of two windows of cycles: of its audit's labels, or of what arrived.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.client.arriving import Arriving
from ahfal_app.client.auditing import Auditing, windows
from ahfal_app.config import Settings
from ahfal_app.drift import Found, predicted_shift
from ahfal_app.errors import MessageRefused
from ahfal_app.labels.store import LabelStore
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import Resources

#: Is given a cycle and what makes the counts of its two windows (2, C); returns those to tell.
KeptWindows = Callable[[int, Callable[[], NDArray[np.int64]]], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Drifting:
    """What a client makes of two windows.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    loaded : Resources
        The client's data and its model.
    arriving : Arriving
        When its samples came.
    auditing : Auditing
        Its audit.
    """

    settings: Settings
    loaded: Resources
    arriving: Arriving
    auditing: Auditing

    def found(
        self,
        store: LabelStore,
        cycle: int,
        tensors: Mapping[str, Tensor] | None,
        kept: KeptWindows,
    ) -> Found:
        """Compare the two windows that end with a cycle.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        cycle : int
            The cycle that was just trained.
        tensors : Mapping[str, Tensor] | None
            With `drift-test=predicted` the model that predicts both windows.
        kept : KeptWindows
            Returns what is predicted of both windows of a cycle, by the first model alone.

        Raises
        ------
        MessageRefused
            There is nothing to compare, or nothing to predict with.
        """
        method = self.settings.drift_test
        if method == "none" or not self.settings.compares_windows(cycle):
            raise MessageRefused(
                f"cycle={cycle}: no windows are compared with drift-test={method!r} and "
                f"drift-window={self.settings.drift_window}"
            )
        if method != "predicted":
            return self.auditing.tested(store, cycle, self.loaded.num_classes, method)
        if tensors is None:
            raise MessageRefused("drift-test='predicted': asked without a model")

        def predicted() -> NDArray[np.int64]:
            both = windows(cycle, self.settings.drift_window)
            return np.stack([self._predicted(store, cycles, tensors) for cycles in both])

        return predicted_shift(*kept(cycle, predicted))

    def _predicted(
        self, store: LabelStore, cycles: range, tensors: Mapping[str, Tensor]
    ) -> NDArray[np.int64]:
        """Return how often each class is predicted of what arrived in some cycles. Shape (C,)."""
        num_classes = self.loaded.num_classes
        rows_N = np.concatenate([self.arriving.new(store, cycle) for cycle in cycles])
        if not len(rows_N):
            return np.zeros(num_classes, np.int64)
        model, images = self.loaded.model_with(tensors), self.loaded.train_images
        logits_NC = predict(model, images, torch.from_numpy(rows_N)).logits_NC
        return np.bincount(logits_NC.argmax(dim=1).cpu().numpy(), minlength=num_classes)
