"""Ends a run whose model is sure of what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ahfal_app.stop_set import Observation
from ahfal_app.stopping.core.base import CycleResult
from ahfal_app.stopping.core.predictions import PredictionRule


class Uncertainty(PredictionRule):
    """A run ends when the mean entropy of the stop set's predictions, divided by ln C, is small.

    It falls as a model becomes too sure of itself as well as by what it learns.
    """

    name: ClassVar[str] = "uncertainty"
    paper: ClassVar[str] = (
        "Zhu, Wang and Hovy, Multi-Criteria-based Strategy to Stop Active Learning for Data "
        "Annotation, Coling 2008 (overall uncertainty)"
    )
    compares: ClassVar[bool] = False

    class Parameters(PredictionRule.Parameters):
        """How sure it has to be."""

        uncertainty: float = Field(
            default=0.05,
            gt=0,
            le=1,
            description="What the mean entropy has to be below, from 0 to 1.",
        )

    parameters: Parameters

    def value(self, observation: Observation) -> float | None:
        """Return the mean entropy."""
        return observation.uncertainty

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return how uncertain it is, or nothing."""
        values = self.last_values(history)
        if not values or values[0] >= self.parameters.uncertainty:
            return ""
        return (
            f"the mean entropy of its predictions is {values[0]:.4f} of the largest one, and less "
            f"than {self.parameters.uncertainty} is wanted"
        )
