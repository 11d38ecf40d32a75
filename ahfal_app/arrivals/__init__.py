"""Which of a client's samples are there when: how many arrive, in which order, how they look.

Each module of this package is an order of arrival; another package registers one in the entry-point
group `ahfal_app.arrival_orders`. All of it is a function of the seed, the client and the cycle:
nothing is carried from one cycle to the next, so that a run that is resumed, or computed by another
engine, sees the same samples arrive.
"""

from __future__ import annotations

from ahfal_app.arrivals.core.amounts import Amounts
from ahfal_app.arrivals.core.base import ArrivalOrder, Stock, in_batches, make_order
from ahfal_app.arrivals.core.schedule import NEVER_ASKED, Arrivals, ClientArrivals, make_arrivals

__all__ = [
    "NEVER_ASKED",
    "Amounts",
    "ArrivalOrder",
    "Arrivals",
    "ClientArrivals",
    "Stock",
    "in_batches",
    "make_arrivals",
    "make_order",
]
