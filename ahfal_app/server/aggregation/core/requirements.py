"""Aggregations by name, and how many clients one needs in a round.

Asked before a run, when the clients have joined, and of every round's usable answers: with fewer
an aggregation promises nothing.
"""

from __future__ import annotations

from ahfal_app.config import Settings, share_of
from ahfal_app.plugins import AGGREGATIONS
from ahfal_app.server.aggregation.core.base import AggregationMethod


def make_aggregation(settings: Settings) -> AggregationMethod:
    """Return the aggregation that is set, with its parameters.

    Raises
    ------
    UnknownComponent
        No aggregation has this name.
    """
    method: type[AggregationMethod] = AGGREGATIONS.component(settings.aggregation)
    values = settings.parameters_of(AGGREGATIONS.setting)
    return method(method.Parameters.model_validate(values))


def clients_in_a_round(settings: Settings) -> int:
    """Return how many of `num-clients` clients, which must be known, train in a round."""
    return share_of(settings.client_fraction, settings.num_clients)


def shortage(settings: Settings, clients: int) -> str | None:
    """Return why so many clients are too few for the aggregation as it is set, or None.

    Parameters
    ----------
    settings : Settings
        The aggregation and its parameters.
    clients : int
        Clients that train, or have trained, in a round.
    """
    return make_aggregation(settings).shortage(clients)
