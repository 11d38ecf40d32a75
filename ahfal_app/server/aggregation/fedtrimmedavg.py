"""FedTrimmedAvg."""

from __future__ import annotations

import math

from flwr.serverapp import strategy as flower
from pydantic import Field

from ahfal_app.server.aggregation.core.base import (
    COMMON,
    FEWEST_FOR_A_MEDIAN,
    AggregationMethod,
)


class FedTrimmedAvg(AggregationMethod):
    """The mean of each value over the clients, without the largest and the smallest."""

    name = "fedtrimmedavg"
    paper = (
        "Yin, Chen, Ramchandran and Bartlett, Byzantine-robust distributed learning: towards "
        "optimal statistical rates, ICML 2018"
    )
    in_float64 = True

    class Parameters(AggregationMethod.Parameters):
        """Its settings."""

        trimmed_share: float = Field(
            default=0.2,
            gt=0,
            lt=0.5,
            description="Share of the clients that is cut off at each end of every value.",
        )

    parameters: Parameters

    def make(self) -> flower.FedAvg:
        """Return Flower's strategy."""
        return flower.FedTrimmedAvg(beta=self.parameters.trimmed_share, **COMMON)

    def shortage(self, clients: int) -> str | None:
        """Return that nothing would be cut off, or None."""
        share = self.parameters.trimmed_share
        # The product and the rounding are Flower's, so that both agree on every float.
        if int(share * clients) >= 1:
            return None
        return (
            f"aggregation.trimmed-share={share!r}: aggregation='fedtrimmedavg' must trim at least "
            f"1 client at each end; this share of {clients} clients in a round is less"
            + (f"; {_share_of_one(clients)} is enough" if clients >= FEWEST_FOR_A_MEDIAN else "")
        )


def _share_of_one(clients: int) -> float:
    """Return a share, in hundredths, that trims one of so many clients at each end."""
    return math.ceil(100 / clients) / 100
