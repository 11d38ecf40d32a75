"""The contract of a local update: what a client minimises when it trains in a round.

Shape suffixes: N samples, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.parameters import Parameters as NoParameters
from ahfal_app.query import QueryStrategy
from ahfal_app.training.resources import Resources
from ahfal_app.training.sgd import Objective, Recipe

__all__ = ["LocalSituation", "LocalUpdateMethod", "Objective"]


@dataclass(frozen=True, eq=False)
class LocalSituation:
    """What a client has when it starts to train.

    Attributes
    ----------
    seed : int
        The run's.
    client, cycle, round : int
        Who trains when; rounds count from 1 in each cycle.
    class_counts_C : NDArray[np.int64]
        Class counts of its labelled set. Shape (C,).
    rows_N : NDArray[np.int64]
        All of its samples that are there, or that it has labels of; without what is held out.
    labelled_N, initially_labelled_N : NDArray[np.int64]
        Those that are labelled, and that were before the first cycle.
    global_tensors : dict[str, Tensor]
        The global model as it was received.
    is_fresh : bool
        Whether that model has not been trained yet, as a cycle's first one that is made anew.
    """

    seed: int
    client: int
    cycle: int
    round: int
    class_counts_C: NDArray[np.int64]
    rows_N: NDArray[np.int64]
    labelled_N: NDArray[np.int64]
    initially_labelled_N: NDArray[np.int64]
    global_tensors: Mapping[str, Tensor]
    is_fresh: bool

    @cached_property
    def pool_N(self) -> NDArray[np.int64]:
        """Its samples without a label."""
        return np.setdiff1d(self.rows_N, self.labelled_N, assume_unique=True)

    @cached_property
    def initial_pool_N(self) -> NDArray[np.int64]:
        """Its samples that had no label before the first cycle."""
        return np.setdiff1d(self.rows_N, self.initially_labelled_N, assume_unique=True)


class LocalUpdateMethod(ABC):
    """Decides what a client minimises in a round.

    The first line of a subclass's docstring describes it in tables.

    Parameters
    ----------
    parameters : Parameters, optional
        The method's parameters; all defaults if left out.
    """

    name: ClassVar[str]
    """Name in settings: the module's name with hyphens."""
    paper: ClassVar[str]
    """Citation of what defines the method."""
    takes_strategy_loss: ClassVar[bool] = False
    """Whether it goes with a query strategy that trains with a loss of its own."""

    class Parameters(NoParameters):
        """Parameters of the method; each has a default and a description."""

    parameters: Parameters

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = self.Parameters() if parameters is None else parameters

    @abstractmethod
    def objective(
        self,
        strategy: QueryStrategy,
        resources: Resources,
        recipe: Recipe,
        situation: LocalSituation,
    ) -> Objective:
        """Return what a client minimises in a round.

        Parameters
        ----------
        strategy : QueryStrategy
            The run's; may have a loss of its own where `takes_strategy_loss` says so.
        resources : Resources
            Data and networks.
        recipe : Recipe
            How it trains.
        situation : LocalSituation
            What the client has.
        """
