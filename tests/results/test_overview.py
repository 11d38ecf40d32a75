"""What `ahfal status` tells: of runs that go on, wait, ended, or were made before it was there."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_run import make_fake_run

from ahfal_app.cli import main
from ahfal_app.errors import ReportError
from ahfal_app.results.overview import Condition, Overview, Overviews, run_folders
from ahfal_app.results.overview_text import exit_code, span, watch_overviews
from ahfal_app.results.records import Failure
from ahfal_app.results.status import Phase, RunStatus, SiteStatus, State, write_status

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Two of six cycles of a run of an earlier version."""
    failures = [Failure(client=1, reason="no answer", site="St Anne")]
    return make_fake_run(
        tmp_path,
        name="half",
        num_clients=3,
        rounds=2,
        cycles_done=2,
        failures=failures,
        simulated=False,
    )


def site(client: int, missing: int = 0, name: str = "", **more: object) -> SiteStatus:
    since = {"missing_since": NOW - HOUR} if missing else {}
    return SiteStatus(
        client=client, name=name, wanted=10, given=10 - missing, missing=missing, **(since | more)
    )  # type: ignore[arg-type]


def write(folder: Path, *sites: SiteStatus, **more: object) -> None:
    values: dict[str, object] = {
        "run": "0" * 16,
        "state": State.RUNNING,
        "phase": Phase.LABELLING,
        "phase_since": NOW - HOUR,
        "cycle": 1,
        "round": 2,
        "started": NOW - 3 * HOUR,
        "written": NOW,
        "sites": sites,
    }
    write_status(folder, RunStatus.model_validate(values | more))


def seen(folder: Path) -> Overview:
    return Overviews(folder).one(NOW)


def test_a_run_without_a_status_tells_what_records_say(half: Path) -> None:
    run = seen(half)
    assert run.condition is Condition.UNFINISHED
    assert (run.cycle, run.round, run.num_cycles, run.rounds) == (1, 2, 6, 2)
    assert [point.labels for point in run.curve] == [1500, 2250]
    assert [each.given for each in run.sites] == [750, 750, 750]
    assert [(each.called, each.failures) for each in run.sites] == [
        ("client 0", 0), ("St Anne (client 1)", 1), ("client 2", 0),
    ]  # fmt: skip
    assert run.given == 3000
    assert run.seconds_left is not None
    assert run.seconds_left > 0
    assert "no status" in run.notes[0]


def test_where_there_are_no_records_yet_the_checkpoint_says_how_far_it_is(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, name="new", rounds=2, cycles_done=0)
    assert (seen(folder).cycle, seen(folder).round) == (0, 0)
    for number, position in enumerate(('{"cycle": 1, "round": 1}', '{"cycle"'), start=1):
        (folder / "checkpoint" / f"{number:08d}").mkdir(parents=True)
        (folder / "checkpoint" / f"{number:08d}" / "state.json").write_text(position)
    assert (seen(folder).cycle, seen(folder).round) == (1, 1)


def test_all_cycles_make_a_run_of_any_version_finished(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, name="old", num_clients=2, rounds=1)
    run = seen(folder)
    assert run.condition is Condition.FINISHED
    assert run.seconds_left is None
    assert (run.cycle, run.round) == (5, 1)


def test_a_run_that_waits_says_for_whom_and_since_when(half: Path) -> None:
    old, older = NOW - 2 * HOUR, NOW - 5 * HOUR
    write(
        half,
        site(0, 4, longest=4, longest_since=old),
        site(1, 3, "Hill", longest=2, longest_since=older, missing_since=older),
        site(2),
    )
    run = seen(half)
    assert run.condition is Condition.WAITING
    assert (run.wanted, run.given, run.missing) == (30, 23, 7)
    assert run.missing_since == older
    assert run.longest is not None
    assert (run.longest.images, run.longest.since, run.longest.site) == (2, older, "Hill")
    assert run.sites[1].last_failure == "no answer"


def test_of_what_waits_equally_long_the_most_is_told(half: Path) -> None:
    times = (NOW - HOUR, NOW - HOUR + dt.timedelta(seconds=9), NOW - HOUR)
    write(half, *(site(k, k + 2, longest=k + 2, longest_since=t) for k, t in enumerate(times)))
    longest = seen(half).longest
    assert longest is not None
    assert longest.images == 4


@pytest.mark.parametrize(
    ("status", "condition"),
    [
        ({"phase": Phase.TRAINING}, Condition.RUNNING),
        ({"phase": Phase.TRAINING, "written": NOW - HOUR}, Condition.SILENT),
        ({"state": State.FAILED, "reason": "QuorumNotReached: 0 of 3"}, Condition.FAILED),
        ({"state": State.INTERRUPTED, "written": NOW - HOUR}, Condition.INTERRUPTED),
        ({"state": State.FINISHED, "written": NOW - HOUR}, Condition.FINISHED),
    ],
)
def test_each_condition(half: Path, status: dict[str, object], condition: Condition) -> None:
    write(half, site(0), **status)
    assert seen(half).condition is condition
    assert seen(half).reason.startswith(str(status.get("reason", "")))


def test_a_damaged_status_hides_nothing_else(half: Path) -> None:
    (half / "status.json").write_text('{"format": 1, "ru')
    run = seen(half)
    assert run.condition is Condition.UNFINISHED
    assert len(run.curve) == 2
    assert "status.json" in run.notes[0]


def test_a_line_that_is_half_written_is_left_out(half: Path) -> None:
    with (half / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "round", "cyc')
    assert seen(half).cycle == 1


def test_of_several_runs_one_that_cannot_be_read_hides_no_other(half: Path) -> None:
    sweep = half.parent / "sweep" / "runs"
    make_fake_run(sweep, name="deep", num_clients=2, rounds=1)
    (half.parent / "broken").mkdir()
    (half.parent / "broken" / "config.yaml").write_text("strategy: {")
    (half.parent / "no run").mkdir()
    write(half, site(0, 1))
    runs = Overviews(half.parent).all(NOW)
    assert {key: run.condition.value for key, run in runs.items()} == {
        "broken": "unreadable",
        "half": "waiting for labels",
        "sweep/runs/deep": "finished",
    }
    assert "config.yaml" in runs["broken"].reason
    assert run_folders(half) == [half]


def test_what_changes_is_read_again(half: Path) -> None:
    overviews = Overviews(half)
    assert len(overviews.one(NOW).curve) == 2
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(lines[:3]))
    assert len(overviews.one(NOW).curve) == 1


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_folder_without_a_run_is_told(tmp_path: Path, name: str, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=name):
        run_folders(tmp_path / name)
    for command in ("status", "watch"):
        with pytest.raises(SystemExit) as caught:
            main([command, str(tmp_path / name)])
        assert caught.value.code == 1
        assert f"{name}: no " in capsys.readouterr().err.replace("\n", "")


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["status", *arguments])
    return int(caught.value.code or 0)


def test_the_command_tells_of_a_run_and_of_several(half: Path, capsys) -> None:
    write(
        half,
        site(0, 4, "[red]St Anne[/red]", longest=3, longest_since=NOW - 2 * HOUR),
        written=dt.datetime.now(dt.UTC),
    )
    assert status_of(str(half)) == 4
    told = capsys.readouterr().out
    assert "half: waiting for labels" in told
    assert "cycle 2 of 6, round 2 of 2" in told
    assert "labels: 10 wanted, 6 given, 4 missing" in told
    row = next(line for line in told.splitlines() if line.startswith("[red]St Anne[/red]"))
    assert row.split()[-1] == "-"
    assert "3 for" in row
    assert status_of(str(half.parent)) == 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:4] == ["half", "waiting", "for", "labels"]


def test_json_has_all_that_is_known(half: Path, capsys) -> None:
    assert status_of(str(half), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == Overviews(half).one(NOW).model_dump(mode="json")
    assert status_of(str(half.parent), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"runs": {"half": told}}


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        ({Condition.RUNNING, Condition.FINISHED, Condition.UNFINISHED}, 0),
        ({Condition.RUNNING, Condition.WAITING}, 4),
        ({Condition.FAILED, Condition.WAITING}, 3),
        ({Condition.INTERRUPTED}, 3),
        ({Condition.SILENT}, 3),
        ({Condition.UNREADABLE, Condition.FINISHED}, 3),
    ],
)
def test_exit_codes(conditions: set[Condition], code: int) -> None:
    assert exit_code(Overview(name="", folder="", condition=each) for each in conditions) == code


def test_watching_tells_what_changes_and_ends_with_the_run(half: Path, capsys) -> None:
    def now() -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    steps: list[Callable[[], None]] = [
        lambda: write(half, site(0), phase=Phase.TRAINING, written=now()),
        # A sign of life alone.
        lambda: write(half, site(0, last_seen=now()), phase=Phase.TRAINING, written=now()),
        lambda: write(half, site(0, 2), written=now()),
        lambda: write(half, site(0), state=State.FINISHED, phase=Phase.ENDED, written=now()),
    ]
    steps.pop(0)()
    runs = watch_overviews(half, as_json=True, sleep=lambda seconds: steps.pop(0)())
    assert [run.condition for run in runs] == [Condition.FINISHED]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["condition"] for line in lines] == ["running", "waiting for labels", "finished"]
    watch_overviews(half.parent, as_json=False)
    assert "finished" in capsys.readouterr().out


@given(st.integers(0, 10**7))
def test_a_span_tells_two_units_and_is_never_too_long(seconds: int) -> None:
    sizes = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    words = span(seconds).split()
    pairs = [
        (int(number), sizes[unit]) for number, unit in zip(words[::2], words[1::2], strict=True)
    ]
    told = sum(number * size for number, size in pairs)
    assert len(pairs) <= 2
    assert told <= seconds < told + max(1, pairs[0][1] if len(pairs) == 1 else pairs[1][1])
    assert math.isclose(told, seconds, rel_tol=0.5, abs_tol=1)
