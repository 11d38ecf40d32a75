"""Ends a run whose model is good enough, as far as its test set can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ahfal_app.stopping.core.base import CycleResult, StoppingRule


class Target(StoppingRule):
    """A run ends when the lower bound of its test accuracy has reached a target.

    The bound is the lower end of Wilson's interval: with few test images it lies far below what
    was measured. Whoever stops by a test set has chosen by it, so that the final accuracy is a
    little too high.
    """

    name: ClassVar[str] = "target"
    paper: ClassVar[str] = "Wilson, Probable inference, JASA 1927 (the interval)"

    class Parameters(StoppingRule.Parameters):
        """What is wanted, and how surely."""

        accuracy: float = Field(
            default=0.9, gt=0, lt=1, description="Test accuracy that is wanted, as a share."
        )
        confidence: float = Field(
            default=0.95,
            gt=0,
            lt=1,
            description="Of the two-sided interval around the measured one.",
        )

    parameters: Parameters

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return what was reached, or nothing."""
        # All of SciPy's statistics takes longer to import than many a command takes.
        from scipy.stats import binomtest

        last, wanted = history[-1], self.parameters.accuracy
        interval = binomtest(last.right, last.tests).proportion_ci(
            self.parameters.confidence, method="wilson"
        )
        if interval.low < wanted:
            return ""
        return f"test accuracy {last.accuracy:.4f}, at least {interval.low:.4f}, reaches {wanted}"
