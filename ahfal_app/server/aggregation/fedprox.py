"""FedProx."""

from __future__ import annotations

from flwr.serverapp import strategy as flower
from pydantic import Field

from ahfal_app.server.aggregation.core.base import COMMON, AggregationMethod


class FedProx(AggregationMethod):
    """FedAvg, with the clients held near the global model while they train."""

    name = "fedprox"
    paper = "Li et al., Federated optimization in heterogeneous networks, MLSys 2020"
    by_mean = True

    class Parameters(AggregationMethod.Parameters):
        """Its settings."""

        proximal_mu: float = Field(
            default=0.01,
            gt=0,
            le=1e3,
            description="Weight of the squared distance to the global model in local training.",
        )

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return flower.FedProx(proximal_mu=self.proximal_mu, **COMMON)

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term in the clients' loss."""
        return self.parameters.proximal_mu
