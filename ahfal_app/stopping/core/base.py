"""The contract of a stopping rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from ahfal_app.parameters import Parameters as NoParameters
from ahfal_app.stop_set import Observation


@dataclass(frozen=True)
class CycleResult:
    """The test of a cycle's model.

    Attributes
    ----------
    labels : int
        Labels of all clients together that it was trained on.
    right, tests : int
        Test samples whose class was predicted, of so many.
    observed : Observation | None
        What it predicts of the clients' stop set; None where nobody asked.
    asked : int | None
        Labels that the purchase before it asked for; None where that is not known.
    awaited : int
        Those of them that had not come when that purchase ended.
    growth : float
        How many times as large the next purchase is as that one.
    """

    labels: int
    right: int
    tests: int
    observed: Observation | None = None
    asked: int | None = None
    awaited: int = 0
    growth: float = 1.0

    @property
    def accuracy(self) -> float:
        """Share of the test samples that were right."""
        return self.right / self.tests


class StoppingRule(ABC):
    """Says after each cycle whether more labels are worth it.

    It is a function of what was measured until then, so that a run that is resumed decides as one
    that ran through. The first line of a subclass's docstring describes it in tables.

    Parameters
    ----------
    parameters : Parameters, optional
        The rule's parameters; all defaults if left out.
    """

    name: ClassVar[str]
    """Name in settings: the module's name with hyphens."""
    paper: ClassVar[str] = ""
    """Citation of what defines the rule; empty where it needs none."""
    observes: ClassVar[bool] = False
    """Whether it needs predictions of the clients' stop set."""

    class Parameters(NoParameters):
        """How sure a rule is to be."""

        after: int = Field(
            default=3, ge=1, description="Cycles before the end of which it stops nothing."
        )
        patience: int = Field(
            default=1, ge=1, description="Cycles in succession after which it has to hold."
        )

    parameters: Parameters

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = self.Parameters() if parameters is None else parameters

    @abstractmethod
    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return why a run with this history may end, or nothing."""

    def stops(self, history: Sequence[CycleResult]) -> str:
        """Return why a run ends after the last of these cycles; empty where it goes on.

        Parameters
        ----------
        history : Sequence[CycleResult]
            All cycles from the first one on.
        """
        count, patience = len(history), self.parameters.patience
        if count < max(self.parameters.after, patience):
            return ""
        reasons = [self.reason(history[:end]) for end in range(count - patience + 1, count + 1)]
        return reasons[-1] if all(reasons) else ""
