"""No rule: a run ends at its target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ahfal_app.parameters import Parameters as NoParameters
from ahfal_app.stopping.core.base import CycleResult, StoppingRule


class Never(StoppingRule):
    """A run ends when its labels are bought."""

    name: ClassVar[str] = "none"

    class Parameters(NoParameters):
        """None."""

    def stops(self, history: Sequence[CycleResult]) -> str:
        """Return nothing."""
        return ""

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return nothing."""
        return ""
