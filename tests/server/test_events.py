"""What the server tells elsewhere: to whom, what, how often, and what happens where that fails."""

from __future__ import annotations

import datetime as dt
import json
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.simulation import Simulation

from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError, QuorumNotReached
from ahfal_app.ledger import Ledger
from ahfal_app.messages.protocol import Order
from ahfal_app.results.arrivals import statistics_warning
from ahfal_app.results.records import CycleRecord, DriftRecord, Failure, Forgetting, SiteDrift
from ahfal_app.results.status import SiteStatus
from ahfal_app.server import events as events_module
from ahfal_app.server.events import EVENTS, Events, EventSource, checked_target, deliver
from ahfal_app.server.watch import Waiting

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


class Listener:
    """An address that answers as it is told, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[dict[str, object]] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.heard.append(json.loads(body))
                listener.answers.wait(60)
                self.send_response(listener.status)
                if 300 <= listener.status < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/secret"

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.answers.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener().listening() as one:
        yield one


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A command that keeps what it reads, and what it is called with."""
    path = tmp_path / "with space" / "notify"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        f"file = pathlib.Path({str(tmp_path / 'heard')!r})\n"
        "with file.open('a') as heard:\n"
        "    heard.write(json.dumps([sys.argv[1:], json.load(sys.stdin)]) + '\\n')\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def cycle(number: int, *failed: Failure) -> CycleRecord:
    return CycleRecord(
        cycle=number,
        labels=90,
        labels_per_client=(50, 40),
        accuracy=0.625,
        class_accuracy=(0.5, 0.75),
        loss=1.0,
        tau=12,
        bought=10,
        ledger=Ledger(100, 90, 0, 10),
        failed=failed,
    )


def waiting(cycle: int, hours: float, *missing: int) -> Waiting:
    sites = (
        SiteStatus(client=c, name=f"$(touch {c})", missing=count, longest=1, longest_since=NOW)
        for c, count in enumerate(missing)
    )
    return Waiting(cycle, NOW - hours * HOUR, tuple(sites))


def events(folder: Path, target: str, warn=lambda _: None, hours: float = 24.0) -> Events:
    return Events(target, hours, EventSource("0" * 16, folder, 6), warn, lambda: NOW)


def test_an_address_is_told_of_all_events(tmp_path: Path, listener: Listener):
    with events(tmp_path, listener.url) as told:
        told.cycle_done(cycle(0, Failure(client=1, site="St Anne", reason="a patient's name")))
        told.looked(None)
        told.looked(waiting(1, 23.9, 3))
        told.looked(waiting(1, 24.0, 3, 2))
    done, waits, finished = listener.heard
    assert done["event"] == "cycle-done"
    assert done["text"] == f"{tmp_path.name} has done cycle 1 of 6: test accuracy 62.50 % with " + (
        "90 labels"
    )
    assert (done["cycle"], done["accuracy"], done["labels"]) == (0, 0.625, 90)
    assert done["failed"] == [{"client": 1, "site": "St Anne"}]
    assert (waits["event"], waits["cycle"], waits["missing"]) == ("waiting-for-labels", 1, 5)
    assert waits["since"] == "2026-02-28T12:00:00+00:00"
    assert [site["site"] for site in waits["sites"]] == ["$(touch 0)", "$(touch 1)"]
    assert "touch" not in str(waits["text"])
    assert finished["event"] == "run-finished"
    for heard in listener.heard:
        assert (heard["run"], heard["name"]) == ("0" * 16, tmp_path.name)


def test_drift_is_an_event_where_a_test_says_so(tmp_path: Path, listener: Listener):
    def drifting(corrected: float, pooled: float | None) -> CycleRecord:
        sites = (
            SiteDrift(client=0, site="St Anne", p=0.02, corrected=corrected, statistic=9, df=2),
            SiteDrift(client=1, refusal="a window has no audit label"),
        )
        drift = DriftRecord(method="chi-square", window=2, sites=sites, pooled=pooled)
        return cycle(3).model_copy(update={"drift": drift})

    with events(tmp_path, listener.url) as told:
        told.drifted(cycle(3))
        told.drifted(drifting(0.05, 0.05))
        told.drifted(drifting(0.04, 0.2))
        told.drifted(drifting(0.04, 0.2))
    drift, finished = listener.heard
    assert (drift["event"], drift["cycle"], drift["window"]) == ("drift", 3, 2)
    assert drift["sites"] == [{"client": 0, "site": "St Anne", "p": 0.04}]
    assert drift["text"] == (
        f"{tmp_path.name} sees the class mix drift in cycle 4, at 1 of 2 clients"
    )
    assert finished["event"] == "run-finished"
    # All clients' tests together may say what no single one does.
    assert drifting(0.2, 0.01).drift.is_drift
    assert not drifting(0.2, 0.01).drift.drifting


def test_statistics_that_may_be_noise_are_an_event_once(tmp_path: Path, listener: Listener):
    def counted(effective: float) -> CycleRecord:
        lasting = Forgetting(
            deviation=(0.0,) * 10, low=(True,) * 10, effective=(effective, effective)
        )
        update = {"forgetting": lasting, "mean": (0.1,) * 10, "tau": 12.0}
        return cycle(2).model_copy(update=update)

    settings = parse_settings({"forget": 1.0})
    with events(tmp_path, listener.url) as told:
        for record in (cycle(2), counted(50.0), counted(10.0), counted(10.0)):
            told.doubted(record, statistics_warning(record, settings))
    noisy, finished = listener.heard
    assert (noisy["event"], noisy["cycle"]) == ("noisy-statistics", 2)
    # The deviation of a share of a tenth among ten labels: 9.5 points.
    assert "10.0 effective ones" in str(noisy["text"])
    assert "9.5 points, more than half of tau=12" in str(noisy["reason"])
    assert finished["event"] == "run-finished"
    by_spread = parse_settings({"forget": 1.0, "dispersion": "coefficient-of-variation"})
    assert not statistics_warning(counted(10.0), by_spread)


def test_a_command_reads_the_same_and_no_word_of_a_site_is_part_of_it(
    tmp_path: Path, program: Path
):
    target = checked_target(f"'{program}' --to 'two words' '$HOME'")
    with events(tmp_path, target) as told:
        told.looked(waiting(1, 30.0, 3))
    lines = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
    assert [arguments for arguments, _ in lines] == [["--to", "two words", "$HOME"]] * 2
    assert [content["event"] for _, content in lines] == ["waiting-for-labels", "run-finished"]
    assert not (tmp_path / "0").exists()
    assert not Path("0").exists()


def test_a_secret_may_stand_in_the_environment_alone(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match="has no 'AHFAL_ON_EVENT'"):
        checked_target("env:AHFAL_ON_EVENT")
    monkeypatch.setenv("AHFAL_ON_EVENT", listener.url)
    assert checked_target("env:AHFAL_ON_EVENT") == "env:AHFAL_ON_EVENT"
    with events(tmp_path, "env:AHFAL_ON_EVENT") as told:
        told.cycle_done(cycle(0))
    assert [h["event"] for h in listener.heard] == ["cycle-done", "run-finished"]
    monkeypatch.setenv("AHFAL_ON_EVENT", "ftp://elsewhere")
    with pytest.raises(ConfigError, match="on-event"):
        checked_target("env:AHFAL_ON_EVENT")


def test_another_partys_words_are_no_part_of_the_text(tmp_path: Path, listener: Listener):
    with pytest.raises(QuorumNotReached), events(tmp_path, listener.url):
        raise QuorumNotReached("client 1: \x1b[2J<!channel> <https://elsewhere|log in>")
    (heard,) = listener.heard
    assert heard["text"] == f"{tmp_path.name} has failed: QuorumNotReached"
    assert "\x1b" not in str(heard["reason"])


def test_nothing_is_told_twice_whatever_is_resumed(tmp_path: Path, listener: Listener):
    for _ in range(3):
        with events(tmp_path, listener.url) as told:
            for _ in range(2):
                told.cycle_done(cycle(0))
                told.looked(waiting(1, 30.0, 3))
    assert [h["event"] for h in listener.heard] == [
        "cycle-done",
        "waiting-for-labels",
        "run-finished",
    ]
    with events(tmp_path, listener.url) as told:
        told.cycle_done(cycle(1))
        told.looked(waiting(2, 30.0, 3))
    # It has ended anew, with one cycle more than before.
    assert listener.heard[-1]["event"] == "run-finished"
    assert len(listener.heard) == 6
    source = EventSource("0" * 16, tmp_path, 8)
    with Events(listener.url, 24.0, source, lambda _: None, lambda: NOW):
        pass  # Nothing was left to be done.
    assert len(listener.heard) == 6


def test_each_start_that_fails_is_an_event_and_an_interruption_is_none(
    tmp_path: Path, listener: Listener
):
    for number in range(2):
        told = events(tmp_path, listener.url)
        told._now = lambda number=number: NOW + number * HOUR  # type: ignore[misc]
        with pytest.raises(QuorumNotReached), told:
            raise QuorumNotReached("1 of 3 clients answered")
        with pytest.raises(KeyboardInterrupt), events(tmp_path, listener.url):
            raise KeyboardInterrupt
    reasons = [h["reason"] for h in listener.heard]
    assert reasons == ["QuorumNotReached: 1 of 3 clients answered"] * 2


@pytest.mark.parametrize("status", [500, 404, 302, 307])
def test_a_refusal_is_a_warning_without_the_secret(tmp_path: Path, listener: Listener, status: int):
    listener.status = status
    warnings: list[str] = []
    with events(tmp_path, listener.url, warnings.append):
        pass
    (warning,) = warnings
    assert f"status {status}; the run goes on" in warning
    assert "secret" not in warning
    assert len(listener.heard) == 1  # No redirect is followed.


def test_an_address_that_is_away_or_hangs_is_told(listener: Listener):
    with Listener().listening() as other:
        url = other.url
    assert "refused" in deliver(url, b"{}")
    listener.answers.clear()
    assert "timed out" in deliver(listener.url, b"{}", timeout=0.05)


def test_a_command_that_fails_hangs_or_is_gone_is_told(tmp_path: Path):
    assert deliver("/bin/sh -c 'exit 3'", b"{}") == "exit code 3"
    assert deliver("/bin/sleep 60", b"{}", timeout=0.05) == "it was not done within 0.05 s"
    assert "No such file" in deliver(str(tmp_path / "gone"), b"{}")
    assert deliver("/bin/true", b"x" * 10**6) == ""


def test_the_run_waits_for_nobody(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events_module, "TIMEOUT_S", 0.02)
    listener.answers.clear()
    warnings: list[str] = []
    with events(tmp_path, listener.url, warnings.append) as told:
        told.cycle_done(cycle(0))
        told.cycle_done(cycle(1))
    assert any("not all could be told" in warning for warning in warnings)
    told_before = json.loads((tmp_path / EVENTS).read_text())["told"]
    assert told_before == ["cycle-done:0", "cycle-done:1", "run-finished:2"]
    listener.answers.set()
    told._thread.join(60)


@pytest.mark.parametrize("content", ["{", "[]", '{"told": 3}', '{"other": []}'])
def test_where_nobody_knows_what_was_told_nothing_is(
    tmp_path: Path, listener: Listener, content: str
):
    (tmp_path / EVENTS).write_text(content)
    warnings: list[str] = []
    with events(tmp_path, listener.url, warnings.append) as told:
        told.cycle_done(cycle(0))
    assert "no more events are told" in warnings[0]
    assert listener.heard == []


def test_nobody_is_told_where_nothing_is_set(tmp_path: Path):
    with events(tmp_path, "") as told:
        told.cycle_done(cycle(0))
        told.looked(waiting(1, 99.0, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "target",
    [
        "http://",
        "https://user:password@host/x",
        "http://host:99999/",
        "http://host/a b",
        "http://hö.example/",
        "ftp://host/x",
        "no-such-command-here --now",
        "'unbalanced",
        "   ",
        "./here/not",
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_starts(simulation: Simulation, target: str):
    with pytest.raises(ConfigError, match="on-event="):
        checked_target(target)
    with pytest.raises(ConfigError, match="on-event="):
        simulation(**{"on-event": target})


def test_a_command_means_the_same_from_everywhere(program: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(program.parent)
    assert checked_target("./notify -v") == f"'{program}' -v"
    monkeypatch.setenv("PATH", str(program.parent))
    assert checked_target("notify") == f"'{program}'"
    assert checked_target("https://chat.example.org/hooks/abc?x=1") == (
        "https://chat.example.org/hooks/abc?x=1"
    )


def test_sites_do_not_hear_of_it():
    settings = parse_settings({"on-event": "notify", "on-event-after-hours": 7})
    said = str(Order(settings, "0" * 16, "/run", "0" * 64).to_record()["settings"])
    assert "on-event" not in said
    assert "strategy" in said


def test_a_run_tells_and_a_resumed_one_only_what_is_new(simulation: Simulation, listener: Listener):
    outcome = simulation(rounds=1, cycles=2, **{"on-event": listener.url})
    assert [h["event"] for h in listener.heard] == ["cycle-done", "cycle-done", "run-finished"]
    accuracies = [cycle.accuracy for cycle in outcome.metrics.cycles]
    assert [h["accuracy"] for h in listener.heard[:2]] == accuracies
    simulation.resume(outcome.folder)
    assert len(listener.heard) == 3
    assert "secret" in (outcome.folder / "config.yaml").read_text()
    for name in ("report.html", "environment.json", "model-card.md", "summary.json"):
        assert "secret" not in (outcome.folder / name).read_text(), name
