"""What a client's models give for its pool: the signals that query strategies ask for.

Shape suffixes: N samples in the pool, L labelled samples, C classes, D embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahfal_app.config import Settings
from ahfal_app.models import Classifier
from ahfal_app.query import LocalOnlyTraining, Outputs, PoolView, QueryStrategy, Signal
from ahfal_app.seeds import torch_generator
from ahfal_app.training.local_only import train_local_only_model
from ahfal_app.training.prediction import Predictions, predict
from ahfal_app.training.resources import Resources


@dataclass(frozen=True, eq=False)
class PoolSituation:
    """What a client has when it selects.

    Attributes
    ----------
    client, cycle : int
        Who selects, and the cycle that labels are bought for.
    ids_N : NDArray[np.int64]
        Samples without a label, increasing. Shape (N,).
    labelled_ids_L, labels_L : NDArray[np.int64]
        Labelled samples and their labels. Shape (L,).
    local_tensors, global_tensors : dict[str, Tensor]
        The models f^L and f^G.
    watched : Mapping[Signal, Tensor]
        What the query strategy has watched of the pool while the client trained.
    """

    client: int
    cycle: int
    ids_N: NDArray[np.int64]
    labelled_ids_L: NDArray[np.int64]
    labels_L: NDArray[np.int64]
    local_tensors: Mapping[str, Tensor]
    global_tensors: Mapping[str, Tensor]
    watched: Mapping[Signal, Tensor] = field(default_factory=dict)


def make_pool(
    settings: Settings, resources: Resources, strategy: QueryStrategy, situation: PoolSituation
) -> PoolView:
    """Return a client's pool with everything that a strategy may ask of it.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    resources : Resources
        Data and networks.
    strategy : QueryStrategy
        What it declares decides what a forward pass keeps.
    situation : PoolSituation
        What the client has.
    """
    ids_N = torch.from_numpy(situation.ids_N)
    labelled_ids_L = torch.from_numpy(situation.labelled_ids_L)
    wants_maps = Signal.LOCAL_FEATURE_MAPS in strategy.signals

    def predictions(
        tensors: Mapping[str, Tensor], rows_N: Tensor, maps: bool = False
    ) -> Predictions:
        model = resources.model()
        model.load_state_dict(tensors)
        return predict(model, resources.train_images, rows_N, maps)

    @functools.cache
    def of_local() -> Predictions:
        return predictions(situation.local_tensors, ids_N, wants_maps)

    @functools.cache
    def of_global() -> Predictions:
        return predictions(situation.global_tensors, ids_N)

    @functools.cache
    def labelled_of_local() -> Predictions:
        return predictions(situation.local_tensors, labelled_ids_L)

    @functools.cache
    def labelled_of_global() -> Predictions:
        return predictions(situation.global_tensors, labelled_ids_L)

    def head(tensors: Mapping[str, Tensor]) -> Tensor:
        return _last_layer(resources.loaded_model(tensors))

    sources: dict[Signal, Callable[[], Tensor]] = {
        Signal.LOCAL_LOGITS: lambda: of_local().logits_NC,
        Signal.LOCAL_EMBEDDINGS: lambda: of_local().embeddings_ND,
        Signal.GLOBAL_LOGITS: lambda: of_global().logits_NC,
        Signal.GLOBAL_EMBEDDINGS: lambda: of_global().embeddings_ND,
        Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: labelled_of_local().embeddings_ND,
        Signal.LABELLED_GLOBAL_EMBEDDINGS: lambda: labelled_of_global().embeddings_ND,
        Signal.LABELLED_LOCAL_LOGITS: lambda: labelled_of_local().logits_NC,
        Signal.LABELLED_GLOBAL_LOGITS: lambda: labelled_of_global().logits_NC,
        Signal.LOCAL_HEAD: lambda: head(situation.local_tensors),
        Signal.GLOBAL_HEAD: lambda: head(situation.global_tensors),
    }
    for signal, values in situation.watched.items():
        sources[signal] = functools.partial(_as_it_is, values)
    if wants_maps:
        sources[Signal.LOCAL_FEATURE_MAPS] = lambda: _maps(of_local())
    return PoolView(situation.ids_N, sources, ClientModels(settings, resources, situation))


class ClientModels:
    """Models of a client that are made for a query strategy: `PoolModels`.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    resources : Resources
        Data and networks.
    situation : PoolSituation
        What the client has.
    """

    def __init__(self, settings: Settings, resources: Resources, situation: PoolSituation) -> None:
        self._settings = settings
        self._resources = resources
        self._situation = situation
        self._trained: dict[LocalOnlyTraining, Classifier] = {}
        self._local_only: dict[LocalOnlyTraining, Outputs] = {}

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        """Return the pool's outputs of a copy of the local model that `perturb` changed."""
        model = self._resources.loaded_model(self._situation.local_tensors)
        with torch.no_grad():
            perturb(model)
        return self._outputs(model)

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        """Return the pool's outputs of a fresh model trained on the labelled set alone."""
        if training not in self._local_only:
            self._local_only[training] = self._outputs(self._trained_alone(training))
        return self._local_only[training]

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        """Return the labelled set's outputs of the model of `local_only`."""
        return self._outputs(self._trained_alone(training), self._situation.labelled_ids_L)

    def _trained_alone(self, training: LocalOnlyTraining) -> Classifier:
        if training not in self._trained:
            self._trained[training] = self._newly_trained(training)
        return self._trained[training]

    def _newly_trained(self, training: LocalOnlyTraining) -> Classifier:
        resources, situation = self._resources, self._situation
        model = resources.new_model(situation.cycle, "local-only").to(resources.device)
        model = model.to(memory_format=torch.channels_last)
        recipe = resources.recipe(self._settings)
        teacher = None
        if training.distil_weight:
            teacher = resources.loaded_model(situation.global_tensors).eval()
        key = (self._settings.seed, "local-only", situation.client, situation.cycle)
        # Strategies run without gradients; this is the one place that needs them.
        with torch.enable_grad():
            train_local_only_model(
                model,
                resources.train_images,
                torch.from_numpy(situation.labelled_ids_L),
                torch.from_numpy(situation.labels_L),
                training,
                recipe.augmentation,
                recipe.precision,
                torch_generator(*key),
                teacher,
            )
        return model

    def _outputs(self, model: Classifier, ids_N: NDArray[np.int64] | None = None) -> Outputs:
        rows_N = torch.from_numpy(self._situation.ids_N if ids_N is None else ids_N)
        predictions = predict(model, self._resources.train_images, rows_N)
        return Outputs(predictions.logits_NC, predictions.embeddings_ND)


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _maps(predictions: Predictions) -> Tensor:
    if predictions.feature_maps_NF is None:
        raise ValueError("these predictions were made without feature maps")
    return predictions.feature_maps_NF


def _last_layer(model: Classifier) -> Tensor:
    """Return the last layer's weights, and its bias as the last column. Shape (C, D + 1)."""
    weight_CD = model.head.weight.detach()
    bias_C = weight_CD.new_zeros(len(weight_CD)) if model.head.bias is None else model.head.bias
    return torch.cat([weight_CD, bias_C.detach()[:, None]], dim=1)
