"""The server's side of secure aggregation: four exchanges, and the sum that comes of them.

A client that fails at a step is left out from there on; where fewer stay than the threshold,
the cycle stops. A sum that was unmasked is kept in the run's folder before it is used, so that
a resumed run asks for no second one: clients would not help to unmask another.

Shape suffix: D = 2 C + 1 entries of the vectors that are summed.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from ahfal_app.config import FEWEST_SUMMED, share_of
from ahfal_app.errors import CheckpointError, SecureAggregationFailed
from ahfal_app.messages import secure_aggregation as messages
from ahfal_app.messages.protocol import Order
from ahfal_app.privacy.masking import Session
from ahfal_app.privacy.quantisation import Sums, dequantise
from ahfal_app.privacy.sessions import Advertisement, PublicKeys, Topic, Unmasking
from ahfal_app.privacy.unmasking import unmasked_sum
from ahfal_app.server.federation import NOTHING, Federation, Records, Replies, ask
from ahfal_app.storage.files import sync_folder, write_json

_FOLDER = "secure-aggregation"

Answer = TypeVar("Answer")


@dataclass
class SecureSum:
    """A sum over clients, and who is in it.

    Attributes
    ----------
    sum_D : NDArray[np.uint64]
        The sum, in units of 2^-40.
    with_labels : int
        How many clients' histograms are in it.
    clients : tuple[int, ...]
        Those that did all steps.
    failures : dict[int, str]
        Why the others did not.
    epsilon_spent : float
        The most that any client's releases have cost so far; 0 without noise.
    seconds : float
        Wall time.
    """

    sum_D: NDArray[np.uint64]
    with_labels: int
    clients: tuple[int, ...]
    failures: dict[int, str] = field(default_factory=dict)
    epsilon_spent: float = 0.0
    seconds: float = 0.0

    @property
    def sums(self) -> Sums:
        """What the sum says."""
        return dequantise(self.sum_D, self.with_labels)


def secure_sum(
    federation: Federation,
    order: Order,
    size: int,
    require: Callable[[Replies, int, str], None],
    check: Callable[[NDArray[np.uint64], int], object] = dequantise,
    topic: Topic = Topic.HISTOGRAM,
    beside: Records = NOTHING,
    step: int = 0,
    clients: Collection[int] | None = None,
) -> SecureSum:
    """Return the sum of what a cycle's clients tell of their histograms, or vectors.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    size : int
        Entries D of what is summed.
    require : Callable
        As of `purchase.buy`; called before anything is unmasked.
    check : Callable
        Called with the sum and the number of clients in it; raises where it cannot be the sum.
    topic : Topic
        What is summed.
    beside : Records
        What the first request says besides, such as a model to be tested.
    step : int
        The step of a coordination that is summed, from 1.
    clients : Collection[int] | None
        Whose vectors are summed; None: all clients'.

    Raises
    ------
    SecureAggregationFailed
        Fewer clients stayed than the threshold, or their answers do not fit together.
    CheckpointError
        A sum that was kept cannot be read.
    """
    path = _path(topic, order, step)
    if path.exists():
        return _read(path)
    members = federation.clients if clients is None else tuple(sorted(clients))
    exchanges = _Exchanges(federation, order, size, require, check, topic, beside, step, members)
    total = exchanges.run()
    _write(path, total)
    return total


def forget_sum(order: Order, topic: Topic, step: int) -> None:
    """Forget a step's sum that is kept elsewhere."""
    _path(topic, order, step).unlink(missing_ok=True)


def _path(topic: Topic, order: Order, step: int) -> Path:
    name = f"{topic}-{order.cycle}-{step or order.round}.json"
    if topic is Topic.HISTOGRAM:
        name = f"cycle-{order.cycle}.json"
    return Path(order.run_folder) / _FOLDER / name


class _Exchanges:
    """One session, from fresh keys to the sum."""

    def __init__(
        self,
        federation: Federation,
        order: Order,
        size: int,
        require: Callable[[Replies, int, str], None],
        check: Callable[[NDArray[np.uint64], int], object],
        topic: Topic,
        beside: Records,
        step: int,
        clients: tuple[int, ...],
    ) -> None:
        settings = order.settings
        self._federation = federation
        self._order = order
        self._size = size
        self._check_sum = check
        self._require = require
        self._topic = topic
        self._beside = beside
        self._step = step
        self._clients = clients
        place = topic.place(order.cycle, step or order.round)
        self._session = Session(order.run, place, secrets.token_hex(16))
        self._threshold = share_of(settings.secure_aggregation_threshold, settings.num_clients)
        self._failures: dict[int, str] = {}
        self._seconds = 0.0
        self._last = Replies()

    def run(self) -> SecureSum:
        """Return the sum over the clients that stay to the end."""
        advertised = self._advertise()
        roster = {client: advertisement.keys for client, advertisement in advertised.items()}
        shared = self._share(roster)
        masked = self._mask(shared)
        with_labels = self._check_survivors(advertised, masked)
        answers = self._unmask(masked, set(shared) - set(masked))
        sum_D = unmasked_sum(self._session, roster, shared, masked, answers, self._threshold)
        try:
            self._check_sum(sum_D, with_labels)
        except ValueError as error:
            self._fail(f"what was unmasked is no sum over {with_labels} clients: {error}")
        spent = max(advertised[client].epsilon_spent for client in masked)
        return SecureSum(sum_D, with_labels, tuple(answers), self._failures, spent, self._seconds)

    def _advertise(self) -> dict[int, Advertisement]:
        request = messages.advertise_request(self._session.name)
        advertised = self._ask(
            messages.ADVERTISE_KEYS,
            dict.fromkeys(self._clients, request),
            messages.advertisement_from,
        )
        bound_to = {client: set(a.bound_to) for client, a in advertised.items() if a.bound_to}
        if not bound_to or all(members == set(advertised) for members in bound_to.values()):
            return advertised
        free = set(advertised) - set(bound_to)
        if len(free) >= max(self._threshold, FEWEST_SUMMED):
            # Those that say so are fewer than it takes to unmask, so no other sum is known; and
            # one that says so for no reason holds up nobody.
            reason = "it says that it has begun to unmask another sum of this cycle"
            return self._without(advertised, set(bound_to), reason)
        members = set().union(*bound_to.values())
        missing = sorted(members - set(advertised))
        if missing or any(members != each for each in bound_to.values()):
            self._fail(
                f"its sum over {self._names(sorted(members))} was begun to be unmasked before, and "
                f"no other will be; not there: {self._names(sorted(missing)) or 'none'}"
            )
        return self._without(advertised, set(advertised) - members, "the sum was begun without it")

    def _without(
        self, advertised: Mapping[int, Advertisement], left_out: Collection[int], reason: str
    ) -> dict[int, Advertisement]:
        self._failures |= dict.fromkeys(sorted(left_out), reason)
        return {client: each for client, each in advertised.items() if client not in left_out}

    def _names(self, clients: Iterable[int]) -> str:
        return ", ".join(self._federation.name(client) for client in clients)

    def _share(self, roster: Mapping[int, PublicKeys]) -> dict[int, dict[int, bytes]]:
        request = messages.share_request(self._session.name, roster)
        return self._ask(
            messages.SHARE_KEYS, dict.fromkeys(roster, request), messages.ciphertexts_from
        )

    def _mask(self, shared: Mapping[int, Mapping[int, bytes]]) -> dict[int, NDArray[np.uint64]]:
        requests = {
            client: messages.mask_request(
                self._session.name,
                {peer: sent[client] for peer, sent in shared.items() if client in sent},
            )
            for client in shared
        }
        return self._ask(
            messages.MASK, requests, lambda record: messages.vector_from(record, self._size)
        )

    def _check_survivors(
        self, advertised: Mapping[int, Advertisement], masked: Collection[int]
    ) -> int:
        """Stop before anything is unmasked that must not be; return how many have labels."""
        for client in masked:
            bound_to = advertised[client].bound_to
            if bound_to and set(bound_to) != set(masked):
                self._fail(f"its sum must be over {self._names(bound_to)}; some dropped out")
        with_labels = sum(advertised[client].has_labels for client in masked)
        if with_labels < FEWEST_SUMMED:
            self._fail(f"{with_labels} clients with labels are left, {FEWEST_SUMMED} are needed")
        stayed = replace(self._last, failures=self._failures)
        self._require(stayed, len(self._clients), self._topic.value)
        return with_labels

    def _unmask(self, masked: Collection[int], dropped: Collection[int]) -> dict[int, Unmasking]:
        request = messages.unmask_request(self._session.name, masked)
        return self._ask(
            messages.UNMASK,
            dict.fromkeys(masked, request),
            lambda record: messages.unmasking_from(record, masked, dropped),
            needed=self._threshold,
        )

    def _ask(
        self,
        message_type: str,
        requests: Mapping[int, ConfigRecord],
        read: Callable[[ConfigRecord], Answer],
        needed: int = 0,
    ) -> dict[int, Answer]:
        """Send each client its request and return the usable answers, by client."""
        beside = self._beside if message_type == messages.ADVERTISE_KEYS else NOTHING
        records = {
            client: {
                messages.RECORD_KEY: messages.about(request, self._topic, self._step),
                **beside,
            }
            for client, request in requests.items()
        }
        replies = ask(self._federation, self._order, message_type, records)
        answers: dict[int, Answer] = {}
        for client in list(replies.messages):
            try:
                answers[client] = read(messages.record_of(replies.messages[client].content))
            except ValueError as error:
                replies.reject(client, str(error))
        self._last = replies
        self._failures |= replies.failures
        self._seconds += replies.seconds
        needed = needed or max(self._threshold, FEWEST_SUMMED)
        if len(answers) < needed:
            self._fail(
                f"{len(answers)} clients answered {message_type!r} usefully, {needed} are needed"
            )
        return answers

    def _fail(self, what: str) -> NoReturn:
        reasons = self._federation.describe(self._failures)
        raise SecureAggregationFailed(
            f"cycle {self._order.cycle}: {what}{'; ' if reasons else ''}{reasons}"
        )


def _write(path: Path, total: SecureSum) -> None:
    path.parent.mkdir(exist_ok=True)
    sync_folder(path.parent.parent)
    write_json(path, asdict(total) | {"sum_D": total.sum_D.tolist()})


def _read(path: Path) -> SecureSum:
    try:
        values = json.loads(path.read_bytes())
        return SecureSum(
            **values
            | {
                "sum_D": np.array(values["sum_D"], dtype=np.uint64),
                "clients": tuple(values["clients"]),
                # JSON knows texts as keys alone.
                "failures": {int(client): why for client, why in values["failures"].items()},
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error!r}; without it the sum is taken again"
        ) from error
