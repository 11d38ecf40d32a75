"""Entropy sampling: the samples whose predicted class is least certain.

Shape suffix: N samples in the pool.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import entropy


class Entropy(ScoringStrategy):
    """Samples with the highest entropy of one model's prediction."""

    name: ClassVar[str] = "entropy"
    paper: ClassVar[str] = (
        "Holub, Perona and Burl, Entropy-based active learning for object recognition, "
        "CVPR Workshops 2008"
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
        """Return the entropy of each prediction, in nats. Shape (N,)."""
        local = self.parameters.model == "local"
        return entropy(pool.signal(Signal.LOCAL_LOGITS if local else Signal.GLOBAL_LOGITS))
