"""Strategies that ask one model, local or global: `strategy.model` chooses it.

Shape suffixes: N samples in the pool, L labelled samples, C classes, D embedding width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryStrategy
from ahfal_app.query.core.pool import PoolView, Signal

#: What a strategy declares to have one of these of the chosen model.
LOGITS = frozenset({Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS})
EMBEDDINGS = frozenset({Signal.LOCAL_EMBEDDINGS, Signal.GLOBAL_EMBEDDINGS})
LABELLED_EMBEDDINGS = frozenset(
    {Signal.LABELLED_LOCAL_EMBEDDINGS, Signal.LABELLED_GLOBAL_EMBEDDINGS}
)
LABELLED_LOGITS = frozenset({Signal.LABELLED_LOCAL_LOGITS, Signal.LABELLED_GLOBAL_LOGITS})
HEADS = frozenset({Signal.LOCAL_HEAD, Signal.GLOBAL_HEAD})


class OneModelStrategy(QueryStrategy):
    """A query strategy that asks one model; of the other no forward pass is made.

    A subclass declares `LOGITS`, `EMBEDDINGS`, `LABELLED_EMBEDDINGS`, `LABELLED_LOGITS` or `HEADS`
    among its signals, and derives its `Parameters` from these.
    """

    class Parameters(QueryStrategy.Parameters):
        """Which model is asked."""

        model: Literal["local", "global"] = Field(
            default="local",
            description="Whose outputs count: the client's own model's or the aggregated one's.",
        )

    parameters: Parameters

    def logits(self, pool: PoolView) -> Tensor:
        """Return the model's logits of the pool. Shape (N, C)."""
        return pool.signal(Signal.LOCAL_LOGITS if self._local else Signal.GLOBAL_LOGITS)

    def embeddings(self, pool: PoolView) -> Tensor:
        """Return the model's embeddings of the pool. Shape (N, D)."""
        return pool.signal(Signal.LOCAL_EMBEDDINGS if self._local else Signal.GLOBAL_EMBEDDINGS)

    def labelled_embeddings(self, pool: PoolView) -> Tensor:
        """Return the model's embeddings of the client's labelled set. Shape (L, D)."""
        return pool.signal(
            Signal.LABELLED_LOCAL_EMBEDDINGS if self._local else Signal.LABELLED_GLOBAL_EMBEDDINGS
        )

    def labelled_logits(self, pool: PoolView) -> Tensor:
        """Return the model's logits of the client's labelled set. Shape (L, C)."""
        return pool.signal(
            Signal.LABELLED_LOCAL_LOGITS if self._local else Signal.LABELLED_GLOBAL_LOGITS
        )

    def head(self, pool: PoolView) -> Tensor:
        """Return the model's last layer, the bias as the last column. Shape (C, D + 1)."""
        return pool.signal(Signal.LOCAL_HEAD if self._local else Signal.GLOBAL_HEAD)

    @property
    def _local(self) -> bool:
        return self.parameters.model == "local"
