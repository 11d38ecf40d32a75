"""What the server makes of the clients' comparisons of two windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import RecordDict

from ahfal_app.config import parse_settings
from ahfal_app.drift import DriftTest, Found, Refusal, chi_square_p
from ahfal_app.messages.answers import drift_to_metrics
from ahfal_app.results.records import DriftRecord
from ahfal_app.server import drift
from ahfal_app.server.drift import judge_drift
from ahfal_app.server.federation import Replies


def judged(monkeypatch: pytest.MonkeyPatch, found: dict[int, Found], method: str) -> DriftRecord:
    """Return what comes of the clients' answers."""
    answers: Any = {
        client: SimpleNamespace(content=RecordDict({"metrics": drift_to_metrics(each)}))
        for client, each in found.items()
    }
    monkeypatch.setattr(drift, "ask", lambda *_: Replies(answers))
    stream = {"arrivals": "count", "arrival-start": 9, "arrival-rate": 9, "audit-share": 0.5}
    settings = parse_settings({**stream, "drift-test": method, "drift-window": 1})
    federation: Any = SimpleNamespace(clients=tuple(found), site=lambda client: f"site {client}")
    order: Any = SimpleNamespace(settings=settings, cycle=1)
    record = judge_drift(federation, order, 3, lambda _: None, lambda _: None).record
    assert record is not None
    return record


def test_p_values_are_corrected_for_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three tests below the level one is left: 3 · 0.01, 2 · 0.03, and no less for 0.04."""
    values = {0: 0.03, 1: 0.01, 3: 0.04}
    found: dict[int, Found] = {client: DriftTest(4.0, 4.0, 1, p) for client, p in values.items()}
    # Who cannot judge makes no test of it.
    found[2] = Refusal.TOO_FEW
    record = judged(monkeypatch, found, "permutation")
    told = {site.client: (site.p, site.corrected) for site in record.sites}
    assert told == {
        0: (0.03, pytest.approx(0.06)),
        1: (0.01, pytest.approx(0.03)),
        2: (None, None),
        3: (0.04, pytest.approx(0.06)),
    }
    assert [site.who for site in record.drifting] == ["site 1 (client 1)"]
    assert record.pooled is None
    assert record.is_drift
    # Each of two alone would be drift.
    record = judged(monkeypatch, {c: found[c] for c in (0, 3)}, "permutation")
    assert [site.corrected for site in record.sites] == pytest.approx([0.06, 0.06])
    assert not record.drifting
    assert not record.is_drift


def test_and_so_are_those_of_the_chi_square_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    # p of 4.5 with one degree of freedom is .034; what a client says of it does not count.
    found: dict[int, Found] = {client: DriftTest(4.5, 4.5, 1, 0.9) for client in range(2)}
    found[2] = DriftTest(0.0, 0.0, 2, 0.9)
    record = judged(monkeypatch, found, "chi-square")
    p = chi_square_p(4.5, 1)
    assert 0.03 < p < 0.05
    assert [site.p for site in record.sites] == pytest.approx([p, p, 1])
    assert [site.corrected for site in record.sites] == pytest.approx([3 * p, 3 * p, 1])
    assert not record.drifting
    assert record.pooled == pytest.approx(chi_square_p(9, 4))
