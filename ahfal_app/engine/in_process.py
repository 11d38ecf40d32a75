"""Flower's `Grid` without Flower's processes: clients are called in this one.

The same strategy and the same ClientApp functions as on Flower's simulation and
deployment, without Ray and without copying what need not be copied.
"""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_PULL_TIMEOUT_S = 0.1
_RAISED = 2  # Flower's code for a ClientApp that raised an exception.


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
    """

    def __init__(self, client_app: ClientApp, num_clients: int, workers: int = 1) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(run_id=1)
        self._pending: dict[str, Future[Message]] = {}
        self._contexts = {
            partition + 1: Context(
                run_id=1,
                node_id=partition + 1,
                node_config={"partition-id": partition, "num-partitions": num_clients},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(num_clients)
        }
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="client")
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
        self._workers.shutdown(wait=True, cancel_futures=True)

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

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the workers; return the messages' ids."""
        ids = []
        for message in messages:
            identity = str(uuid.uuid4())
            # On Flower's grids the SuperLink sets the id, in the same place.
            message.metadata.__dict__["_message_id"] = identity
            self._pending[identity] = self._workers.submit(self._call, message)
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are ready, waiting a moment for the first of them."""
        asked = {i: self._pending[i] for i in message_ids if i in self._pending}
        wait(asked.values(), timeout=_PULL_TIMEOUT_S, return_when=FIRST_COMPLETED)
        ready = [identity for identity, future in asked.items() if future.done()]
        return [self._pending.pop(identity).result() for identity in ready]

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

    def _call(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(5, "there is no such node"), reply_to=message)
        try:
            return self._client_app(message, context)
        except Exception as error:  # noqa: BLE001
            # As Flower does: whatever a client raises becomes an error reply, not a crash.
            reason = "".join(traceback.format_exception_only(error)).strip()
            return Message(Error(_RAISED, reason), reply_to=message)
