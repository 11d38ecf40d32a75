"""MultiKrum."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower
from pydantic import Field

from ahfal_app.server.aggregation.core.base import COMMON, AmongMalicious


class MultiKrum(AmongMalicious):
    """The mean of the models that lie nearest to their neighbours."""

    name = "multikrum"
    paper = (
        "Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries: "
        "Byzantine tolerant gradient descent, NeurIPS 2017"
    )
    clients_per_malicious = 2

    class Parameters(AmongMalicious.Parameters):
        """Its settings."""

        averaged_clients: int = Field(
            default=0,
            ge=0,
            description="How many clients' models are averaged; 0: all but the malicious.",
        )

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return _MultiKrum(self.parameters.malicious_clients, self.parameters.averaged_clients)

    def shortage(self, clients: int) -> str | None:
        """Return why so many clients are too few, or None."""
        malicious, averaged = self.parameters.malicious_clients, self.parameters.averaged_clients
        problem = super().shortage(clients)
        if problem is None and averaged > clients - malicious:
            problem = (
                f"aggregation.averaged-clients={averaged}: allowed is at most "
                f"{clients - malicious} with aggregation.malicious-clients={malicious} and "
                f"{clients} clients in a round"
            )
        return problem


class _MultiKrum(flower.MultiKrum):
    """Flower's, which averages all but the malicious unless it is told how many."""

    def __init__(self, malicious: int, averaged: int) -> None:
        super().__init__(num_malicious_nodes=malicious, **COMMON)
        self._wanted = averaged

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate what is left after the selection."""
        replies = list(replies)
        self.num_nodes_to_select = self._wanted or len(replies) - self.num_malicious_nodes
        return super().aggregate_train(server_round, replies)
