"""Bulyan."""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from ahfal_app.server.aggregation.core.base import COMMON, AmongMalicious


class Bulyan(AmongMalicious):
    """Krum, repeated, then a trimmed mean of what it chose."""

    name = "bulyan"
    paper = (
        "El Mhamdi, Guerraoui and Rouault, The hidden vulnerability of distributed learning in "
        "Byzantium, ICML 2018"
    )
    clients_per_malicious = 4

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return flower.Bulyan(num_malicious_nodes=self.parameters.malicious_clients, **COMMON)
