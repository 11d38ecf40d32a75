"""What a query strategy watches of a client's pool while the client trains.

Shape suffixes: N samples in the pool, M samples that were watched.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.client.state import ClientState
from ahfal_app.config import Settings
from ahfal_app.models import Classifier
from ahfal_app.query import (
    Moment,
    Outputs,
    QueryStrategy,
    Signal,
    WatchingStrategy,
    strategy_maker,
)
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import Resources

_log = logging.getLogger(__name__)

#: Sample ids of the rows, among what is kept.
_IDS = "ids"


@dataclass(frozen=True, eq=False)
class Watching:
    """A client's watching for its query strategy; nothing is done where that does not watch.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    state : ClientState
        What the client keeps between messages.
    loaded : Resources
        The client's data and its model.
    """

    settings: Settings
    state: ClientState
    loaded: Resources

    @property
    def is_needed(self) -> bool:
        """Whether the strategy watches anything."""
        return self._strategy() is not None

    def of_round(self, ids_N: NDArray[np.int64], cycle: int, round_: int) -> RoundWatch | None:
        """Return the watch of a round of training, or None where the strategy watches nothing."""
        strategy = self._strategy()
        if strategy is None:
            return None
        before = self.state.load_watched(cycle, round_)
        return RoundWatch(self, strategy, ids_N, before, cycle, round_)

    def signals(
        self, ids_N: NDArray[np.int64], tensors: Mapping[str, Tensor], cycle: int
    ) -> Mapping[Signal, Tensor]:
        """Return what follows from what was watched in a cycle, for the pool as it is now.

        A sample that was not in the pool all the time has not been watched.

        Parameters
        ----------
        ids_N : NDArray[np.int64]
            The pool, increasing. Shape (N,).
        tensors : dict[str, Tensor]
            The global model, the aggregate of the cycle's last round.
        cycle : int
            The cycle that was just trained.
        """
        strategy = self._strategy()
        if strategy is None:
            return {}
        after_last = self.settings.rounds + 1
        watch = self.of_round(ids_N, cycle, after_last)
        if watch is not None:
            watch.received(tensors)
        signals = dict(strategy.unwatched_signals(len(ids_N), self.loaded.num_classes))
        if watch is None or watch.watched is None:
            _log.warning("%s has watched nothing of the pool in cycle %d", strategy.name, cycle)
            return signals
        rows_M = torch.from_numpy(np.searchsorted(ids_N, watch.ids_M))
        for signal, values in strategy.watched_signals(watch.watched).items():
            signals[signal] = signals[signal].to(values).index_copy(0, rows_M, values)
        return {signal: values.to(self.loaded.device) for signal, values in signals.items()}

    @cached_property
    def _make_strategy(self) -> Callable[[], QueryStrategy]:
        return strategy_maker(self.settings.strategy, self.settings.parameters_of("strategy"))

    def _strategy(self) -> WatchingStrategy | None:
        strategy = self._make_strategy()
        return strategy if isinstance(strategy, WatchingStrategy) else None


class RoundWatch:
    """Watches the pool in one round of training.

    Parameters
    ----------
    watching : Watching
        Data, state and settings.
    strategy : WatchingStrategy
        Says what is watched.
    ids_N : NDArray[np.int64]
        The pool, increasing. Shape (N,).
    before : dict[str, Tensor] | None
        What was watched in the cycle's earlier rounds, and of which samples.
    cycle, round_ : int
        The round.

    Attributes
    ----------
    ids_M : NDArray[np.int64]
        Samples that are watched: those of the pool that have been from the beginning. Shape (M,).
    watched : dict[str, Tensor] | None
        What has been watched.
    """

    def __init__(
        self,
        watching: Watching,
        strategy: WatchingStrategy,
        ids_N: NDArray[np.int64],
        before: dict[str, Tensor] | None,
        cycle: int,
        round_: int,
    ) -> None:
        self._watching, self._strategy = watching, strategy
        self._cycle, self._round = cycle, round_
        self.ids_M, self.watched = ids_N, None
        if before is not None:
            self.ids_M, self.watched = _still_there(ids_N, before)

    @property
    def every_epoch(self) -> bool:
        """Whether the strategy looks at epochs within the round."""
        return self._strategy.every_epoch

    def received(self, tensors: Mapping[str, Tensor]) -> None:
        """Look at the global model that came, the aggregate of the round before."""
        epochs = self._watching.settings.local_epochs
        moment = Moment("global", self._round - 1, self._rounds, epochs, epochs)
        if self._round > 1 and self._strategy.watches(moment):
            self._look(self._watching.loaded.loaded_model(tensors), moment)

    def after_epoch(self, model: Classifier, epoch: int) -> None:
        """Look at the client's model after one of the round's epochs, from 1."""
        epochs = self._watching.settings.local_epochs
        moment = Moment("local", self._round, self._rounds, epoch, epochs)
        if self._strategy.watches(moment):
            self._look(model, moment)

    def trained(self, model: Classifier, has_trained: bool) -> None:
        """Look at the model after the round, and keep what was watched until now."""
        if has_trained and not self.every_epoch:
            self.after_epoch(model, self._watching.settings.local_epochs)
        if self.watched is not None:
            kept = {**self.watched, _IDS: torch.from_numpy(self.ids_M)}
            self._watching.state.save_watched(self._cycle, self._round, kept)

    @property
    def _rounds(self) -> int:
        return self._watching.settings.rounds

    def _look(self, model: Classifier, moment: Moment) -> None:
        images = self._watching.loaded.train_images
        if next(model.parameters()).device.type != images.device.type:
            # Where clients train together, models wait on the CPU.
            model = copy.deepcopy(model).to(images.device)
        predictions = predict(model, images, torch.from_numpy(self.ids_M))
        outputs = Outputs(
            predictions.logits_NC.cpu(), predictions.embeddings_ND.cpu(), model.has_fixed_features
        )
        self.watched = self._strategy.watch(self.watched, outputs, moment)


def _still_there(
    ids_N: NDArray[np.int64], before: dict[str, Tensor]
) -> tuple[NDArray[np.int64], dict[str, Tensor]]:
    """Return the samples that were watched and are in the pool, and what was watched of them."""
    watched_ids = before[_IDS].numpy()
    rows = torch.from_numpy(np.flatnonzero(np.isin(watched_ids, ids_N)))
    watched = {
        name: values[rows] if values.ndim else values
        for name, values in before.items()
        if name != _IDS
    }
    return watched_ids[rows.numpy()], watched
