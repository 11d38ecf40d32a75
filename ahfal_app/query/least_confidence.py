"""Least-confidence sampling: the samples whose most likely class is least likely.

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.pool import PoolView, Signal


class LeastConfidence(ScoringStrategy):
    """Samples whose most likely class has the lowest probability.

    The paper, on two classes, takes what is nearest to a probability of one half; for more
    classes the highest probability counts, as has become usual.
    """

    name: ClassVar[str] = "least-confidence"
    paper: ClassVar[str] = (
        "Lewis and Gale, A sequential algorithm for training text classifiers, SIGIR 1994"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS})

    class Parameters(QueryStrategy.Parameters):
        """Which model predicts."""

        model: Literal["local", "global"] = Field(
            default="local",
            description="Whose prediction counts: the client's own model or the aggregated one.",
        )

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return 1 - highest probability of each prediction. Shape (N,)."""
        local = self.parameters.model == "local"
        logits_NC = pool.signal(Signal.LOCAL_LOGITS if local else Signal.GLOBAL_LOGITS)
        falling_NC = torch.softmax(logits_NC.double(), dim=1).sort(dim=1, descending=True).values
        # The sum of the others: 1 - p₁ would round confident predictions to ties.
        return falling_NC[:, 1:].sum(dim=1)
