"""Least-confidence sampling: the samples whose most likely class is least likely.

Shape suffix: N samples in the pool.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ahfal_app.query.core.base import QueryContext, ScoringStrategy
from ahfal_app.query.core.one_model import LOGITS, OneModelStrategy
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import other_probabilities


class LeastConfidence(OneModelStrategy, ScoringStrategy):
    """Samples whose most likely class has the lowest probability.

    The paper, on two classes, takes what is nearest to a probability of one half; for more
    classes the highest probability counts, as has become usual.
    """

    name: ClassVar[str] = "least-confidence"
    paper: ClassVar[str] = (
        "Lewis and Gale, A sequential algorithm for training text classifiers, SIGIR 1994"
    )
    signals: ClassVar[frozenset[Signal]] = LOGITS

    @property
    def comparable_scores(self) -> bool:
        """Whether it is the global model that is asked."""
        return self.parameters.model == "global"

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return 1 - highest probability of each prediction. Shape (N,)."""
        return other_probabilities(self.logits(pool)).sum(dim=1)
