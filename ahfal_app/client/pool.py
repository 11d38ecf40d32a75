"""What a client's models give for its pool: the signals that query strategies ask for.

Shape suffixes: N samples in the pool, L labelled samples, C classes, D embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahfal_app.config import Settings
from ahfal_app.models import Classifier
from ahfal_app.query import LocalOnlyTraining, Outputs, PoolView, QueryStrategy, Signal
from ahfal_app.query.core.coordination import Coordination
from ahfal_app.seeds import torch_generator
from ahfal_app.training.local_only import train_local_only_model
from ahfal_app.training.prediction import Predictions, predict, predict_by_head
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
    settings: Settings,
    resources: Resources,
    strategy: QueryStrategy | Coordination,
    situation: PoolSituation,
) -> PoolView:
    """Return a client's pool with everything that a strategy may ask of it.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    resources : Resources
        Data and networks.
    strategy : QueryStrategy | Coordination
        What it declares decides what a forward pass keeps.
    situation : PoolSituation
        What the client has.
    """
    wants_maps = Signal.LOCAL_FEATURE_MAPS in strategy.signals
    pool = _Samples(resources, situation.ids_N)
    labelled = _Samples(resources, situation.labelled_ids_L)

    @functools.cache
    def of_local() -> Predictions:
        return pool.seen_by(resources.loaded_model(situation.local_tensors), wants_maps)

    @functools.cache
    def of_global() -> Predictions:
        return pool.seen_by(resources.loaded_model(situation.global_tensors))

    @functools.cache
    def labelled_of_local() -> Predictions:
        return labelled.seen_by(resources.loaded_model(situation.local_tensors))

    @functools.cache
    def labelled_of_global() -> Predictions:
        return labelled.seen_by(resources.loaded_model(situation.global_tensors))

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
    models = ClientModels(settings, resources, situation, pool)
    return PoolView(situation.ids_N, sources, models)


class _Samples:
    """Samples that several models look at.

    Where their features are fixed, as a backbone's are, these are read and normalised once.

    Parameters
    ----------
    resources : Resources
        Data and networks.
    ids_N : NDArray[np.int64]
        The samples.
    """

    def __init__(self, resources: Resources, ids_N: NDArray[np.int64]) -> None:
        self._images = resources.train_images
        self._rows_N = torch.from_numpy(ids_N)
        self._by_a_head: Predictions | None = None

    def seen_by(self, model: Classifier, feature_maps: bool = False) -> Predictions:
        """Return what a model gives for them, with feature maps if asked for."""
        if not model.has_fixed_features:
            return predict(model, self._images, self._rows_N, feature_maps)
        if self._by_a_head is None:
            found = self._by_a_head = predict(model, self._images, self._rows_N)
        else:
            found = predict_by_head(model, self._by_a_head, self._images)
        # The map of a vector is a single pixel.
        return replace(found, feature_maps_NF=found.embeddings_ND) if feature_maps else found


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
    pool : _Samples | None
        The pool's samples, if other models have looked at them.
    """

    def __init__(
        self,
        settings: Settings,
        resources: Resources,
        situation: PoolSituation,
        pool: _Samples | None = None,
    ) -> None:
        self._settings = settings
        self._resources = resources
        self._situation = situation
        self._pool = pool or _Samples(resources, situation.ids_N)
        self._trained: dict[LocalOnlyTraining, Classifier] = {}
        self._local_only: dict[LocalOnlyTraining, Outputs] = {}

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        """Return the pool's outputs of a copy of the local model that `perturb` changed."""
        model = self._resources.loaded_model(self._situation.local_tensors)
        with torch.no_grad():
            perturb(model)
        return _outputs(self._pool.seen_by(model))

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        """Return the pool's outputs of a fresh model trained on the labelled set alone."""
        if training not in self._local_only:
            self._local_only[training] = _outputs(self._pool.seen_by(self._trained_alone(training)))
        return self._local_only[training]

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        """Return the labelled set's outputs of the model of `local_only`."""
        labelled = _Samples(self._resources, self._situation.labelled_ids_L)
        return _outputs(labelled.seen_by(self._trained_alone(training)))

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        """Return the pool's and the labelled set's embeddings of the model of `local_only`.

        Nothing is trained where training would not change them.
        """
        fresh = self._fresh_model()
        model = fresh if fresh.has_fixed_features else self._trained_alone(training)
        labelled = _Samples(self._resources, self._situation.labelled_ids_L)
        pool_ND, labelled_LD = (
            samples.seen_by(model).embeddings_ND for samples in (self._pool, labelled)
        )
        return pool_ND, labelled_LD

    def _fresh_model(self) -> Classifier:
        model = self._resources.new_model(self._situation.cycle, "local-only")
        return model.to(self._resources.device).to(memory_format=torch.channels_last)

    def _trained_alone(self, training: LocalOnlyTraining) -> Classifier:
        if training not in self._trained:
            self._trained[training] = self._newly_trained(training)
        return self._trained[training]

    def _newly_trained(self, training: LocalOnlyTraining) -> Classifier:
        resources, situation = self._resources, self._situation
        model = self._fresh_model()
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


def _outputs(predictions: Predictions) -> Outputs:
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
