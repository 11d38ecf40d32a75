"""Classes arrive one group after the other, as tasks in class-incremental learning.

Shape suffixes: N samples of a client, C classes, T cycles, K cycles of a task, M samples of a task.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ahfal_app.arrivals.core.amounts import Amounts
from ahfal_app.arrivals.core.base import NEVER, ArrivalOrder, Stock, in_batches
from ahfal_app.seeds import numpy_generator


class ClassIncremental(ArrivalOrder):
    """Classes come in groups, one after the other; a client without a group gets nothing then."""

    name: ClassVar[str] = "class-incremental"
    sets_shares: ClassVar[bool] = True
    leaves_over: ClassVar[bool] = True

    class Parameters(ArrivalOrder.Parameters):
        """How many groups, and whose."""

        groups: int = Field(default=5, ge=2, description="Groups of classes, of equal size.")
        classes: Literal["shared", "own"] = Field(
            default="shared",
            description="All clients see the groups in one order, or each in its own.",
        )

    parameters: Parameters

    @property
    def is_by_length(self) -> bool:
        """Whether what has arrived depends on how many cycles there will be: it does."""
        return True

    def problems(self, num_classes: int, num_cycles: int) -> list[str]:
        """Return a line where there are fewer classes or cycles than groups."""
        groups, most = self.parameters.groups, min(num_classes, num_cycles)
        if groups <= most:
            return []
        return [
            f"arrival-order.groups={groups}: allowed is at most {most} with {num_classes} classes "
            f"and {num_cycles} cycles"
        ]

    def arrival_cycles(self, stock: Stock, amounts: Amounts) -> NDArray[np.int64]:
        """Return the cycles in which each task's samples come, in the client's keyed order."""
        client = stock.client if self.parameters.classes == "own" else None
        groups_C = group_of_classes(
            stock.seed, stock.num_classes, self.parameters.groups, client=client
        )
        return by_tasks(stock, amounts, groups_C, self.parameters.groups)

    def tasks(self, seed: int, num_classes: int) -> NDArray[np.int64] | None:
        """Return the task of each class, where all clients have the same."""
        if self.parameters.classes == "own":
            return None
        return group_of_classes(seed, num_classes, self.parameters.groups)


def group_of_classes(
    seed: int, num_classes: int, groups: int, client: int | None = None
) -> NDArray[np.int64]:
    """Return the group of each class: ⌊rank · G / C⌋ of a random ranking. Shape (C,).

    Parameters
    ----------
    seed, num_classes, groups : int
        The run's seed, C and G.
    client : int | None
        Whose ranking it is; None: that of all.
    """
    key = () if client is None else (client,)
    ranking_C = numpy_generator(seed, "arrivals.classes", *key).permutation(num_classes)
    groups_C = np.empty(num_classes, np.int64)
    groups_C[ranking_C] = np.arange(num_classes) * groups // num_classes
    return groups_C


def by_tasks(
    stock: Stock, amounts: Amounts, groups_C: NDArray[np.int64], groups: int
) -> NDArray[np.int64]:
    """Return the cycle in which each sample arrives. Shape (N,).

    Cycle t belongs to task ⌊t G / T⌋. With `share` the samples of a task come in equal parts over
    its cycles; with `count` so many in each, and what is left at the task's end never comes.
    """
    task_T = np.arange(stock.num_cycles) * groups // stock.num_cycles
    group_N = groups_C[stock.classes_N]
    found_N = np.full(len(group_N), NEVER, np.int64)
    for group in range(groups):
        cycles_K = np.flatnonzero(task_T == group)
        # In the client's keyed order, whichever group comes when.
        places_M = stock.order_N[group_N[stock.order_N] == group]
        by_K = _by_cycles(cycles_K, len(places_M), amounts)
        local_M = in_batches(by_K, np.arange(len(places_M)))
        found_N[places_M] = np.where(local_M == NEVER, NEVER, local_M + cycles_K[0])
    return found_N


def _by_cycles(cycles_K: NDArray[np.int64], size: int, amounts: Amounts) -> NDArray[np.int64]:
    """Return how many of a task's samples have come by each of its cycles. Shape (K,)."""
    if amounts.kind == "share":
        parts = [-(-(k + 1) * size // len(cycles_K)) for k in range(len(cycles_K))]
        return np.array(parts, np.int64)
    new = [math.ceil(amounts.rate if cycle else amounts.start) for cycle in cycles_K.tolist()]
    by_K: NDArray[np.int64] = np.minimum(size, np.cumsum(new))
    return by_K
