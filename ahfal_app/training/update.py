"""Who trains a client's model in a round.

By default it is trained at once, alone. An engine that serves several clients of a process can
have them trained together, without the clients knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ahfal_app.training.sgd import LocalUpdate, TrainingResult, train_locally

#: Carries out an update: trains its model in place.
Trainer = Callable[[LocalUpdate], TrainingResult]

_trainer: ContextVar[Trainer | None] = ContextVar("trainer", default=None)


def carry_out(update: LocalUpdate) -> TrainingResult:
    """Train as the engine that serves this client wants it."""
    return (_trainer.get() or train_locally)(update)


def is_trained_elsewhere() -> bool:
    """Return whether this thread's updates are carried out by something else.

    That takes models on the CPU to the device, all of a group in one transfer.
    """
    return _trainer.get() is not None


@contextmanager
def trained_by(trainer: Trainer) -> Iterator[None]:
    """Have the updates of this thread carried out by something else."""
    token = _trainer.set(trainer)
    try:
        yield
    finally:
        _trainer.reset(token)
