"""Makes a site's processes misbehave; Python loads this where the folder is on `PYTHONPATH`.

The app's code stays as it is, since the server compares its hash: what is changed is what
Flower hands on. `AHFAL_TEST_MISBEHAVIOUR` says how:

- `nan`: weights that are not numbers.
- `schema`: training answers with an array of another type, purchases answered without metrics.
- `twice`: each message is dealt with twice, and each answer sent twice.
- `late`: the first training answer of a run comes long after the server has given up on it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

_MISBEHAVIOUR = os.environ["AHFAL_TEST_MISBEHAVIOUR"]
# The sites' runs wait for 120 seconds.
_LATE_S = 150.0


def _client_app() -> None:
    import numpy as np
    from flwr.app import Array, Context, Message
    from flwr.clientapp import ClientApp

    honest: Callable[[ClientApp, Message, Context], Message] = ClientApp.__call__

    def call(self: ClientApp, message: Message, context: Context) -> Message:
        reply = honest(self, message, context)
        kind = message.metadata.message_type
        if _MISBEHAVIOUR == "twice":
            return honest(self, message, context)
        if _MISBEHAVIOUR == "late":
            if kind == "train" and _is_first(message.metadata.run_id):
                time.sleep(_LATE_S)
            return reply
        if kind == "train":
            arrays = reply.content.array_records["arrays"]
            name = next(iter(arrays))
            spoilt = arrays[name].numpy() * np.float32(np.nan)
            arrays[name] = Array(spoilt if _MISBEHAVIOUR == "nan" else spoilt.astype(np.float64))
        elif kind == "query.select" and _MISBEHAVIOUR == "schema":
            del reply.content["metrics"]
        return reply

    ClientApp.__call__ = call  # type: ignore[method-assign]


def _is_first(run_id: int) -> bool:
    """Return whether nobody has asked for a run before; each message is a process of its own."""
    try:
        Path(os.environ["AHFAL_TEST"], f"late-{run_id}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _supernode() -> None:
    from flwr.supernode import start_client_internal
    from flwr.supernode.fleet_http_client import FleetHttpClient

    announce = FleetHttpClient.PushMessages
    deliver = start_client_internal.push_object_contents_from_iterable
    announced: list[Any] = []

    def announce_and_remember(self: FleetHttpClient, request: Any) -> Any:
        announced[:] = self, request
        return announce(self, request)

    def deliver_twice(contents: Iterable[tuple[str, bytes]], push_object_fn: Any) -> None:
        kept = dict(contents)
        deliver(kept.items(), push_object_fn=push_object_fn)
        response = announce(*announced)
        run_id, _ = push_object_fn.args
        push_again = partial(push_object_fn.func, run_id, response.session_id)
        wanted = ((name, kept[name]) for name in response.objects_to_push if name in kept)
        deliver(wanted, push_object_fn=push_again)
        print(f"sent twice: {response.results}", flush=True)

    FleetHttpClient.PushMessages = announce_and_remember  # type: ignore[method-assign]
    start_client_internal.push_object_contents_from_iterable = deliver_twice


_program = os.path.basename(next((word for word in sys.orig_argv[1:2]), ""))
# What ClientApps are forked from.
if "ahfal_app.deployment.fork_server" in sys.orig_argv:
    _client_app()
elif _program == "flower-supernode" and _MISBEHAVIOUR == "twice":
    _supernode()
