"""What local training minimises: a local update by name, and a term that an aggregation adds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from ahfal_app.config import Settings
from ahfal_app.plugins import LOCAL_UPDATES
from ahfal_app.query import QueryStrategy
from ahfal_app.training.local_updates.core.base import (
    LocalSituation,
    LocalUpdateMethod,
    Objective,
)
from ahfal_app.training.penalties import PenaltySum
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.resources import Resources
from ahfal_app.training.sgd import Recipe


def make_local_update(settings: Settings) -> LocalUpdateMethod:
    """Return the local update that is set, with its parameters.

    Raises
    ------
    UnknownComponent
        No local update has this name.
    """
    return local_update_maker(settings)()


def local_update_maker(settings: Settings) -> Callable[[], LocalUpdateMethod]:
    """Return what makes the local update that is set anew each time.

    Raises
    ------
    UnknownComponent
        No local update has this name.
    """
    method: type[LocalUpdateMethod] = LOCAL_UPDATES.component(settings.local_update)
    values = settings.parameters_of(LOCAL_UPDATES.setting)
    return functools.partial(method, method.Parameters.model_validate(values))


def make_objective(
    method: LocalUpdateMethod,
    resources: Resources,
    strategy: QueryStrategy,
    recipe: Recipe,
    situation: LocalSituation,
    proximal_mu: float = 0.0,
) -> Objective:
    """Return what a client minimises in a round.

    Parameters
    ----------
    method : LocalUpdateMethod
        The run's local update; that it goes with the strategy is checked before a run.
    resources : Resources
        Data and networks.
    strategy : QueryStrategy
        May have a loss of its own.
    recipe : Recipe
        How it trains.
    situation : LocalSituation
        What the client has.
    proximal_mu : float
        Weight of the squared distance to the global model, which is added; 0: it is not.
    """
    objective = method.objective(strategy, resources, recipe, situation)
    if proximal_mu:
        anchors = {name: situation.global_tensors[name] for name in resources.trainable_names}
        proximal = ProximalTerm(proximal_mu, anchors, resources.device)
        penalty = objective.penalty
        penalty = proximal if penalty is None else PenaltySum(penalty, proximal)
        objective = replace(objective, penalty=penalty)
    return objective
