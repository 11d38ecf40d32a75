"""Ends a run whose predictions have become stable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ahfal_app.stop_set import Observation
from ahfal_app.stopping.core.base import CycleResult
from ahfal_app.stopping.core.predictions import PredictionRule


class Kappa(PredictionRule):
    """A run ends when predictions agree from cycle to cycle, by the mean of Cohen's kappa.

    Over the stop set of all clients. A kappa of T bounds the change of the F-measure in one step by
    4 (1 - T) / T (Bloodgood and Grothendieck, 2015), and not what all later steps would bring.
    """

    name: ClassVar[str] = "kappa"
    paper: ClassVar[str] = (
        "Bloodgood and Vijay-Shanker, A Method for Stopping Active Learning Based on Stabilizing "
        "Predictions and the Need for User-Adjustable Stopping, CoNLL 2009"
    )

    class Parameters(PredictionRule.Parameters):
        """How stable they have to be."""

        kappa: float = Field(
            default=0.99, gt=0, le=1, description="Least mean of kappa over the window."
        )
        window: int = Field(
            default=3, ge=1, description="Comparisons in succession that are looked at."
        )

    parameters: Parameters

    def value(self, observation: Observation) -> float | None:
        """Return kappa."""
        return observation.kappa

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return how far they agree, or nothing."""
        values = self.last_values(history, self.parameters.window)
        if not values:
            return ""
        mean = math.fsum(values) / len(values)
        if mean < self.parameters.kappa:
            return ""
        return (
            f"the predictions agree with kappa {mean:.4f} in the mean of {len(values)} cycles, and "
            f"{self.parameters.kappa} is enough"
        )
