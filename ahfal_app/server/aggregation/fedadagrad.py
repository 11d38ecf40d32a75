"""FedAdagrad."""

from __future__ import annotations

from flwr.serverapp import strategy as flower
from pydantic import Field

from ahfal_app.server.aggregation.core.base import COMMON, ServerOptimiser


class FedAdagrad(ServerOptimiser):
    """Adagrad on the server."""

    name = "fedadagrad"
    paper = "Reddi et al., Adaptive federated optimization, ICLR 2021"

    class Parameters(ServerOptimiser.Parameters):
        """Its settings."""

        learning_rate: float = Field(
            default=0.1,
            gt=0,
            le=100,
            description="Server's step.",
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
        return flower.FedAdagrad(eta=values.learning_rate, tau=values.adaptivity, **COMMON)
