"""FedYogi."""

from __future__ import annotations

from flwr.serverapp import strategy as flower
from pydantic import Field

from ahfal_app.server.aggregation.core.base import COMMON, ServerOptimiser


class FedYogi(ServerOptimiser):
    """Yogi on the server."""

    name = "fedyogi"
    paper = "Reddi et al., Adaptive federated optimization, ICLR 2021"

    class Parameters(ServerOptimiser.Parameters):
        """Its settings."""

        learning_rate: float = Field(
            default=0.01,
            gt=0,
            le=100,
            description="Server's step.",
        )
        momentum: float = Field(
            default=0.9,
            ge=0,
            lt=1,
            description="Decay of the first moment.",
        )
        second_moment: float = Field(
            default=0.99,
            ge=0,
            lt=1,
            description="Decay of the second moment.",
        )
        adaptivity: float = Field(
            default=1e-3,
            ge=1e-12,
            le=1e3,
            description="Added to the second moment's root; small adapts more.",
        )

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
