"""Ends a run whose learning curve promises too little of the next labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from ahfal_app.learning_curve import LEAST_POINTS, Curve, fit_curve
from ahfal_app.stopping.core.base import CycleResult, StoppingRule


class Gain(StoppingRule):
    """A run ends when its learning curve promises less than a least gain of the next purchase.

    The gain is that of the fitted curve from the labels there are to those after another purchase
    as large as the last, or as `label-steps` has it, and the upper end of its interval counts: it
    stops late and not early.
    Labels of that purchase which are late are counted as bought, and a cycle without more labels
    than the one before decides nothing. A curve takes four cycles. Whoever stops by a test set has
    chosen by it, so that the final accuracy is a little too high.
    """

    name: ClassVar[str] = "gain"
    paper: ClassVar[str] = (
        "Figueroa et al., Predicting sample size required for classification performance, BMC "
        "Medical Informatics and Decision Making 2012 (the curve)"
    )

    class Parameters(StoppingRule.Parameters):
        """What a purchase has to bring."""

        least: float = Field(
            default=0.005, gt=0, lt=1, description="Test accuracy that a purchase has to add."
        )

    parameters: Parameters

    def reason(self, history: Sequence[CycleResult]) -> str:
        """Return what the next purchase would add, or nothing."""
        if len({each.labels for each in history}) < LEAST_POINTS:
            return ""
        purchase = _purchase(*history[-2:])
        if purchase <= 0:
            return ""
        purchase = round(purchase * history[-1].growth)
        labels = [each.labels for each in history]
        now, following = labels[-1], labels[-1] + purchase

        def gain(curve: Curve) -> float:
            return curve(following) - curve(now)

        found = fit_curve(labels, [each.accuracy for each in history]).range_of(gain)
        if found.high >= self.parameters.least:
            return ""
        return (
            f"{purchase} more labels promise {found.point:.4f} of test accuracy, at most "
            f"{found.high:.4f}, and {self.parameters.least} is wanted"
        )


def _purchase(before: CycleResult, last: CycleResult) -> int:
    """Return how large the last purchase was; 0 or less where it has brought nothing as yet."""
    grown = last.labels - before.labels
    if grown <= 0 or last.asked is None:
        return grown
    # What came late of earlier purchases is no part of it, nor is what is held out for testing.
    return last.asked if last.awaited else min(grown, last.asked)
