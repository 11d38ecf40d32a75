"""FedMedian."""

from __future__ import annotations

from flwr.serverapp import strategy as flower

from ahfal_app.server.aggregation.core.base import COMMON, AggregationMethod, too_few_for_a_median


class FedMedian(AggregationMethod):
    """The median of each value over the clients."""

    name = "fedmedian"
    paper = (
        "Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards "
        "optimal statistical rates, ICML 2018"
    )
    in_float64 = True

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return flower.FedMedian(**COMMON)

    def shortage(self, clients: int) -> str | None:
        """Return that there would be no majority, or None."""
        return too_few_for_a_median(self.name, clients)
