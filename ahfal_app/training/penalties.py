"""Several terms that are added to the loss of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ahfal_app.models import Classifier
from ahfal_app.training.sgd import Penalty

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class PenaltySum:
    """A sum of penalties.

    Attributes
    ----------
    first, second : Penalty
        What is added.
    """

    first: Penalty
    second: Penalty

    def __call__(self, model: Classifier) -> Tensor:
        """Return the sum, a scalar."""
        return self.first(model) + self.second(model)


def parts_of(penalty: Penalty | None) -> tuple[Penalty, ...]:
    """Return what a penalty is the sum of; itself, or nothing where there is none."""
    if isinstance(penalty, PenaltySum):
        return *parts_of(penalty.first), *parts_of(penalty.second)
    return () if penalty is None else (penalty,)


def part_of(penalty: Penalty | None, kind: type[Kind]) -> Kind | None:
    """Return the first part of a penalty that is of some kind, if there is one."""
    return next((part for part in parts_of(penalty) if isinstance(part, kind)), None)
