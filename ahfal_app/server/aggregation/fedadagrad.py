"""FedAdagrad."""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from ahfal_app.server.aggregation.core.base import (
    COMMON,
    Adaptivity,
    LearningRate,
    ServerOptimiser,
)


class FedAdagrad(ServerOptimiser):
    """Adagrad on the server."""

    name = "fedadagrad"
    paper = "Reddi et al., Adaptive federated optimization, ICLR 2021"

    class Parameters(ServerOptimiser.Parameters):
        """Its settings."""

        learning_rate: LearningRate = 0.1
        adaptivity: Adaptivity = 1e-3

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        values = self.parameters
        return flower.FedAdagrad(eta=values.learning_rate, tau=values.adaptivity, **COMMON)
