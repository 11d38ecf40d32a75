"""How a client tests the global model on labelled samples that it never trains on.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        """Draw which of the labels that came are for testing, before any of them is trained on.

        A site that brings images for testing holds out none.
        """
        settings = self.settings
        if settings.tests_at_sites and not self.loaded.has_validation:
            store.hold_out(
                exact_fraction(settings.validation_fraction),
                lambda drawn: numpy_generator(settings.seed, "validation", self.client, drawn),
                of_first_request=settings.validation_from == "initial",
            )

    def sums(self, store: LabelStore, tensors: Mapping[str, Tensor], cycle: int) -> EvaluationSums:
        """Test a model on what is held out of the labels that a cycle may use, if any.

        Of a site that brings images for testing, on these, too.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        tensors : dict[str, Tensor]
            The model.
        cycle : int
            The cycle that was just trained.
        """
        store.freeze(cycle)
        held_out = store.held_out(through_cycle=cycle)
        brought = self.loaded.validation_images
        total = EvaluationSums.nothing(self.loaded.num_classes)
        if brought is not None:
            labels_N = brought.labels_N.cpu().numpy()
            total += self._tested(tensors, brought, np.arange(len(labels_N)), labels_N)
        if len(held_out.samples_N):
            images = self.loaded.train_images
            total += self._tested(tensors, images, held_out.samples_N, held_out.labels_N)
        return total

    def _tested(
        self,
        tensors: Mapping[str, Tensor],
        images: DeviceImages,
        rows_N: NDArray[np.int64],
        labels_N: NDArray[np.int64],
    ) -> EvaluationSums:
        model = self.loaded.model_with(tensors)
        logits_NC = predict(model, images, torch.from_numpy(rows_N)).logits_NC
        predicted_N = logits_NC.argmax(dim=1).cpu().numpy()
        return evaluation_sums(logits_NC.float().cpu().numpy(), labels_N, predicted_N)
