"""Runs that are watched while they go on: in this process, while people label, and resumed."""

from __future__ import annotations

import csv
import datetime as dt
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from support.killing import Killed
from support.simulation import Simulation
from support.spoiling import metric, of_client

from ahfal_app.client_app import app as client_app
from ahfal_app.code_version import __version__
from ahfal_app.errors import QuorumNotReached
from ahfal_app.labels.spreadsheet import write_csv
from ahfal_app.results.overview import Condition, Overview, Overviews
from ahfal_app.results.status import Phase, RunStatus, State, read_status
from ahfal_app.server import purchase, watch

#: Two cycles at clients whose people label.
BY_PEOPLE: dict[str, object] = {
    "oracle": "files",
    "cycles": 2,
    "rounds": 1,
    "label-deadline": 60.0,
    "max-train-samples": 450,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purchase, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(purchase, "_LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(watch, "_LEAST_PAUSE_S", 0.01)
    # Files that the people below write are complete: they rename them.
    monkeypatch.setattr("ahfal_app.oracle.files._SETTLED_S", 0.0)


def status_of(folder: Path) -> RunStatus:
    status = read_status(folder)
    assert status is not None
    return status


def seen(folder: Path) -> Overview:
    return Overviews(folder).one(dt.datetime.now(dt.UTC))


class People(threading.Thread):
    """Do something at a run's folder, step by step, each once what it waits for is there."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._steps = steps
        self.found: list[Any] = []

    def run(self) -> None:
        for step in self._steps:
            while not (found := step()):
                time.sleep(0.005)
            self.found.append(found)


def requests(folder: Path, cycle: int) -> list[Path]:
    return sorted(folder.glob(f"clients/*/oracle/cycle-{cycle:03d}-*"))


def label(request: Path, count: int | None = None) -> int:
    """Say that images of a request show a three; return how many are answered."""
    with (request / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    write_csv(request / "labels.csv", ("file", "label"), [(row["file"], "3") for row in rows])
    return len(rows)


def label_all(folder: Path) -> int:
    return sum(label(request) for request in folder.glob("clients/*/oracle/cycle-*"))


def waits(folder: Path, cycle: int, missing: int | None = None) -> Callable[[], Overview | None]:
    """Return what looks whether a run waits for a cycle's labels, and for how many."""

    def look() -> Overview | None:
        if not (folder / "status.json").exists() or not (folder / "metrics.jsonl").exists():
            return None
        if status_of(folder).waiting_for != cycle:
            return None
        run = seen(folder)
        is_it = run.condition is Condition.WAITING and (missing is None or run.missing == missing)
        return run if is_it and run.longest is not None else None

    return look


def test_a_run_says_what_became_of_it_and_of_its_sites(simulation: Simulation):
    phases: list[tuple[Phase, int, int]] = []

    class Noted(watch.StatusKeeper):
        def phase(self, phase: Phase, cycle: int, round_: int = 0) -> None:
            phases.append((phase, cycle, round_))
            super().phase(phase, cycle, round_)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ahfal_app.server.run.StatusKeeper", Noted)
        outcome = simulation(cycles=2)
    status = status_of(outcome.folder)
    assert (status.state, status.phase, status.cycle, status.round) == (
        State.FINISHED,
        Phase.ENDED,
        1,
        2,
    )
    ledger = outcome.metrics.cycles[-1].ledger
    assert sum(site.given for site in status.sites) == ledger.spent
    assert [site.client for site in status.sites] == [0, 1, 2]
    for site in status.sites:
        assert (site.version, site.device, site.missing, site.failing) == (
            __version__,
            "cpu",
            0,
            "",
        )
        assert site.last_seen is not None
        assert status.started <= site.last_seen <= status.written
    assert phases == [
        (Phase.JOINING, 0, 0),
        *((Phase.TRAINING, 0, number) for number in (1, 2)),
        (Phase.TESTING, 0, 2),
        (Phase.CHOOSING, 0, 2),
        *((Phase.TRAINING, 1, number) for number in (1, 2)),
        (Phase.TESTING, 1, 2),
    ]
    run = seen(outcome.folder)
    assert run.condition is Condition.FINISHED
    assert [point.accuracy for point in run.curve] == outcome.summary["accuracy_per_cycle"]


@pytest.mark.slow
def test_while_people_label_the_run_says_for_whom_it_waits(simulation: Simulation):
    folder = Path(str(simulation.base["output-dir"])) / "labelled"
    people = People(
        waits(folder, 0),
        lambda: label_all(folder),
        waits(folder, 1),
        # One site answers in part, and the others not at all.
        lambda: label(requests(folder, 1)[0], 3),
        waits(folder, 1, missing=3 * 8 - 3),
        lambda: label_all(folder),
    )
    people.start()
    outcome = simulation(
        BY_PEOPLE, name="labelled", **{"query-labels": 8, "initial-labels": 8, "target-labels": 16}
    )
    people.join(60)
    first, _, second, answered, third, _ = people.found
    assert first.missing == 24
    assert [site.missing for site in second.sites] == [8, 8, 8]
    assert answered == 3
    assert [site.missing for site in third.sites] == [5, 8, 8]
    assert third.longest.images == 8
    for site, before in zip(third.sites, second.sites, strict=True):
        assert site.missing_since == before.missing_since
        assert site.longest == site.missing
        # By the site's clock, which is this one, it waits since before the server knew.
        assert site.longest_since <= site.missing_since
    assert (third.cycle, third.num_cycles) == (0, 2)
    status = status_of(outcome.folder)
    assert status.state is State.FINISHED
    assert [(site.wanted, site.given) for site in status.sites] == [(16, 16)] * 3


@pytest.mark.slow
def test_since_when_labels_are_missing_outlives_the_server(simulation: Simulation):
    folder = Path(str(simulation.base["output-dir"])) / "killed"
    asked = 0

    def dying(message: Message, context: Context) -> Message:
        nonlocal asked
        if message.metadata.message_type == "query.collect" and waits(folder, 1)():
            asked += 1
            raise Killed
        return client_app(message, context)

    people = People(waits(folder, 0), lambda: label_all(folder))
    people.start()
    with pytest.raises(Killed):
        simulation(BY_PEOPLE, handler=dying, name="killed")
    people.join(60)
    before = status_of(folder)
    assert asked
    assert before.state is State.INTERRUPTED
    assert seen(folder).condition is Condition.INTERRUPTED
    people = People(waits(folder, 1), lambda: label_all(folder))
    people.start()
    simulation.resume(folder)
    people.join(60)
    during, after = people.found[0], status_of(folder)
    assert [site.missing_since for site in during.sites] == [
        site.missing_since for site in before.sites
    ]
    assert (after.state, after.resumed, after.started) == (State.FINISHED, 1, before.started)
    assert after.waiting_since == before.waiting_since


def test_waiting_for_long_is_an_event_and_no_name_of_an_image_is_in_it(
    simulation: Simulation, tmp_path: Path
):
    heard = tmp_path / "heard"
    folder = Path(str(simulation.base["output-dir"])) / "told"
    people = People(
        *(waits(folder, 0), lambda: heard.exists(), lambda: label_all(folder)),
        *(waits(folder, 1), lambda: len(lines(heard)) >= 2, lambda: label_all(folder)),
    )
    people.start()
    settings = {"on-event": f"/bin/sh -c 'cat >> {heard}; echo >> {heard}'"}
    simulation(BY_PEOPLE, name="told", **settings, **{"on-event-after-hours": 0.0})
    people.join(60)
    told = lines(heard)
    # The second purchase is part of the first cycle.
    assert [each["event"] for each in told] == [
        *(["waiting-for-labels"] * 2),
        *(["cycle-done"] * 2),
        "run-finished",
    ]
    assert [each["cycle"] for each in told if each["event"] == "waiting-for-labels"] == [0, 1]
    assert ".png" not in heard.read_text()
    (request,) = requests(folder, 1)[:1]
    with (request / "request.csv").open(encoding="utf-8-sig", newline="") as file:
        names = [row["original"] for row in csv.DictReader(file)]
    assert names
    assert not any(name in heard.read_text() for name in names)


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    complete = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in complete.splitlines() if line]


def test_a_run_that_fails_says_why(simulation: Simulation):
    handler = of_client(1, "train", metric("num-examples", -1), times=99)
    with pytest.raises(QuorumNotReached):
        simulation(handler=handler, quorum=1.0, name="failed")
    folder = Path(str(simulation.base["output-dir"])) / "failed"
    status = status_of(folder)
    assert status.state is State.FAILED
    assert status.reason.startswith("QuorumNotReached: cycle 0, round 1: 2 of 3 clients")
    assert seen(folder).condition is Condition.FAILED
    assert seen(folder).reason == status.reason


def test_a_site_that_fails_is_told_with_its_reason(simulation: Simulation):
    handler = of_client(1, "train", metric("num-examples", -1), times=99)
    outcome = simulation(handler=handler, cycles=1)
    status = status_of(outcome.folder)
    assert [site.failing[:16] for site in status.sites] == ["", "num-examples=-1:", ""]
    assert [site.failures for site in seen(outcome.folder).sites] == [0, 2, 0]
