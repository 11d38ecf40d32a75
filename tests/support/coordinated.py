"""Runs whose clients choose together, small, and how tests look into them."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Message
from support.simulation import Outcome

from ahfal_app.client import coordination

SMALL: dict[str, Any] = {
    "max-train-samples": 150,
    "max-test-samples": 40,
    "initial-labels": 8,
    "query-labels": 4,
    "target-labels": 16,
}
TOGETHER: dict[str, Any] = {
    **SMALL,
    "strategy": "coordinated-typicality",
    "strategy.max-clusters": 8,
    "strategy.least-region": 3,
}
PROB_COVER: dict[str, Any] = {
    **SMALL,
    "strategy": "coordinated-prob-cover",
    "strategy.radius": 0.5,
    "strategy.least-region": 2,
}
HERDING: dict[str, Any] = {**PROB_COVER, "strategy": "coordinated-max-herding"}
FAIRFAL: dict[str, Any] = {**SMALL, "strategy": "coordinated-fairfal", "strategy.epochs": 2}
SECURE = {"privacy": "secure-aggregation"}
ONE_PURCHASE = {"cycles": 2, "rounds": 1}


def slowly(*values: Any) -> Any:
    """Return values of a test's parameters that take a second or more."""
    return pytest.param(*values, marks=pytest.mark.slow)


def bought(outcome: Outcome) -> list[tuple[Any, Any, Any]]:
    return [(row["cycle"], row["client"], row["sample"]) for row in outcome.selections]


def forget(_message: Message, _client: int) -> None:
    """As if each message were answered by a process of its own."""
    coordination._under_way.clear()


def last_step(message: Message) -> str:
    """Return which step of a coordination a message wants to be answered, or its kind."""
    if message.metadata.message_type != "query.coordinate":
        return message.metadata.message_type
    names = message.content.config_records["coordination"]["names"]
    return str(list(names)[-1])  # type: ignore[arg-type]
