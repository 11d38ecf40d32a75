"""What the server keeps of its sites for those who watch, by a clock that stands still."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.errors import QuorumNotReached
from ahfal_app.ledger import Ledger
from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.results.records import Failure, RoundRecord
from ahfal_app.results.status import STATUS, Phase, RunStatus, SiteStatus, State, read_status
from ahfal_app.server.watch import StatusKeeper, Waiting, pause_after

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
RUN = "0123456789abcdef"


class Sites:
    """The federation of a test: who was seen when, and what they are called."""

    def __init__(self) -> None:
        self.now = START
        self.seen: dict[int, dt.datetime] = {}
        self.nodes: dict[str, dt.datetime] = {}

    def later(self, hours: float) -> dt.datetime:
        self.now += dt.timedelta(hours=hours)
        return self.now

    def sightings(self) -> dict[int, dt.datetime]:
        return self.seen

    def connected(self) -> dict[str, dt.datetime]:
        return self.nodes

    def site(self, client: int) -> str:
        return ("North", "<i>South</i>", "")[client]


def ledger(spent: int, reserved: int) -> Ledger:
    return Ledger(spent + reserved, spent, reserved, 0)


def answer(spent: int, reserved: int, longest: int = 0, hours: float = 0.0) -> QueryAnswer:
    held = ledger(spent, reserved)
    return QueryAnswer(0, spent, reserved, held, longest=longest, longest_seconds=3600 * hours)


def members(*spent: int, absent: int | None = None):
    found = {
        client: SimpleNamespace(ledger=ledger(labels, 0), version="0.1.0", device="cpu")
        for client, labels in enumerate(spent)
        if client != absent
    }
    failures = {} if absent is None else {absent: "did not join: its node did not connect"}
    return SimpleNamespace(members=found, failures=failures)


@pytest.fixture
def sites() -> Sites:
    return Sites()


def keeper(folder: Path, sites: Sites, run: str = RUN) -> StatusKeeper:
    warnings: list[str] = []
    kept = StatusKeeper(folder, run, sites, warnings.append, now=lambda: sites.now)  # type: ignore[arg-type]
    kept.warnings = warnings  # type: ignore[attr-defined]
    return kept


def written(folder: Path) -> RunStatus:
    status = read_status(folder)
    assert status is not None
    return status


def test_before_they_join_sites_are_told_by_what_they_are_called(tmp_path: Path, sites: Sites):
    sites.nodes = {"South": START, "North": START}
    status = keeper(tmp_path, sites).status()
    assert status.phase is Phase.JOINING
    assert status.sites == (
        SiteStatus(client=None, name="North", last_seen=START),
        SiteStatus(client=None, name="South", last_seen=START),
    )


def test_a_phase_has_begun_when_it_was_first_told(tmp_path: Path, sites: Sites):
    kept = keeper(tmp_path, sites)
    kept.phase(Phase.TRAINING, 0, 1)
    begun = sites.now
    sites.later(1)
    kept.phase(Phase.TRAINING, 0, 2)
    status = kept.status()
    assert (status.phase, status.phase_since) == (Phase.TRAINING, begun)
    assert (status.cycle, status.round) == (0, 2)


def test_labels_are_missing_since_it_was_first_known(tmp_path: Path, sites: Sites):
    kept = keeper(tmp_path, sites)
    kept.joined(members(5, 5))
    asked = sites.later(1)
    kept.standing(1, {0: answer(5, 4, 4, 0.0), 1: answer(9, 0)}, {})
    sites.later(2)
    kept.standing(1, {0: answer(6, 3, 3, 2.0)}, {})
    first, second = kept.status().sites
    assert (first.wanted, first.given, first.missing) == (9, 6, 3)
    assert (first.missing_since, first.longest, first.longest_since) == (asked, 3, asked)
    assert (second.missing, second.missing_since, second.longest) == (0, None, 0)
    assert kept.status().phase is Phase.LABELLING
    assert (kept.status().waiting_for, kept.status().waiting_since) == (1, asked)
    kept.standing(1, {0: answer(9, 0)}, {})
    assert kept.status().sites[0].missing_since is None
    kept.phase(Phase.TRAINING, 1, 1)
    again = sites.later(1)
    kept.standing(2, {0: answer(9, 2, 2, 0.0)}, {})
    assert kept.status().sites[0].missing_since == again
    assert kept.status().waiting_since == again


def test_how_long_an_answer_takes_to_come_changes_nothing(tmp_path: Path, sites: Sites):
    kept = keeper(tmp_path, sites)
    kept.joined(members(5))
    asked = sites.later(1)
    kept.standing(1, {0: answer(5, 4, 4, 0.0)}, {})
    for _ in range(10):
        sites.later(1.01)
        kept.standing(1, {0: answer(5, 4, 4, 1.0)}, {})
        sites.now = asked
    assert kept.status().sites[0].longest_since == asked
    # What was asked for in another cycle is another thing.
    sites.later(5)
    kept.standing(1, {0: answer(7, 2, 2, 1.0)}, {})
    assert kept.status().sites[0].longest_since == sites.now - dt.timedelta(hours=1)


def test_a_site_whose_clock_is_wrong_does_no_harm(tmp_path: Path, sites: Sites):
    kept = keeper(tmp_path, sites)
    kept.joined(members(5))
    kept.standing(1, {0: answer(5, 4, 4, 1e8)}, {})
    (site,) = kept.status().sites
    assert (site.longest, site.longest_since) == (4, None)


def test_a_resumed_run_goes_on_with_what_was_written(tmp_path: Path, sites: Sites):
    with keeper(tmp_path, sites) as kept:
        kept.joined(members(5, 5, absent=1))
        sites.seen = {0: START}
        kept.phase(Phase.CHOOSING, 1, 2)
        asked = sites.later(1)
        kept.standing(2, {0: answer(5, 4, 4, 0.0)}, {})
    resumed = keeper(tmp_path, sites)
    sites.later(5)
    sites.seen = {}
    known = SimpleNamespace(ledger=ledger(5, 4), version="0.1.0", device="cpu")
    resumed.joined(SimpleNamespace(members={0: known}, failures={1: "away"}))
    resumed.standing(2, {0: answer(5, 4)}, {})
    status = resumed.status()
    assert (status.resumed, status.started) == (1, START)
    assert (status.waiting_for, status.waiting_since) == (2, asked)
    first, second = status.sites
    assert (first.missing_since, first.longest, first.longest_since) == (asked, 4, asked)
    assert first.last_seen == START
    assert (second.name, second.failing) == ("<i>South</i>", "away")


def test_another_runs_status_is_not_gone_on_with(tmp_path: Path, sites: Sites):
    with keeper(tmp_path, sites):
        pass
    assert keeper(tmp_path, sites, run="f" * 16).status().resumed == 0
    (tmp_path / STATUS).write_text("{")
    kept = keeper(tmp_path, sites)
    assert kept.status().resumed == 0
    (warning,) = kept.warnings  # type: ignore[attr-defined]
    assert "it is begun anew" in warning


def record(*failures: Failure) -> RoundRecord:
    return RoundRecord(cycle=0, round=1, clients=1, failed=failures, num_examples=1, train_loss=1.0)


def test_what_fails_is_told_until_the_site_answers_again(tmp_path: Path, sites: Sites):
    kept = keeper(tmp_path, sites)
    kept.joined(members(5, 5))
    sites.seen = {0: sites.now, 1: sites.now}
    failed = sites.later(1)
    kept.recorded(record(Failure(client=1, reason="x" * 10_000)))
    sites.later(1)
    kept.recorded(record(Failure(client=1, reason="no answer")))
    _, second = kept.status().sites
    assert (second.failing, second.failing_since) == ("no answer", failed)
    sites.seen = {0: sites.now, 1: sites.later(1)}
    assert kept.status().sites[1].failing == ""
    anew = sites.later(1)
    kept.standing(1, {}, {1: "y" * 10_000})
    second = kept.status().sites[1]
    assert (len(second.failing), second.failing_since) == (500, anew)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, State.FINISHED, ""),
        (QuorumNotReached("1 of 3"), State.FAILED, "QuorumNotReached: 1 of 3"),
        (KeyboardInterrupt(), State.INTERRUPTED, "KeyboardInterrupt"),
    ],
)
def test_the_end_is_on_the_disk_when_it_is_there(
    tmp_path: Path, sites: Sites, error: BaseException | None, state: State, reason: str
):
    kept = keeper(tmp_path, sites)
    before = threading.active_count()
    try:
        with kept:
            assert written(tmp_path).state is State.RUNNING
            if error is not None:
                raise error
    except (QuorumNotReached, KeyboardInterrupt):
        pass
    assert threading.active_count() == before
    status = written(tmp_path)
    assert (status.state, status.reason, status.phase) == (state, reason, Phase.ENDED)


def test_a_full_disk_is_a_warning_and_no_more(
    tmp_path: Path, sites: Sites, monkeypatch: pytest.MonkeyPatch
):
    def full(folder: Path, status: RunStatus) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ahfal_app.server.watch.write_status", full)
    with keeper(tmp_path, sites) as kept:
        kept.phase(Phase.TRAINING, 0, 1)
    (warning,) = kept.warnings  # type: ignore[attr-defined]
    assert "No space left" in warning


def test_what_is_told_is_written_by_its_thread_and_seldom(
    tmp_path: Path, sites: Sites, monkeypatch: pytest.MonkeyPatch
):
    looks: list[Waiting | None] = []
    there = threading.Event()

    def looked(waiting: Waiting | None) -> None:
        looks.append(waiting)
        there.set()

    kept = StatusKeeper(tmp_path, RUN, sites, lambda _: None, looked, lambda: sites.now)  # type: ignore[arg-type]
    with kept:
        kept.joined(members(5))
        kept.standing(3, {0: answer(5, 2, 2, 1.0)}, {})
        for number in range(1, 1000):
            kept.phase(Phase.LABELLING, 0, number)
        assert there.wait(60)
    # The first look may have come before anything was told.
    assert 1 <= len(looks) < 50
    assert written(tmp_path).round == 999


STEPS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 3)), max_size=12)


@given(STEPS)
def test_missing_labels_and_their_age_always_go_together(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int]]
):
    sites = Sites()
    kept = keeper(tmp_path_factory.mktemp("run"), sites)
    kept.joined(members(0))
    since: dt.datetime | None = None
    for spent, reserved, hours in steps:
        now = sites.later(hours)
        kept.standing(1, {0: answer(spent, reserved, min(reserved, 2), hours)}, {})
        since = None if not reserved else since or now
        (site,) = kept.status().sites
        assert (site.given, site.missing) == (spent, reserved)
        assert site.missing_since == since
        assert (site.longest_since is None) == (reserved == 0)


@pytest.mark.parametrize(
    ("spent", "pause"),
    # A second at least, a fiftieth of the time for writing, a sign of life every ten seconds.
    [(0.0, 1.0), (0.02, 1.0), (0.12, 6.0), (5.0, 10.0)],
)
def test_the_more_sites_the_more_seldom_it_is_written(spent: float, pause: float):
    assert pause_after(spent) == pytest.approx(pause)
