"""Strategies that watch the pool while their client trains.

Shape suffixes: N samples in the pool.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ahfal_app.query.core.base import QueryStrategy
from ahfal_app.query.core.pool import Outputs, Signal

#: What has been watched so far, by name: tensors of the pool (N, ...), and single numbers ().
Watched = dict[str, Tensor]


@dataclass(frozen=True)
class Moment:
    """A state of a client's training.

    Attributes
    ----------
    model : str
        `local`: the client's own model; `global`: the aggregate of a round, as it arrived.
    round, rounds : int
        The cycle's round, from 1, that the model comes from, and how many the cycle has.
    epoch, epochs : int
        The round's local epoch, from 1, that is over, and how many a round has; of a global model
        the last one.
    """

    model: Literal["local", "global"]
    round: int
    rounds: int
    epoch: int
    epochs: int

    @property
    def ends_round(self) -> bool:
        """Whether local training is over."""
        return self.epoch == self.epochs


class WatchingStrategy(QueryStrategy):
    """A query strategy that looks at the pool at moments of the training, too.

    What it has watched is kept with the client's state. It is a function of a cycle's rounds, so
    that a round that is repeated gives the same.
    """

    every_epoch: ClassVar[bool] = False
    """Whether moments within a round are of interest, and not its end alone."""

    @abstractmethod
    def watches(self, moment: Moment) -> bool:
        """Return whether a moment is of interest; each costs a forward pass over the pool."""

    @abstractmethod
    def watch(self, before: Watched | None, outputs: Outputs, moment: Moment) -> Watched:
        """Return what has been watched, with the outputs of one more moment.

        Parameters
        ----------
        before : Watched | None
            What was watched in the cycle until now; None at its first moment. Not changed.
        outputs : Outputs
            Logits (N, C) and embeddings (N, D) of the pool, float32.
        moment : Moment
            Where they come from.
        """

    @abstractmethod
    def watched_signals(self, watched: Watched) -> Mapping[Signal, Tensor]:
        """Return the signals that follow from what was watched, (N, ...) each."""

    @abstractmethod
    def unwatched_signals(self, size: int, num_classes: int) -> Mapping[Signal, Tensor]:
        """Return the signals of samples of which nothing was watched, (size, ...) each."""
