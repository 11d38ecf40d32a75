"""One client's training in a round, as a task that something else may carry out.

By default it is done at once. An engine that serves several clients of a process can have
them carried out together, without the clients knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from ahfal_app.data.device import DeviceImages
from ahfal_app.models import Classifier
from ahfal_app.training.local_updates.core.base import Objective
from ahfal_app.training.sgd import Recipe, TrainingResult, TrainingState, train_locally


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What a client trains in a round; the fields are the arguments of `train_locally`.

    Attributes
    ----------
    model : Classifier
        Trained in place.
    images : DeviceImages
        The training split.
    rows_N, labels_N : Tensor
        Rows of the labelled set and their labels, int64, at least one.
    recipe : Recipe
        How to train.
    state : TrainingState | None
        What the cycle's rounds before have left.
    generator : torch.Generator
        Draws batches and augmentations, on the CPU.
    objective : Objective
        What is minimised.
    """

    model: Classifier
    images: DeviceImages
    rows_N: Tensor
    labels_N: Tensor
    recipe: Recipe
    state: TrainingState | None
    generator: torch.Generator
    objective: Objective


#: Carries out an update: trains its model in place.
Trainer = Callable[[LocalUpdate], TrainingResult]


def train_alone(update: LocalUpdate) -> TrainingResult:
    """Train one client at once."""
    return train_locally(
        update.model,
        update.images,
        update.rows_N,
        update.labels_N,
        update.recipe,
        update.state,
        update.generator,
        update.objective.loss,
        update.objective.penalty,
    )


_trainer: ContextVar[Trainer] = ContextVar("trainer", default=train_alone)


def carry_out(update: LocalUpdate) -> TrainingResult:
    """Train as the engine that serves this client wants it."""
    return _trainer.get()(update)


@contextmanager
def trained_by(trainer: Trainer) -> Iterator[None]:
    """Have the updates of this thread carried out by something else."""
    token = _trainer.set(trainer)
    try:
        yield
    finally:
        _trainer.reset(token)
