"""Flower's `Grid` without Flower's processes: clients are called in this one.

The same loop and the same ClientApp functions as on Flower's simulation and
deployment, without Ray and without copying what need not be copied.
"""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ahfal_app.client.momentum import Collection, collected_in
from ahfal_app.messages.protocol import TRAIN
from ahfal_app.training.together.gathering import Gathering, TrainTogether
from ahfal_app.training.update import trained_by

#: Most clients that train as one; more are trained in groups.
MOST_TOGETHER = 32

#: Most clients that are asked to train at once.
MOST_AT_ONCE = 2 * MOST_TOGETHER

_PULL_TIMEOUT_S = 0.1
_RAISED = 2  # Flower's code for a ClientApp that raised an exception.


@dataclass(frozen=True)
class SiteNode:
    """A client that is a site: its name, and what its SuperNode would get as `--node-config`."""

    name: str
    node_config: Mapping[str, str | int | float | bool]


class InProcessGrid(Grid):
    """A grid whose nodes live in this process; also a context manager that ends its threads.

    Parameters
    ----------
    client_app : ClientApp
        Called for each message.
    num_clients : int
        Number of nodes; node ids are 1 to `num_clients`.
    workers : int
        Clients served at the same time.
    train_together : TrainTogether, optional
        Carries out the local training of several clients as one; without it, each client trains
        alone.
    sites : Sequence[SiteNode]
        What sites say of themselves, where the clients are sites; one for each client.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        workers: int = 1,
        train_together: TrainTogether | None = None,
        sites: Sequence[SiteNode] = (),
    ) -> None:
        self._client_app = client_app
        self._names = {number: site.name for number, site in enumerate(sites, start=1)}
        self._run = Run.create_empty(run_id=1)
        self._pending: dict[str, Future[Message]] = {}
        # Ids of messages that are answered, in the order of their answers.
        self._done = deque[str]()
        self._contexts = {
            partition + 1: Context(
                run_id=1,
                node_id=partition + 1,
                node_config={
                    **(sites[partition].node_config if sites else {}),
                    "partition-id": partition,
                    "num-partitions": num_clients,
                },
                state=RecordDict(),
                run_config={},
            )
            for partition in range(num_clients)
        }
        self._answered = threading.Event()
        self._collection = Collection()
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="client")
        self._train_together = train_together
        self._closing = threading.Event()
        # Those that train together wait for each other, each in a thread.
        self._gathered = ThreadPoolExecutor(MOST_TOGETHER, thread_name_prefix="gathered")
        # Flower's Message reads these; in a process of its own, Flower sets them.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def __enter__(self) -> Self:
        """Return the grid."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the worker threads; clients that have not started are dropped."""
        self._closing.set()
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._gathered.shutdown(wait=True, cancel_futures=False)

    @property
    def most_at_once(self) -> int:
        """Messages whose answers, models of as many clients, are in memory at the same time."""
        return MOST_AT_ONCE

    def settle(self) -> None:
        """Write what clients have left in memory, before the server counts on it."""
        self._collection.settle()

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all nodes, with the names of sites."""
        return [NodeInfo(node_id=node, name=self._names.get(node, "")) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the workers; return the messages' ids."""
        pushed = list(messages)
        for message in pushed:
            # On Flower's grids the SuperLink sets the id, in the same place.
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        train_together = self._train_together
        if train_together is not None:
            training = [m for m in pushed if m.metadata.message_type == TRAIN]
            self._submit_together(training, train_together)
        for message in pushed:
            if message.metadata.message_id not in self._pending:
                self._wait_for(message, self._workers.submit(self._call, message))
        return [message.metadata.message_id for message in pushed]

    def _submit_together(self, messages: Sequence[Message], train_together: TrainTogether) -> None:
        """Hand out messages to clients that train together, in groups of a bounded size.

        A group's messages come before the next group's, so all of its clients have a thread
        before any of the next one's waits in one.
        """
        for start in range(0, len(messages), MOST_TOGETHER):
            group = messages[start : start + MOST_TOGETHER]
            nodes = [message.metadata.dst_node_id for message in group]
            gathering = Gathering(nodes, train_together)
            for message in group:
                called = self._gathered.submit(self._call_gathered, message, gathering)
                self._wait_for(message, called)

    def _wait_for(self, message: Message, called: Future[Message]) -> None:
        identity = message.metadata.message_id
        self._pending[identity] = called
        called.add_done_callback(lambda _: self._note_answer(identity))

    def _note_answer(self, identity: str) -> None:
        self._done.append(identity)
        self._answered.set()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are ready, waiting a moment for the first of them."""
        asked = message_ids if isinstance(message_ids, Set) else set(message_ids)
        # An answer that comes after this is not missed.
        self._answered.clear()
        ready = self._answered_of(asked)
        if not ready and any(identity in self._pending for identity in asked):
            self._answered.wait(_PULL_TIMEOUT_S)
            ready = self._answered_of(asked)
        return [self._pending.pop(identity).result() for identity in ready]

    def _answered_of(self, asked: Set[str]) -> list[str]:
        """Return which of these are answered; the others' answers stay.

        It looks at those that are answered alone: with many clients nearly all are waited for.
        """
        answered = [self._done.popleft() for _ in range(len(self._done))]
        self._done.extend(identity for identity in answered if identity not in asked)
        return [identity for identity in answered if identity in asked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            received = list(self.pull_messages(waiting))
            replies += received
            waiting -= {reply.metadata.reply_to_message_id for reply in received}
        return replies

    def _call_gathered(self, message: Message, gathering: Gathering) -> Message:
        node = message.metadata.dst_node_id
        try:
            if self._closing.is_set():
                return Message(Error(_RAISED, "the grid was closed"), reply_to=message)
            with trained_by(partial(gathering.train, node)):
                return self._call(message)
        finally:
            # Whoever fails before it trains, or has nothing to train on, is not waited for.
            gathering.leave(node)

    def _call(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(5, "there is no such node"), reply_to=message)
        try:
            with collected_in(self._collection):
                return self._client_app(message, context)
        except Exception as error:  # noqa: BLE001 (becomes an error reply)
            # As Flower does: whatever a client raises becomes an error reply, not a crash.
            reason = "".join(traceback.format_exception_only(error)).strip()
            return Message(Error(_RAISED, reason), reply_to=message)
