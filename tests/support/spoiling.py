"""Clients that answer what they like: handlers for `Simulation`, and what they do to answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import Array, Context, Error, Message, RecordDict

from ahfal_app.client_app import app as client_app

Spoil = Callable[[RecordDict], None]
Handler = Callable[[Message, Context], Message]


def of_client(client: int, kind: str, spoil: Spoil, times: int = 10**9) -> Handler:
    """Return a handler that spoils some answers of one client to one type of message."""
    left = [times]

    def handler(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        spoilt = message.metadata.message_type == kind
        if spoilt and context.node_config["partition-id"] == client and left[0]:
            left[0] -= 1
            spoil(reply.content)
        return reply

    return handler


def metric(key: str, value: object) -> Spoil:
    """Say something else of a number."""

    def spoil(content: RecordDict) -> None:
        content.metric_records["metrics"][key] = value  # type: ignore[assignment]

    return spoil


def about(key: str, value: object) -> Spoil:
    """Say something else of oneself."""

    def spoil(content: RecordDict) -> None:
        content.config_records["config"][key] = value  # type: ignore[assignment]

    return spoil


def arrays(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """Change a model: NumPy arrays by name, or what is to stand for them."""

    def spoil(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        values: dict[str, Any] = {name: array.numpy().copy() for name, array in record.items()}
        change(values)
        for name, value in values.items():
            record[name] = value if isinstance(value, Array) else Array(value)

    return spoil


def every(*spoils: Spoil) -> Spoil:
    """Do several things to an answer."""

    def spoil(content: RecordDict) -> None:
        for each in spoils:
            each(content)

    return spoil


def in_turn(spoils: Iterator[tuple[Spoil, str]]) -> Spoil:
    """Do one thing to the first answer, the next one to the second, and so on."""

    def spoil(content: RecordDict) -> None:
        next(spoils)[0](content)

    return spoil


def failing(*reasons: str | None) -> Handler:
    """Return a handler whose client 1 answers to `train` that it has failed, and why: in turn."""
    left = itertools.cycle(reasons)

    def handler(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            return Message(Error(2, next(left)), reply_to=message)
        return client_app(message, context)

    return handler
