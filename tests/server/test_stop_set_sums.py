"""What the server believes of predictions of the stop set, by what it knows of each client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, RecordDict

from ahfal_app.config import parse_settings
from ahfal_app.messages.answers import predictions_to_metrics
from ahfal_app.server import stop_set
from ahfal_app.server.federation import Replies
from ahfal_app.server.stop_set import Observed, observe_stop_set
from ahfal_app.stop_set import prediction_sums

#: Samples that clients had as they joined; of the third nothing is known, since it is away.
SAMPLES = {0: 100, 1: 30}


def told(monkeypatch: pytest.MonkeyPatch, numbers: dict[int, int], **settings: object) -> Observed:
    """Return what comes of answers over so many samples, by client."""
    same = {client: np.zeros(number, np.int64) for client, number in numbers.items()}
    sums = {client: prediction_sums(each, each, each, 2) for client, each in same.items()}
    answers: Any = {
        client: SimpleNamespace(content=RecordDict({"metrics": predictions_to_metrics(each)}))
        for client, each in sums.items()
    }
    monkeypatch.setattr(stop_set, "ask", lambda *_: Replies(answers))
    given = parse_settings(
        {"num-clients": 3, "stop-set": "always", "stop-set-size": 120, **settings}
    )
    federation: Any = SimpleNamespace(clients=tuple(numbers))
    order: Any = SimpleNamespace(settings=given)
    return observe_stop_set(federation, order, ArrayRecord(), 2, SAMPLES, lambda _: None)


def test_a_client_has_as_many_as_it_said_and_at_most_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = told(monkeypatch, {0: 40, 1: 30})
    assert found.failures == {}
    assert found.values is not None
    # Of 40 + 30, and 40 of the client that is away.
    assert (found.values.drawn, found.values.predicted, found.values.compared) == (110, 70, 70)
    found = told(monkeypatch, {0: 41, 1: 31})
    assert found.failures.keys() == {0, 1}
    assert found.values is not None
    assert (found.values.drawn, found.values.predicted, found.values.kappa) == (110, 0, None)


def test_a_sites_folder_may_have_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(monkeypatch, {0: 40, 1: 40, 2: 40}, partition="sites")
    assert found.values is not None
    assert (found.values.drawn, found.values.predicted) == (120, 120)
    assert told(monkeypatch, {1: 41}, partition="sites").failures.keys() == {1}
