"""Messages to clients and what comes back, by client and not by Flower's node ids.

Node ids are random in every run; clients are numbered by their partition, and everything
that depends on an order uses that number.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from ahfal_app.messages.arrays import size_in_bytes
from ahfal_app.messages.keys import CONFIG_KEY
from ahfal_app.messages.protocol import Order
from ahfal_app.results.records import called

# A pause is a share of the time already waited: short answers are not held up, and long
# ones are not asked for too often.
_PAUSE_SHARE = 0.02
_LONGEST_PAUSE_S = 2.0

_LONGEST_REASON = 10_000

#: What a message carries besides the order, by key.
Records = Mapping[str, ArrayRecord | ConfigRecord | MetricRecord]

#: Of a message that says nothing besides the order.
NOTHING: Records = MappingProxyType({})

Value = TypeVar("Value")


@dataclass
class Replies:
    """What came back from an exchange.

    Attributes
    ----------
    messages : dict[int, Message]
        Answers by client (by node, before the clients are known), in increasing order.
    failures : dict[int, str]
        Why the others gave none.
    seconds : float
        Wall time of the exchange.
    merged : int
        Answers that are part of another one now.
    """

    messages: dict[int, Message] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    merged: int = 0

    @property
    def count(self) -> int:
        """How many clients answered."""
        return len(self.messages) + self.merged

    def merge(self, merge: Callable[[Sequence[Message]], Message]) -> None:
        """Make one answer, that of the first client, of several."""
        if len(self.messages) > 1:
            first = next(iter(self.messages))
            self.merged += len(self.messages) - 1
            self.messages = {first: merge(list(self.messages.values()))}

    def add(self, other: Replies) -> None:
        """Take in what came back from an exchange with other clients."""
        self.messages |= other.messages
        self.failures |= other.failures
        self.seconds += other.seconds
        self.merged += other.merged

    def reject(self, key: int, reason: str) -> None:
        """Turn an answer into a failure."""
        del self.messages[key]
        self.failures[key] = reason


@runtime_checkable
class BoundedGrid(Protocol):
    """A grid that is to be handed no more than some messages at once."""

    @property
    def most_at_once(self) -> int:
        """Messages whose answers, models of as many clients, may be in memory together."""
        ...


@runtime_checkable
class CollectingGrid(Protocol):
    """A grid that collects what its clients are to leave on the disk."""

    def settle(self) -> None:
        """Write it."""
        ...


class Federation:
    """The clients of a run, reached through a grid.

    Parameters
    ----------
    grid : Grid
        Flower's grid, or the in-process one.
    timeout : float
        Seconds to wait for the answers to one message.
    time_to_live : float
        Seconds for which a message and its answer are valid.
    """

    def __init__(self, grid: Grid, timeout: float, time_to_live: float) -> None:
        self.grid = grid
        self._timeout = timeout
        self._time_to_live = time_to_live
        self._nodes: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._seen: dict[int, dt.datetime] = {}
        self._overdue: dict[str, int] = {}
        self.bytes_down = 0
        self.bytes_up = 0

    @property
    def clients(self) -> tuple[int, ...]:
        """All clients that joined, in increasing order."""
        return tuple(sorted(self._nodes))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that were sent down and up so far."""
        return self.bytes_down, self.bytes_up

    @property
    def most_at_once(self) -> int | None:
        """Messages that may be sent at once; None: all."""
        return self.grid.most_at_once if isinstance(self.grid, BoundedGrid) else None

    def settle(self) -> None:
        """Have all that clients have left on the disk, before a checkpoint counts on it."""
        if isinstance(self.grid, CollectingGrid):
            self.grid.settle()

    def site(self, client: int) -> str:
        """Return the name that a client's site was registered under, or nothing."""
        return self.site_of_node(self._nodes.get(client, -1))

    def site_of_node(self, node: int) -> str:
        """Return the name that a node was registered under, or nothing."""
        return self._names.get(node, "")

    def name(self, client: int) -> str:
        """Return what a client is called in messages to people."""
        return called(client, self.site(client))

    def node_name(self, node: int) -> str:
        """Return what a node is called in messages to people, before its client is known."""
        return self.site_of_node(node) or f"node {node}"

    def last_seen(self, client: int) -> str:
        """Return in words when a client's node last answered, or was last connected."""
        seen = self._seen.get(self._nodes.get(client, -1))
        return utc_text(seen) if seen else "never"

    def sightings(self) -> dict[int, dt.datetime]:
        """Return when each client's node last answered, or was last connected."""
        seen = dict(self._seen)
        return {client: seen[node] for client, node in self._nodes.items() if node in seen}

    def connected(self) -> dict[str, dt.datetime]:
        """Return when each node was last seen, by what it is called in messages to people."""
        return {self.node_name(node): seen for node, seen in dict(self._seen).items()}

    def describe(self, failures: Mapping[int, str]) -> str:
        """Return clients' failures in words, each reason once."""
        return _by_reason({client: self.name(client) for client in failures}, failures)

    def describe_nodes(self, failures: Mapping[int, str]) -> str:
        """Return nodes' failures in words, each reason once."""
        return _by_reason({node: self.node_name(node) for node in failures}, failures)

    def wait_for_nodes(self, wanted: int, deadline_s: float) -> list[int]:
        """Return the connected nodes once there are `wanted`, or those there at the deadline."""
        deadline = time.monotonic() + deadline_s
        while True:
            nodes = self.look()
            if len(nodes) >= wanted or time.monotonic() > deadline:
                return nodes
            time.sleep(0.05)

    def look(self) -> list[int]:
        """Return the connected nodes; remember what they are called, and that they were seen."""
        found = {info.node_id: info.name for info in self.grid.get_nodes()}
        self._names |= found
        self._seen |= dict.fromkeys(found, dt.datetime.now(dt.UTC))
        return sorted(found)

    def assign(self, nodes: Mapping[int, int]) -> None:
        """Remember which node serves which client."""
        self._nodes = dict(nodes)
        self.look()

    def message_to_node(
        self, node: int, message_type: str, content: RecordDict, group: str
    ) -> Message:
        """Return a message; `group` is shown in Flower's logs beside it."""
        return Message(content, node, message_type, ttl=self._time_to_live, group_id=group)

    def message(self, client: int, message_type: str, content: RecordDict, group: str) -> Message:
        """Return a message to a client."""
        return self.message_to_node(self._nodes[client], message_type, content, group)

    def exchange(self, messages: Sequence[Message]) -> Replies:
        """Send messages and wait for the answers, keyed by client, in increasing order."""
        clients = {node: client for client, node in self._nodes.items()}
        replies = self.exchange_with_nodes(messages)
        return Replies(
            _rekeyed(replies.messages, clients),
            _rekeyed(replies.failures, clients),
            replies.seconds,
        )

    def exchange_with_nodes(self, messages: Sequence[Message]) -> Replies:
        """Send messages and wait for the answers, keyed by node.

        Polls on its own, since Flower's `send_and_receive` sleeps up to three seconds. A node
        that still owes the answer to an earlier message gets no new one: Flower would run
        both at the same time, on two copies of the client's state.
        """
        start = time.monotonic()
        self._forget_answered()
        busy = set(self._overdue.values())
        free = [message for message in messages if message.metadata.dst_node_id not in busy]
        self.grid.push_messages(free)
        # By the id of the message: errors for lost messages do not come from the node's id.
        waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in free}
        replies = Replies()
        addressed = {message.metadata.dst_node_id for message in messages}
        replies.failures |= dict.fromkeys(
            sorted(addressed & busy), "it is still busy with an earlier message"
        )
        while waiting and time.monotonic() - start < self._timeout:
            received = list(self.grid.pull_messages(waiting.keys()))
            answered = _sort_in(received, waiting, replies)
            self._seen |= dict.fromkeys(answered, dt.datetime.now(dt.UTC))
            if not received:
                waited = time.monotonic() - start
                time.sleep(min(_PAUSE_SHARE * waited + 0.001, _LONGEST_PAUSE_S))
        no_answer = f"no answer within {self._timeout:g} s (round-timeout)"
        replies.failures |= dict.fromkeys(waiting.values(), no_answer)
        self._overdue |= waiting
        replies.seconds = time.monotonic() - start
        self.bytes_down += _payload_bytes(free)
        self.bytes_up += _payload_bytes(replies.messages.values())
        return replies

    def _forget_answered(self) -> None:
        """Drop late answers: the round that they belong to is over."""
        for reply in self.grid.pull_messages(list(self._overdue)) if self._overdue else []:
            self._overdue.pop(reply.metadata.reply_to_message_id, None)


def ask(
    federation: Federation, order: Order, message_type: str, records: Mapping[int, Records]
) -> Replies:
    """Send each client its message and wait for the answers.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        What every message says.
    message_type : str
        Kind of message.
    records : Mapping[int, Records]
        What else each message says, by client.
    """
    config = order.to_record()
    messages = [
        federation.message(
            client,
            message_type,
            RecordDict({CONFIG_KEY: config, **records[client]}),
            f"cycle {order.cycle}",
        )
        for client in sorted(records)
    ]
    return federation.exchange(messages)


def _sort_in(received: Iterable[Message], waiting: dict[str, int], replies: Replies) -> list[int]:
    """Sort answers in; return the nodes that gave one, and no error."""
    answered = []
    for reply in received:
        node = waiting.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            continue  # A second answer to the same message.
        if reply.has_error():
            error = reply.error
            replies.failures[node] = f"error {error.code}: {_telling_line(error.reason)}"
        else:
            replies.messages[node] = reply
            answered.append(node)
    return answered


def utc_text(time: dt.datetime) -> str:
    """Return a time for messages to people, to the minute."""
    return f"{time.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def _by_reason(names: Mapping[int, str], failures: Mapping[int, str]) -> str:
    found: dict[str, list[str]] = {}
    for key, reason in failures.items():
        found.setdefault(reason, []).append(names[key])
    return "; ".join(f"{', '.join(who)}: {reason}" for reason, who in found.items())


def _rekeyed(values: Mapping[int, Value], clients: Mapping[int, int]) -> dict[int, Value]:
    return {clients[node]: values[node] for node in sorted(values, key=clients.__getitem__)}


def _telling_line(reason: str | None) -> str:
    """Return the last line of an error's reason, which may be a whole remote traceback."""
    # Of the end alone: it is somebody else's text, of any length.
    lines = [line.strip() for line in (reason or "")[-_LONGEST_REASON:].splitlines()]
    text = next((line for line in reversed(lines) if line), "unknown")
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 200 else text[:197] + "..."


def _payload_bytes(messages: Iterable[Message]) -> int:
    # Messages of a round say the same with the same records.
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        for record in message.content.values():
            if id(record) not in sizes:
                sizes[id(record)] = _bytes_of(record)
            total += sizes[id(record)]
    return total


def _bytes_of(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    if isinstance(record, ArrayRecord):
        return size_in_bytes(record)
    try:
        return int(record.count_bytes())
    except (ValueError, IndexError):
        # Flower cannot count empty texts and lists, which anybody may send.
        return 0
