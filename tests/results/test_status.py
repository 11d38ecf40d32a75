"""`status.json`: what is written is read, and what is none is told as such."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.errors import ReportError
from ahfal_app.results.status import (
    SILENT_AFTER_S,
    STATUS,
    Phase,
    RunStatus,
    SiteStatus,
    State,
    read_status,
    write_status,
)

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

TIMES = st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))
COUNTS = st.integers(0, 10**12)
SITES = st.builds(
    SiteStatus,
    client=st.none() | st.integers(0, 10**6),
    name=st.text(),
    last_seen=st.none() | TIMES,
    wanted=COUNTS,
    given=COUNTS,
    missing=COUNTS,
    missing_since=st.none() | TIMES,
    longest=COUNTS,
    longest_since=st.none() | TIMES,
    failing=st.text(),
    failing_since=st.none() | TIMES,
    version=st.text(),
    device=st.text(),
)
STATUSES = st.builds(
    RunStatus,
    format=st.just(1),
    run=st.text(),
    state=st.sampled_from(State),
    reason=st.text(),
    phase=st.sampled_from(Phase),
    phase_since=TIMES,
    cycle=COUNTS,
    round=COUNTS,
    started=TIMES,
    written=TIMES,
    resumed=COUNTS,
    waiting_for=st.none() | COUNTS,
    waiting_since=st.none() | TIMES,
    version=st.text(),
    sites=st.lists(SITES, max_size=3).map(tuple),
)


def status(**more: object) -> RunStatus:
    values: dict[str, object] = {
        "run": "0" * 16,
        "state": State.RUNNING,
        "phase": Phase.TRAINING,
        "phase_since": NOW,
        "cycle": 0,
        "started": NOW,
        "written": NOW,
    }
    return RunStatus.model_validate(values | more)


@given(written=STATUSES)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: RunStatus
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_status(folder, written)
    assert read_status(folder) == written


def test_a_run_that_writes_none_has_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    write_status(tmp_path, status())
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda text: text[:200], "Invalid JSON"),
        (lambda text: "", "Invalid JSON"),
        (lambda text: text.replace('"format":1', '"format":2'), "format: Input should be 1"),
        (lambda text: text.replace('"cycle":0', '"cycle":-1'), "cycle: "),
        (lambda text: text.replace('"cycle":0', '"pixels":"AAAA","cycle":0'), "pixels: Extra"),
        (lambda text: "[]", "not a status of format 1"),
    ],
)
def test_what_is_no_status_is_told_as_such(tmp_path: Path, change, where: str) -> None:
    (tmp_path / STATUS).write_text(change(status().model_dump_json()))
    with pytest.raises(ReportError, match=STATUS) as caught:
        read_status(tmp_path)
    assert where in str(caught.value)


def test_a_server_that_should_have_written_is_silent() -> None:
    just, late = (NOW + dt.timedelta(seconds=SILENT_AFTER_S + more) for more in (0, 1))
    assert not status().is_silent(just)
    assert status().is_silent(late)
    assert not status(state=State.FINISHED).is_silent(late)
    assert not status(written=late).is_silent(NOW)
