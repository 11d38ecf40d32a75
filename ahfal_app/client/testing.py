"""How a client tests the global model on labelled samples that it never trains on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.config import Settings, exact_fraction
from ahfal_app.data.device import DeviceImages
from ahfal_app.evaluation import EvaluationSums, evaluation_sums
from ahfal_app.labels.store import LabelStore
from ahfal_app.seeds import numpy_generator
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import Resources


@dataclass(frozen=True, eq=False)
class Testing:
    """A client's tests.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    client : int
        The client's partition, from 0.
    loaded : Resources
        The client's data and its model.
    """

    settings: Settings
    client: int
    loaded: Resources

    def hold_out(self, store: LabelStore) -> None:
        """Draw which of the labels that came are for testing, before any of them is trained on."""
        settings = self.settings
        if settings.tests_at_sites and not self.loaded.has_own_tests:
            store.hold_out(
                exact_fraction(settings.validation_fraction),
                lambda drawn: numpy_generator(settings.seed, "validation", self.client, drawn),
                of_first_request=settings.validation_from == "initial",
            )

    def sums(self, store: LabelStore, tensors: dict[str, Tensor], cycle: int) -> EvaluationSums:
        """Test a model on what a site keeps for that, or on what a cycle's labels leave for it.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        tensors : dict[str, Tensor]
            The model.
        cycle : int
            The cycle that was just trained.
        """
        own = self.loaded.validation_images
        if own is not None:
            return self._sums(tensors, own, torch.arange(len(own)), own.labels_N.cpu().numpy())
        store.freeze(cycle)
        held_out = store.held_out(through_cycle=cycle)
        rows_N = torch.from_numpy(held_out.samples_N)
        return self._sums(tensors, self.loaded.train_images, rows_N, held_out.labels_N)

    def _sums(
        self,
        tensors: dict[str, Tensor],
        images: DeviceImages,
        rows_N: Tensor,
        labels_N: NDArray[np.int64],
    ) -> EvaluationSums:
        if not len(rows_N):
            return EvaluationSums.nothing(self.loaded.num_classes)
        model = self.loaded.model_with(tensors)
        logits_NC = predict(model, images, rows_N).logits_NC
        predicted_N = logits_NC.argmax(dim=1).cpu().numpy()
        return evaluation_sums(logits_NC.float().cpu().numpy(), labels_N, predicted_N)
