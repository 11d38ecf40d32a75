"""How a client trains the global model on its labelled set, in a round or to catch up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.client.state import ClientState
from ahfal_app.config import Settings
from ahfal_app.labels.store import Labelled, LabelStore
from ahfal_app.models import Classifier
from ahfal_app.query import QueryStrategy, strategy_maker
from ahfal_app.seeds import torch_generator
from ahfal_app.training.local_updates.core.base import LocalSituation, LocalUpdateMethod
from ahfal_app.training.objectives import local_update_maker, make_objective
from ahfal_app.training.resources import Resources
from ahfal_app.training.sgd import AfterEpoch, LocalUpdate, TrainingResult, TrainingState
from ahfal_app.training.update import carry_out


@dataclass(frozen=True, eq=False)
class LabelledSets:
    """What a client trains on in a cycle, apart from its images.

    Attributes
    ----------
    labelled : Labelled
        The labelled set L_i.
    initially : Labelled
        What was labelled before the first cycle.
    open_N : NDArray[np.int64] | None
        What may be asked for in that cycle, increasing; None: all of its samples.
    held_out_N : NDArray[np.int64]
        What is labelled and held out for testing: no part of anything else.
    """

    labelled: Labelled
    initially: Labelled
    open_N: NDArray[np.int64] | None = None
    held_out_N: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(
        cls,
        store: LabelStore,
        through_cycle: int | None = None,
        open_N: NDArray[np.int64] | None = None,
    ) -> LabelledSets:
        """Read them from a store; by default all that is labelled."""
        labelled = store.labelled(through_cycle=through_cycle)
        held_out_N = store.held_out(through_cycle=through_cycle).samples_N
        return cls(labelled, store.labelled(through_cycle=0), open_N, held_out_N)


@dataclass(frozen=True, eq=False)
class ClientTraining:
    """A client's local training.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    client : int
        The client's partition, from 0.
    state : ClientState
        What the client keeps between messages: momentum and schedule of the rounds before.
    loaded : Resources
        The client's data and its model.
    proximal_mu : float
        Weight of the proximal term that the run's aggregation asks for; 0: none.
    """

    settings: Settings
    client: int
    state: ClientState
    loaded: Resources
    proximal_mu: float = 0.0

    def in_round(
        self,
        tensors: Mapping[str, Tensor],
        sets: LabelledSets,
        cycle: int,
        round_: int,
        watch: AfterEpoch | None = None,
    ) -> tuple[Classifier, TrainingResult | None]:
        """Train the global model on L_i; there is no result where nothing is labelled."""
        model = self._model(tensors)
        if len(sets.labelled.samples_N) == 0:
            return model, None
        result = self._train(model, tensors, sets, (cycle, round_), watch)
        self.state.save_training(cycle, round_, result.state)
        return model, result

    def in_place_of_local_model(
        self, tensors: Mapping[str, Tensor], sets: LabelledSets, cycle: int
    ) -> Mapping[str, Tensor]:
        """Stand in for f^L of a client that missed the last round: f^G, trained on L_i."""
        model = self._model(tensors)
        if len(sets.labelled.samples_N):
            self._train(model, tensors, sets, (cycle, self.settings.rounds + 1))
        return self.loaded.model_tensors()

    @functools.cached_property
    def _make_local_update(self) -> Callable[[], LocalUpdateMethod]:
        return local_update_maker(self.settings)

    @functools.cached_property
    def _make_strategy(self) -> Callable[[], QueryStrategy]:
        return strategy_maker(self.settings.strategy, self.settings.parameters_of("strategy"))

    def _model(self, tensors: Mapping[str, Tensor]) -> Classifier:
        return self.loaded.model_with(tensors)

    def _train(
        self,
        model: Classifier,
        global_tensors: Mapping[str, Tensor],
        sets: LabelledSets,
        when: tuple[int, int],
        watch: AfterEpoch | None = None,
    ) -> TrainingResult:
        settings, labelled = self.settings, sets.labelled
        recipe = self.loaded.recipe(settings)
        situation = LocalSituation(
            settings.seed,
            self.client,
            *when,
            class_counts_C=labelled.class_counts(self.loaded.num_classes),
            rows_N=self._rows(sets),
            labelled_N=labelled.samples_N,
            initially_labelled_N=sets.initially.samples_N,
            global_tensors=global_tensors,
            is_fresh=self._is_fresh(*when),
        )
        objective = make_objective(
            self._make_local_update(),
            self.loaded,
            self._make_strategy(),
            recipe,
            situation,
            self.proximal_mu,
        )
        update = LocalUpdate(
            model,
            self.loaded.train_images,
            torch.from_numpy(labelled.samples_N),
            torch.from_numpy(labelled.labels_N),
            recipe,
            self._training_state(*when),
            torch_generator(settings.seed, "training", self.client, *when),
            objective,
            watch,
        )
        return carry_out(update)

    def _is_fresh(self, cycle: int, round_: int) -> bool:
        """Return whether a round begins with a model that has not been trained."""
        settings = self.settings
        is_first = round_ == 1 and (settings.reset_model or cycle == 0)
        return is_first and not settings.initial_model

    def _rows(self, sets: LabelledSets) -> NDArray[np.int64]:
        """Return what a client may see in a cycle: what it may ask for, and what is labelled.

        But for what is held out, of which not even the images are trained on.
        """
        if sets.open_N is None:
            rows_N = self.loaded.client_rows(self.client)
        else:
            rows_N = np.union1d(sets.open_N, sets.labelled.samples_N)
        return np.setdiff1d(rows_N, sets.held_out_N, assume_unique=True)

    def _training_state(self, cycle: int, round_: int) -> TrainingState | None:
        state = self.state.load_training(cycle, round_)
        if state is not None and self.settings.optimizer_state == "reset":
            # The learning rate's schedule counts on, whatever becomes of the momentum.
            return dataclasses.replace(state, momentum={})
        return state
