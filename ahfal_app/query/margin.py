"""Margin sampling: the samples whose two most likely classes are nearest to each other.

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.pool import PoolView, Signal


class Margin(ScoringStrategy):
    """Samples with the smallest margin between the two most likely classes.

    The margin is p₁ - p₂, the difference of the two highest probabilities.
    """

    name: ClassVar[str] = "margin"
    paper: ClassVar[str] = (
        "Scheffer, Decomain and Wrobel, Active hidden Markov models for information "
        "extraction, IDA 2001"
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
        """Return 1 - margin of each prediction. Shape (N,)."""
        local = self.parameters.model == "local"
        logits_NC = pool.signal(Signal.LOCAL_LOGITS if local else Signal.GLOBAL_LOGITS)
        falling_NC = torch.softmax(logits_NC.double(), dim=1).sort(dim=1, descending=True).values
        # 1 - (p₁ - p₂) = 2 p₂ + p₃ + … + p_C, where nothing is lost of small probabilities.
        return falling_NC[:, 1:].sum(dim=1) + falling_NC[:, 1]
