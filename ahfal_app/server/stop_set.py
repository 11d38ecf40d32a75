"""How the server learns what the clients' models predict of the federation's stop set.

Shape suffix: E entries of sums (`ahfal_app.stop_set`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.errors import SecureAggregationFailed
from ahfal_app.messages.answers import predictions_from_metrics
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.messages.protocol import PREDICTIONS, Order
from ahfal_app.privacy.sessions import Topic
from ahfal_app.server.federation import Federation, Records, ask
from ahfal_app.server.secure_sum import secure_sum
from ahfal_app.stop_set import Observation, check_sums, observe, sums_size
from ahfal_app.stopping import make_rules

_PHASE = "stop-set"


@dataclass(frozen=True)
class Observed:
    """What came of a cycle's predictions of the stop set.

    Attributes
    ----------
    values : Observation | None
        What they say; None where nobody asked, or no sum of them can be had.
    failures : dict[int, str]
        Clients that are not in it, and why.
    seconds : dict[str, float]
        Wall time; empty where nobody asked.
    """

    values: Observation | None = None
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def observes_stop_set(settings: Settings) -> bool:
    """Tell whether clients are asked for predictions of the stop set."""
    if settings.stop_set == "always":
        return True
    rules = make_rules(settings.stopping, settings.parameters_of("stopping"))
    return any(rule.observes for rule in rules)


def observe_stop_set(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    num_classes: int,
    samples: Mapping[int, int],
    note: Callable[[str], None],
) -> Observed:
    """Have all clients predict their parts of the stop set, and return what that says.

    A client that fails is missing from the sums of this cycle and of the next one's comparison; it
    stops no run.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    arrays : ArrayRecord
        The global model f^G.
    num_classes : int
        Number of classes.
    samples : Mapping[int, int]
        How many samples each client has, of those that joined.
    note : Callable
        Called with what people should know.
    """
    settings = order.settings
    if not observes_stop_set(settings):
        return Observed()
    share, clients = settings.stop_set_share, range(settings.num_clients)
    drawn = {client: min(share, samples.get(client, share)) for client in clients}
    # A site's folder may have grown between its joining and its first prediction.
    most = dict.fromkeys(clients, share) if settings.has_sites else drawn
    start = time.monotonic()
    take = _secure if settings.uses_secure_aggregation else _plain
    try:
        sums_E, failures = take(federation, order, {ARRAYS_KEY: arrays}, num_classes, most)
    except SecureAggregationFailed as error:
        note(f"the predictions of the stop set are not known in this cycle: {error}")
        return Observed(seconds={_PHASE: time.monotonic() - start})
    in_all = max(sum(drawn.values()), int(sums_E[0]))
    values = observe(sums_E, in_all, num_classes)
    return Observed(values, failures, {_PHASE: time.monotonic() - start})


def _plain(
    federation: Federation,
    order: Order,
    model: Records,
    num_classes: int,
    most: Mapping[int, int],
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the sum of all usable answers, each within what its client can have."""
    total_E = np.zeros(sums_size(num_classes), np.int64)
    replies = ask(federation, order, PREDICTIONS, dict.fromkeys(federation.clients, model))
    for client in list(replies.messages):
        try:
            metrics = metrics_of(replies.messages[client].content)
            sums_E = predictions_from_metrics(metrics, len(total_E))
            check_sums(sums_E, most[client], num_classes)
            total_E += sums_E
        except ValueError as error:
            replies.reject(client, str(error))
    return total_E, replies.failures


def _secure(
    federation: Federation,
    order: Order,
    model: Records,
    num_classes: int,
    most: Mapping[int, int],
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the secure sum over the clients that did all steps."""
    largest = max(most.values())

    def check(sum_D: NDArray[np.uint64], contributors: int) -> None:
        try:
            check_sums(sum_D.view(np.int64), largest * contributors, num_classes)
        except ValueError as error:
            raise SecureAggregationFailed(
                f"what was unmasked is no sum over {contributors} clients: {error}"
            ) from error

    # Whoever is missing is missing from the sum alone, so that no quorum is asked for.
    summed = secure_sum(
        federation,
        order,
        sums_size(num_classes),
        lambda *_: None,
        check,
        Topic.STOP_SET,
        beside=model,
    )
    return summed.sum_D.view(np.int64), summed.failures
