"""What rules share that go by predictions of the clients' stop set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from ahfal_app.stop_set import Observation
from ahfal_app.stopping.core.base import CycleResult, StoppingRule


class PredictionRule(StoppingRule):
    """A rule that goes by a value of the stop set's predictions.

    It decides nothing by a cycle in which fewer than half of the stop set stand behind the value,
    nor by a comparison of cycles between which no labels came: that they agree tells nothing.
    """

    observes: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    """Whether its value is of predictions that are compared with those of the cycle before."""

    @abstractmethod
    def value(self, observation: Observation) -> float | None:
        """Return what the rule goes by; None where it is not known."""

    def last_values(self, history: Sequence[CycleResult], window: int = 1) -> list[float]:
        """Return the values of the last cycles; none where one of them is missing."""
        if self.compares and not _grows(history[-window - 1 :]):
            return []
        values = [self._sound_value(each.observed) for each in history[-window:]]
        known = [value for value in values if value is not None]
        return known if len(known) == window else []

    def _sound_value(self, observation: Observation | None) -> float | None:
        if observation is None:
            return None
        behind = observation.compared if self.compares else observation.predicted
        return self.value(observation) if 2 * behind >= observation.drawn else None


def _grows(history: Sequence[CycleResult]) -> bool:
    """Return whether each cycle was trained on more labels than the one before."""
    return all(before.labels < after.labels for before, after in pairwise(history))
