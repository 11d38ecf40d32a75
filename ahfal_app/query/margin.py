"""Margin sampling: the samples whose two most likely classes are nearest to each other.

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ahfal_app.query.core.base import QueryContext, ScoringStrategy
from ahfal_app.query.core.one_model import LOGITS, OneModelStrategy
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import margin_doubt


class Margin(OneModelStrategy, ScoringStrategy):
    """Samples with the smallest margin between the two most likely classes.

    The margin is p₁ - p₂, the difference of the two highest probabilities.
    """

    name: ClassVar[str] = "margin"
    paper: ClassVar[str] = (
        "Scheffer, Decomain and Wrobel, Active hidden Markov models for information "
        "extraction, IDA 2001"
    )
    signals: ClassVar[frozenset[Signal]] = LOGITS

    @property
    def comparable_scores(self) -> bool:
        """Whether it is the global model that is asked."""
        return self.parameters.model == "global"

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return 1 - margin of each prediction. Shape (N,)."""
        return margin_doubt(self.logits(pool))
