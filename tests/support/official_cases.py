"""Made-up outputs of a client's models, on which the authors' code and ours select."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.strategy_cases import context_for

from ahfal_app.query import PoolView, QueryContext, checked_select, make_strategy

CLASSES = 10


class Case:
    """A client's made-up outputs: classes of different size around random centres."""

    def __init__(self, seed: int, size: int = 200, width: int = 16, classes: int = CLASSES) -> None:
        self.random = np.random.default_rng(seed)
        self.size, self.width, self.classes = size, width, classes
        self.centres = self.random.normal(size=(classes, width))
        self.shares = self.random.dirichlet(np.ones(classes))
        self.seed = seed

    def embeddings(self, size: int) -> NDArray[np.float32]:
        return self.embeddings_of(self.random.choice(self.classes, size, p=self.shares))

    def embeddings_of(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        noise = self.random.normal(size=(len(labels), self.width)) / 2
        return np.maximum(self.centres[labels] + noise, 0).astype(np.float32)

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        noise = self.random.normal(size=(len(embeddings), self.classes))
        return (embeddings @ self.centres.T + noise).astype(np.float32)

    def context(self, budget: int, counts: Any = None, labels: Any = ()) -> QueryContext:
        changes = {} if counts is None else {"class_counts_C": np.asarray(counts, dtype=np.int64)}
        labels_L = np.asarray(labels, dtype=np.int64)
        return context_for(budget, self.classes, seed=self.seed, labels_L=labels_L, **changes)


def chosen(
    name: str, parameters: dict[str, Any], pool: PoolView, context: QueryContext
) -> list[int]:
    return [int(i) for i in checked_select(make_strategy(name, parameters), pool, context)]
