"""Samples arrive in random order."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ahfal_app.arrivals.core.amounts import Amounts
from ahfal_app.arrivals.core.base import ArrivalOrder, Stock, in_batches


class RandomOrder(ArrivalOrder):
    """In random order: what arrives is like what the client has."""

    name: ClassVar[str] = "random"
    is_uniform: ClassVar[bool] = True

    def arrival_cycles(self, stock: Stock, amounts: Amounts) -> NDArray[np.int64]:
        """Return the cycles in which places of the client's keyed order come up. Shape (N,)."""
        return in_batches(stock.cumulative(amounts), stock.order_N)
