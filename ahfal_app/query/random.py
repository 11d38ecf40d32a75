"""Random sampling: the baseline that every strategy has to beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ahfal_app.query.core.base import QueryContext, QueryStrategy
from ahfal_app.query.core.pool import PoolView, Signal


class Random(QueryStrategy):
    """Samples uniformly at random, without replacement."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "Settles, Active learning literature survey, 2009"
    signals: ClassVar[frozenset[Signal]] = frozenset()
    needs_labels: ClassVar[bool] = False

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return a uniform draw without replacement."""
        return context.generator(self.name).choice(pool.ids_N, context.budget, replace=False)
