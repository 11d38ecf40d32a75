"""Runs that a rule ends before their target: no purchase, a normal end, and a way to go on."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from support.killing import killed_at, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError
from ahfal_app.labels.records import LabelReceipt
from ahfal_app.oracle.simulated import SimulatedOracle
from ahfal_app.results.progress import Progress
from ahfal_app.server.preflight import check_settings
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare

#: So little is wanted that the second cycle is the last one.
STOPS: dict[str, Any] = {"stopping": "target", "stopping.accuracy": 0.01, "stopping.after": 2}


def go_on(outcome: Outcome, **said: object) -> Outcome:
    start = prepare({"resume": str(outcome.folder), **said})
    with InProcessGrid(client_app, start.settings.num_clients) as grid:
        execute(start, grid, Progress(Console(file=io.StringIO())))
    return Outcome(outcome.folder, "")


@pytest.mark.slow
def test_a_rule_ends_a_run_without_a_purchase_and_the_run_can_go_on(
    simulation: Simulation,
) -> None:
    whole = simulation(name="whole")
    stopped = simulation(STOPS, name="stopped")
    cycles = stopped.metrics.cycles
    assert [cycle.accuracy for cycle in cycles] == [c.accuracy for c in whole.metrics.cycles[:2]]
    assert cycles[-1].bought == 0
    assert "reaches 0.01" in cycles[-1].stopped_by
    assert stopped.summary["complete"]
    assert stopped.summary["stopped_by"] == cycles[-1].stopped_by
    assert stopped.summary["stopped"] == ""
    assert "stopping='target': test accuracy" in stopped.log
    assert "reaches 0.01" in (stopped.folder / "report.html").read_text()
    before = stopped.result
    assert go_on(stopped).result == before
    went_on = go_on(stopped, stopping="none")
    assert went_on.result == whole.result
    assert went_on.summary["stopped_by"] == ""


@pytest.mark.slow
def test_a_killed_run_stops_where_one_that_ran_through_does(simulation: Simulation) -> None:
    straight = uninterrupted(simulation, **STOPS)
    for share in (0.5, 0.97):
        folder = killed_at(round(share * straight.events), simulation, **STOPS)
        assert simulation.resume(folder).result == straight.result


def test_rules_are_checked_before_anything_is_done() -> None:
    for settings, said in (
        ({"stopping": "gian"}, "stopping='gian': allowed is change | delta-f | gain | kappa"),
        ({"stopping": "gain", "stopping.accuracy": 0.5}, "stopping.accuracy: 'gain' has no such"),
        ({"stopping": "target", "stopping.accuracy": 90}, "stopping.accuracy=90: allowed is"),
    ):
        with pytest.raises(ConfigError) as error:
            check_settings(settings)
        assert said in str(error.value)


@pytest.mark.slow
def test_a_purchase_whose_labels_are_late_does_not_end_a_run_by_its_curve(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers before the fifth cycle; a curve of four would end the run after it."""
    answer = SimulatedOracle.collect

    def away(oracle: SimulatedOracle, request_id: str) -> list[LabelReceipt]:
        request = oracle._requests.get(request_id)
        return [] if request is None or request.cycle == 4 else answer(oracle, request_id)

    monkeypatch.setattr(SimulatedOracle, "collect", away)
    gain = {"stopping": "gain", "stopping.least": 0.99, "stopping.after": 5, "label-deadline": 0}
    cycles = simulation(gain, rounds=1, **{"target-fraction": 0.35}).metrics.cycles
    assert cycles[3].pending == cycles[3].budget > 0
    assert cycles[4].labels == cycles[3].labels
    assert not cycles[4].stopped_by
    assert "more labels promise" in cycles[5].stopped_by


def test_what_stopped_is_in_the_metrics(simulation: Simulation) -> None:
    folder = simulation(STOPS, rounds=1).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [line["stopped_by"] for line in lines if line["kind"] == "cycle"]
    assert [bool(text) for text in told] == [False, True]
