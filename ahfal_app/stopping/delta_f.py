"""Ends a run whose F-measure is predicted to stay as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from ahfal_app.stop_set import Observation
from ahfal_app.stopping.core.base import CycleResult
from ahfal_app.stopping.core.predictions import PredictionRule


class DeltaF(PredictionRule):
    """A run ends when all of some cycles in succession have changed the F-measure by little.

    The change is 1 - F of one cycle's predictions of the stop set against the other's, of each
    class that is predicted at all; the original is for two classes, and of the positive one alone.
    """

    name: ClassVar[str] = "delta-f"
    paper: ClassVar[str] = (
        "Altschuler and Bloodgood, Stopping Active Learning based on Predicted Change of F Measure "
        "for Text Classification, ICSC 2019"
    )

    class Parameters(PredictionRule.Parameters):
        """How little, and of which classes."""

        delta_f: float = Field(
            default=0.05, gt=0, le=1, description="What each change of the window has to be below."
        )
        average: Literal["macro", "worst"] = Field(
            default="macro",
            description="Mean over the classes, or the class that changes most.",
        )
        window: int = Field(
            default=3, ge=1, description="Comparisons in succession that are looked at."
        )

    parameters: Parameters

    def value(self, observation: Observation) -> float | None:
        """Return the change."""
        worst = self.parameters.average == "worst"
        return observation.delta_f_worst if worst else observation.delta_f_macro

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return how much it changed at most, or nothing."""
        values = self.last_values(history, self.parameters.window)
        if not values or max(values) >= self.parameters.delta_f:
            return ""
        return (
            f"the F-measure ({self.parameters.average}) changes by {max(values):.4f} at most in "
            f"{len(values)} cycles, and less than {self.parameters.delta_f} is wanted"
        )
