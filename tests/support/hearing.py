"""A ClientApp that is listened to."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict

from ahfal_app.client_app import app as client_app


class Hearing:
    """Hears all that is asked and answered, and does something before or after."""

    def __init__(
        self,
        before: Callable[[Message, int], None] = lambda *_: None,
        after: Callable[[Message, int, RecordDict], None] = lambda *_: None,
    ) -> None:
        self.heard: list[tuple[str, int, RecordDict, RecordDict]] = []
        self._before, self._after = before, after

    def __call__(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        self._before(message, client)
        reply = client_app(message, context)
        self._after(message, client, reply.content)
        self.heard.append((message.metadata.message_type, client, message.content, reply.content))
        return reply
