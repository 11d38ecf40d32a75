"""FedAvg."""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from ahfal_app.server.aggregation.core.base import COMMON, AggregationMethod


class FedAvg(AggregationMethod):
    """The mean of the models, weighted by labelled samples."""

    name = "fedavg"
    paper = (
        "McMahan et al., Communication-efficient learning of deep networks from decentralized "
        "data, AISTATS 2017"
    )
    by_mean = True

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return flower.FedAvg(**COMMON)
