"""Norm clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray
from pydantic import Field

from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.server.aggregation.core.base import COMMON, AggregationMethod, too_few_for_a_median


class NormClipping(AggregationMethod):
    """The mean of the clients' moves, none of them longer than the median one."""

    name = "norm-clipping"
    paper = (
        "Sun, Kairouz, Suresh and McMahan, Can you really backdoor federated learning?, 2019 "
        "(arXiv:1911.07963)"
    )
    in_float64 = True

    class Parameters(AggregationMethod.Parameters):
        """Its settings."""

        largest_norm: float = Field(
            default=0.0,
            ge=0,
            le=1e6,
            description="Length of the longest move that counts in full; 0: the round's median.",
        )

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return a strategy in Flower's terms."""
        return _NormClipping(self.parameters.largest_norm, **COMMON)

    def shortage(self, clients: int) -> str | None:
        """Return that the median length would be anyone's, or None."""
        if self.parameters.largest_norm:
            return None
        return too_few_for_a_median(self.name, clients)


class _NormClipping(flower.FedAvg):
    """Clips each client's move from the global model, and averages what is left.

    Clients count alike, whatever number of samples they tell.
    """

    def __init__(self, largest_norm: float, **common: Any) -> None:
        super().__init__(**common)
        self._largest_norm = largest_norm
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
        current = {name: array.numpy() for name, array in self._current.items()}
        moves = [
            {name: record[name].numpy() - value for name, value in current.items()}
            for record in (reply.content.array_records[ARRAYS_KEY] for reply in replies)
        ]
        norms_M = np.array([_norm(move) for move in moves])
        largest = self._largest_norm or float(np.median(norms_M))
        # A move of length 0 is not clipped, whatever the bound.
        factors_M = np.minimum(1.0, largest / np.maximum(norms_M, np.finfo(np.float64).tiny))
        averaged = {}
        for name, value in current.items():
            clipped = (f * move[name] for f, move in zip(factors_M, moves, strict=True))
            averaged[name] = Array(np.asarray(value + sum(clipped) / len(moves)))
        return ArrayRecord(averaged), MetricRecord()


def _norm(move: dict[str, NDArray[np.floating]]) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(value))) for value in move.values())))
