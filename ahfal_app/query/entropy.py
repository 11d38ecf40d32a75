"""Entropy sampling: the samples whose predicted class is least certain.

Shape suffix: N samples in the pool.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from ahfal_app.query.core.base import QueryContext, ScoringStrategy
from ahfal_app.query.core.one_model import LOGITS, OneModelStrategy
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import entropy


class Entropy(OneModelStrategy, ScoringStrategy):
    """Samples with the highest entropy of one model's prediction."""

    name: ClassVar[str] = "entropy"
    paper: ClassVar[str] = (
        "Holub, Perona and Burl, Entropy-based active learning for object recognition, "
        "CVPR Workshops 2008"
    )
    signals: ClassVar[frozenset[Signal]] = LOGITS

    @property
    def comparable_scores(self) -> bool:
        """Whether it is the global model that is asked."""
        return self.parameters.model == "global"

    def score_range(self, num_classes: int) -> tuple[float, float]:
        """Return 0 and ln C."""
        return 0.0, math.log(num_classes)

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the entropy of each prediction, in nats. Shape (N,)."""
        return entropy(self.logits(pool))
