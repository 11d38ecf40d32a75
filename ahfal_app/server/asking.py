"""One kind of message to many clients, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ahfal_app.messages.protocol import CONFIG_KEY, Order
from ahfal_app.server.federation import Federation, Replies

#: What a message carries besides the order, by key.
Records = Mapping[str, ArrayRecord | ConfigRecord | MetricRecord]

#: Of a message that says nothing besides the order.
NOTHING: Records = MappingProxyType({})


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
