"""The server's side of a budget that is split by what the clients' samples are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord

from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.messages.protocol import SPLIT, Order
from ahfal_app.privacy.sessions import Topic
from ahfal_app.query.core.splitting import Split
from ahfal_app.server.coordination import Exchange, Require, exchanged
from ahfal_app.server.federation import Federation
from ahfal_app.server.shared_budget import Parts


@dataclass(frozen=True)
class Splitting:
    """What came of asking clients.

    Attributes
    ----------
    parts : Parts
        What each client gets that has answered to the end.
    failures : dict[int, str]
        Why others have not.
    seconds : dict[str, float]
        Wall time.
    """

    parts: Parts
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def split_by_samples(
    federation: Federation,
    order: Order,
    split: Split,
    labels: int,
    clients: Sequence[int],
    arrays: ArrayRecord,
    num_classes: int,
    require: Require,
) -> Splitting:
    """Ask clients what a cycle's labels are split by, and split them.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    split : Split
        How.
    labels : int
        How many there are.
    clients : Sequence[int]
        Those that are there.
    arrays : ArrayRecord
        The global model f^G.
    num_classes : int
        Number of classes.
    require : Require
        As of `coordinate`.
    """
    exchange = Exchange(split, SPLIT, Topic.BUDGET, labels)
    records = {ARRAYS_KEY: arrays}
    found = exchanged(federation, order, exchange, clients, records, num_classes, require)
    decided = {client: found.decisions[client] for client in found.clients}
    parts = Parts(
        {client: int(each["labels"][0]) for client, each in decided.items()},
        {client: int(each["most"][0]) for client, each in decided.items()},
        {client: float(each["weight"][0]) for client, each in decided.items()},
    )
    failures = {c: f"no part of the budget: {why}" for c, why in found.failures.items()}
    return Splitting(parts, failures, {"split": found.seconds})
