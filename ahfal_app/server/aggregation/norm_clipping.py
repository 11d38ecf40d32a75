"""Norm clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from ahfal_app.messages.fields import arrays_of
from ahfal_app.server.aggregation.core.base import COMMON, AggregationMethod, too_few_for_a_median


class NormClipping(AggregationMethod):
    """The mean of the clients' moves, each array's no longer than the median one."""

    name = "norm-clipping"
    paper = (
        "Sun, Kairouz, Suresh and McMahan, Can you really backdoor federated learning?, 2019 "
        "(arXiv:1911.07963)"
    )
    in_float64 = True

    def make(self) -> flower.FedAvg:
        """Return a strategy in Flower's terms."""
        return _NormClipping(**COMMON)

    def shortage(self, clients: int) -> str | None:
        """Return that the median length would be anyone's, or None."""
        return too_few_for_a_median(self.name, clients)


class _NormClipping(flower.FedAvg):
    """Clips each client's move from the global model, and averages what is left.

    Array by array: running variances move much further than weights, and a bound for the model as a
    whole would let weights go as far. Clients count alike, whatever number of samples they tell.
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self._current = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Take note of the global model from which clients move."""
        self._current = arrays
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the global model, moved by the mean of the clipped moves."""
        records = [arrays_of(reply.content) for reply in replies]
        averaged = {}
        for name, array in self._current.items():
            current = array.numpy()
            moves = np.stack([record[name].numpy() - current for record in records])
            averaged[name] = Array(np.asarray(current + _clipped(moves).mean(axis=0)))
        return ArrayRecord(averaged), MetricRecord()


def _clipped(moves_M: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return moves of one array, shape (M, …), of which none is longer than the median one."""
    norms_M = np.sqrt(np.square(moves_M).reshape(len(moves_M), -1).sum(axis=1))
    # A move of length 0 is not clipped, whatever the bound.
    factors_M = np.minimum(1.0, np.median(norms_M) / np.maximum(norms_M, np.finfo(np.float64).tiny))
    clipped_M: NDArray[np.floating] = moves_M * factors_M.reshape(-1, *[1] * (moves_M.ndim - 1))
    return clipped_M
