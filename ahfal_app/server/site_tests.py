"""The test of the global model at the sites: what each tells, or their sum alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ahfal_app.config import FEWEST_SUMMED
from ahfal_app.errors import EvaluationFailed
from ahfal_app.evaluation import EvaluationSums
from ahfal_app.evaluation.sums import vector_size
from ahfal_app.messages.evaluation import EVALUATE, evaluation_from
from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.messages.protocol import Order
from ahfal_app.privacy.sessions import Topic
from ahfal_app.server.federation import Federation, Replies, ask
from ahfal_app.server.secure_sum import secure_sum

_TOO_FEW = "it has too few held-out samples to tell sums over them"


@dataclass(frozen=True, eq=False)
class SiteTests:
    """What tests at the sites came to.

    Attributes
    ----------
    total : EvaluationSums
        Over all sites.
    by_client : dict[int, EvaluationSums]
        Of each; empty where the server sees their sum alone.
    untested : dict[int, str]
        Why the others told nothing.
    seconds : float
        Wall time.
    """

    total: EvaluationSums
    by_client: dict[int, EvaluationSums] = field(default_factory=dict)
    untested: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


def evaluate_at_sites(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    num_classes: int,
    require: Callable[[Replies, int, str], None],
) -> SiteTests:
    """Have all clients test the global model on what they hold out.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle and the round that were just trained.
    arrays : ArrayRecord
        The global model.
    num_classes : int
        Number of classes.
    require : Callable
        As of `purchase.buy`.

    Raises
    ------
    QuorumNotReached
        Too few clients answered.
    SecureAggregationFailed
        A secure sum was wanted, and cannot be had.
    EvaluationFailed
        No client has enough samples to be tested with.
    """
    if order.settings.uses_secure_aggregation:
        return _summed(federation, order, arrays, num_classes, require)
    return _single(federation, order, arrays, num_classes, require)


def _single(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    num_classes: int,
    require: Callable[[Replies, int, str], None],
) -> SiteTests:
    clients = federation.clients
    replies = ask(federation, order, EVALUATE, {client: {ARRAYS_KEY: arrays} for client in clients})
    most = order.settings.max_client_samples
    told: dict[int, EvaluationSums] = {}
    untested: dict[int, str] = {}
    for client in list(replies.messages):
        try:
            sums = evaluation_from(replies.messages[client].content, num_classes, most)
        except ValueError as error:
            replies.reject(client, str(error))
            continue
        if sums is None or not sums.num_samples:
            untested[client] = _TOO_FEW
        else:
            told[client] = sums
    require(replies, len(clients), "evaluation")
    total = EvaluationSums.total(told.values(), num_classes)
    if not told:
        raise EvaluationFailed(
            f"cycle {order.cycle}: no client could be tested: "
            f"{federation.describe(untested | replies.failures)}; allowed is a larger "
            "validation-fraction, more labels, or evaluate='server'"
        )
    return SiteTests(total, told, untested | replies.failures, replies.seconds)


def _summed(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    num_classes: int,
    require: Callable[[Replies, int, str], None],
) -> SiteTests:
    most = order.settings.max_client_samples

    def read(sum_D: NDArray[np.uint64], contributors: int) -> EvaluationSums:
        return EvaluationSums.from_vector(sum_D.view(np.int64), num_classes, most * contributors)

    found = secure_sum(
        federation,
        order,
        vector_size(num_classes),
        require,
        read,
        Topic.EVALUATION,
        {ARRAYS_KEY: arrays},
    )
    total = read(found.sum_D, max(found.with_labels, FEWEST_SUMMED))
    return SiteTests(total, {}, found.failures, found.seconds)
