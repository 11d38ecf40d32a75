"""What local training minimises: cross-entropy, a query strategy's own loss, or KCFU.

FedProx adds its term to any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.config import Settings
from ahfal_app.models import Classifier
from ahfal_app.query import QueryStrategy, TrainingContext
from ahfal_app.seeds import numpy_generator, torch_generator
from ahfal_app.training.kcfu import BalancedSoftmax, Compensation, CompensatoryLoss
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.resources import Resources
from ahfal_app.training.sgd import Loss, Penalty, Recipe


@dataclass(frozen=True, eq=False)
class LocalSituation:
    """What a client has when it starts to train.

    Attributes
    ----------
    client, cycle, round : int
        Who trains when; rounds count from 1 in each cycle.
    class_counts_C : NDArray[np.int64]
        Class counts of its labelled set. Shape (C,).
    pool_rows_N : NDArray[np.int64]
        Its samples without a label.
    global_tensors : dict[str, Tensor]
        The global model as it was received.
    """

    client: int
    cycle: int
    round: int
    class_counts_C: NDArray[np.int64]
    pool_rows_N: NDArray[np.int64]
    global_tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """The loss of a labelled batch, and what is added to it."""

    loss: Loss
    penalty: Penalty | None = None


def make_objective(
    settings: Settings,
    resources: Resources,
    strategy: QueryStrategy,
    recipe: Recipe,
    situation: LocalSituation,
) -> Objective:
    """Return what a client minimises in a round.

    Parameters
    ----------
    settings : Settings
        The run's settings; `local-update=kcfu` and a strategy with a loss of its own exclude
        each other, which is checked before a run.
    resources : Resources
        Data and networks.
    strategy : QueryStrategy
        May have a loss of its own.
    recipe : Recipe
        How it trains.
    situation : LocalSituation
        What the client has.
    """
    if settings.local_update == "kcfu":
        objective = _kcfu(settings, resources, recipe, situation)
    else:
        context = TrainingContext(resources.num_classes, situation.class_counts_C, situation.round)
        objective = Objective(strategy.training_loss(context) or cross_entropy)
    if settings.aggregation == "fedprox":
        anchors = {name: situation.global_tensors[name] for name in resources.trainable_names}
        proximal = ProximalTerm(settings.proximal_mu, anchors, resources.device)
        objective = replace(objective, penalty=_sum(objective.penalty, proximal))
    return objective


def _sum(first: Penalty | None, second: Penalty) -> Penalty:
    if first is None:
        return second

    def penalty(model: Classifier) -> Tensor:
        return first(model) + second(model)

    return penalty


def _kcfu(
    settings: Settings, resources: Resources, recipe: Recipe, situation: LocalSituation
) -> Objective:
    loss = BalancedSoftmax(situation.class_counts_C, resources.device)
    # In a cycle's first round the global model is fresh and has nothing to teach.
    if situation.round == 1 or not len(situation.pool_rows_N):
        return Objective(loss)
    key = (settings.seed, "kcfu", situation.client, situation.cycle, situation.round)
    penalty = CompensatoryLoss(
        resources.loaded_model(situation.global_tensors),
        resources.train_images,
        torch.from_numpy(situation.pool_rows_N),
        situation.class_counts_C,
        Compensation(
            mixing=settings.kcfu_mixing,
            teacher=settings.kcfu_teacher,
            batch_size=recipe.batch_size,
            augmentation=recipe.augmentation,
            precision=recipe.precision,
        ),
        numpy_generator(*key),
        torch_generator(*key),
    )
    return Objective(loss, penalty)
