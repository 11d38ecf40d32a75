"""Krum."""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from ahfal_app.server.aggregation.core.base import COMMON, AmongMalicious


class Krum(AmongMalicious):
    """The one model that lies nearest to its neighbours."""

    name = "krum"
    paper = (
        "Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: "
        "Byzantine tolerant gradient descent, NeurIPS 2017"
    )
    clients_per_malicious = 2

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return flower.Krum(num_malicious_nodes=self.parameters.malicious_clients, **COMMON)
