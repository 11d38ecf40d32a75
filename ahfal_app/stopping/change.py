"""Ends a run whose predictions no longer change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ahfal_app.stop_set import Observation
from ahfal_app.stopping.core.base import CycleResult
from ahfal_app.stopping.core.predictions import PredictionRule


class Change(PredictionRule):
    """A run ends when the predicted classes of the stop set stay as they were a cycle before.

    With the method's own share of 0 it ends hardly any run with a stop set of thousands.
    """

    name: ClassVar[str] = "change"
    paper: ClassVar[str] = (
        "Zhu, Wang and Hovy, Multi-Criteria-based Strategy to Stop Active Learning for Data "
        "Annotation, Coling 2008 (classification change)"
    )

    class Parameters(PredictionRule.Parameters):
        """How much may change."""

        changed: float = Field(
            default=0.0, ge=0, lt=1, description="Largest share whose predicted class may change."
        )

    parameters: Parameters

    def value(self, observation: Observation) -> float | None:
        """Return the share that changed."""
        return observation.changed

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return how many changed, or nothing."""
        values = self.last_values(history)
        if not values or values[0] > self.parameters.changed:
            return ""
        return f"{values[0]:.4f} of the predictions changed, at most {self.parameters.changed} may"
