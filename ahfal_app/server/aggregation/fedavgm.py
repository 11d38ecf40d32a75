"""FedAvgM."""

from __future__ import annotations

from flwr.serverapp import strategy as flower
from pydantic import Field

from ahfal_app.server.aggregation.core.base import (
    COMMON,
    LearningRate,
    ServerOptimiser,
)


class FedAvgM(ServerOptimiser):
    """FedAvg with momentum on the server."""

    name = "fedavgm"
    paper = (
        "Hsu, Qi and Brown, Measuring the effects of non-identical data distribution for "
        "federated visual classification, 2019"
    )

    class Parameters(ServerOptimiser.Parameters):
        """Its settings."""

        learning_rate: LearningRate = 1.0
        momentum: float = Field(
            default=0.9,
            ge=0,
            lt=1,
            description="Momentum of the server.",
        )

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        values = self.parameters
        return flower.FedAvgM(
            server_learning_rate=values.learning_rate, server_momentum=values.momentum, **COMMON
        )
