"""FedYogi."""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from ahfal_app.server.aggregation.core.base import (
    COMMON,
    Adaptivity,
    FirstMoment,
    LearningRate,
    SecondMoment,
    ServerOptimiser,
)


class FedYogi(ServerOptimiser):
    """Yogi on the server."""

    name = "fedyogi"
    paper = "Reddi et al., Adaptive federated optimization, ICLR 2021"

    class Parameters(ServerOptimiser.Parameters):
        """Its settings."""

        learning_rate: LearningRate = 0.01
        momentum: FirstMoment = 0.9
        second_moment: SecondMoment = 0.99
        adaptivity: Adaptivity = 1e-3

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        values = self.parameters
        return flower.FedYogi(
            eta=values.learning_rate,
            beta_1=values.momentum,
            beta_2=values.second_moment,
            tau=values.adaptivity,
            **COMMON,
        )
