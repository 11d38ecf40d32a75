"""What a person wants to know of a run that goes on: how far it is, and whom it waits for.

It is put together from what the run's folder holds: `status.json` where its server writes one, else
from settings, records and checkpoint alone, as of runs of earlier versions.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ahfal_app.errors import AhfalError, ReportError
from ahfal_app.results.arrivals import statistics_warnings
from ahfal_app.results.drift import drift_notes
from ahfal_app.results.reading import (
    CHECKPOINT,
    CHECKPOINT_STATE,
    CONFIG,
    METRICS,
    SUMMARY,
    Metrics,
    Run,
    read_run,
)
from ahfal_app.results.records import called
from ahfal_app.results.status import Phase, RunStatus, SiteStatus, State, read_status
from ahfal_app.results.time_left import seconds_left

#: How far below a folder runs are looked for: those of a sweep are two below its folder.
_DEPTH = 3


class Condition(enum.StrEnum):
    """How it is with a run."""

    RUNNING = "running"
    WAITING = "waiting for labels"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SILENT = "silent"
    #: Of a run without a status: it goes on, or it was interrupted.
    UNFINISHED = "unfinished"
    #: Its folder cannot be read.
    UNREADABLE = "unreadable"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class CurvePoint(_Part):
    """Test accuracy, as a share, with so many labels."""

    labels: int
    accuracy: float | None


class Waits(_Part):
    """How many images wait longest, since when, and at which site."""

    images: int
    since: dt.datetime
    site: str


class SiteOverview(SiteStatus):
    """A site: what its server knows of it, and how many of its messages failed so far.

    `called` is what it is called in messages to people.
    """

    called: str
    failures: int = 0
    last_failure: str = ""


class Overview(_Part):
    """A run at a moment.

    Attributes
    ----------
    name, folder : str
        The folder's name and its path.
    condition, reason : Condition, str
        How it is with the run, and why where it failed.
    phase, phase_since : str, datetime | None
        What its server is doing; empty where nobody knows.
    strategy, dataset, oracle : str
        As in its settings; without an oracle where each site has its own.
    cycle, num_cycles, round, rounds : int
        How far it is: cycles from 0, rounds from 1.
    may_end_earlier : bool
        Whether a rule may end it before its last cycle.
    seconds_left : float | None
        Of computing; None where nobody knows, or nothing is left.
    started, written : datetime | None
        When it was started, and when its server has last written.
    wanted, given, missing : int
        Labels of all sites.
    missing_since : datetime | None
        Since when labels are missing.
    longest : Waits | None
        The images that wait longest.
    failures : int
        Messages that failed.
    curve : tuple[CurvePoint, ...]
        The learning curve so far.
    sites : tuple[SiteOverview, ...]
        All sites.
    notes : tuple[str, ...]
        What could not be read, and what is missing for that.
    """

    name: str
    folder: str
    condition: Condition
    reason: str = ""
    phase: str = ""
    phase_since: dt.datetime | None = None
    strategy: str = ""
    dataset: str = ""
    oracle: str = ""
    cycle: int = 0
    num_cycles: int = 0
    round: int = 0
    rounds: int = 0
    may_end_earlier: bool = False
    seconds_left: float | None = None
    started: dt.datetime | None = None
    written: dt.datetime | None = None
    wanted: int = 0
    given: int = 0
    missing: int = 0
    missing_since: dt.datetime | None = None
    longest: Waits | None = None
    failures: int = 0
    curve: tuple[CurvePoint, ...] = ()
    sites: tuple[SiteOverview, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.condition in (
            Condition.FINISHED,
            Condition.FAILED,
            Condition.INTERRUPTED,
            Condition.UNREADABLE,
        )


class Overviews:
    """Overviews of the run in a folder, or of all runs below it; what has not changed is kept.

    Parameters
    ----------
    folder : Path
        The folder of a run, or one with folders of runs in it, such as a sweep's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._kept: dict[Path, tuple[object, Run]] = {}

    @property
    def is_one_run(self) -> bool:
        """Whether the folder is that of a run itself."""
        return _is_run(self.folder)

    def all(self, now: dt.datetime) -> dict[str, Overview]:
        """Return an overview of each run, by the path from the folder; `.` is the folder itself.

        A run that cannot be read is told as such, beside the others.

        Raises
        ------
        ReportError
            It is no folder, or there is no run in it.
        """
        return {
            folder.relative_to(self.folder).as_posix(): self._of(folder, now)
            for folder in run_folders(self.folder)
        }

    def one(self, now: dt.datetime) -> Overview:
        """Return the overview of the run whose folder it is.

        Raises
        ------
        ReportError
            It cannot be read.
        """
        return overview(self._read(self.folder), now)

    def _of(self, folder: Path, now: dt.datetime) -> Overview:
        try:
            return overview(self._read(folder), now)
        except AhfalError as error:
            # A folder that is being made, damaged, or of a version with other settings.
            condition = Condition.UNREADABLE
            return Overview(
                name=folder.name, folder=str(folder), condition=condition, reason=str(error)
            )

    def _read(self, folder: Path) -> Run:
        changed = tuple(_changed(folder / name) for name in (CONFIG, METRICS, SUMMARY))
        kept = self._kept.get(folder)
        if kept is None or kept[0] != changed:
            self._kept[folder] = kept = (changed, read_run(folder))
        return kept[1]


def run_folders(folder: Path) -> list[Path]:
    """Return a folder if it is that of a run, else all folders of runs below it, by name.

    Raises
    ------
    ReportError
        It is no folder, or there is no run in it.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; allowed is that of a run, or of several")
    found = sorted(_below(folder, _DEPTH))
    if not found:
        raise ReportError(f"{folder}: no run in it; the folder of a run has a {CONFIG}")
    return found


def overview(run: Run, now: dt.datetime) -> Overview:
    """Return what is known of a run at a moment.

    Parameters
    ----------
    run : Run
        What its folder holds.
    now : datetime
        The time, with its zone.
    """
    settings, notes = run.settings, list[str]()
    try:
        status = read_status(run.folder)
    except ReportError as error:
        status = None
        notes.append(str(error))
    if status is None:
        notes.append("no status of its server: who is connected, and who waits, is unknown")
    notes += statistics_warnings(run) + drift_notes(run)
    condition, reason = _condition(run, status, now)
    sites = _sites(run, status)
    cycle, round_ = _position(run, status)
    has_ended = condition in (Condition.FINISHED, Condition.FAILED)
    cycles = run.metrics.cycles
    given, missing = _labels(run, status)
    waiting = [site for site in sites if site.missing]
    return Overview(
        name=run.folder.name,
        folder=str(run.folder),
        condition=condition,
        reason=reason,
        phase=str(status.phase) if status and status.phase is not Phase.ENDED else "",
        phase_since=status.phase_since if status else None,
        strategy=settings.strategy,
        dataset=settings.data_name,
        oracle="" if settings.has_sites else settings.oracle,
        cycle=cycle,
        num_cycles=settings.num_cycles,
        round=round_,
        rounds=settings.rounds,
        may_end_earlier=settings.stopping != "none",
        seconds_left=None if has_ended else seconds_left(settings, run.metrics),
        started=status.started if status else None,
        written=status.written if status else None,
        wanted=given + missing,
        given=given,
        missing=missing,
        missing_since=min((s.missing_since for s in waiting if s.missing_since), default=None),
        longest=_longest(sites),
        failures=run.metrics.num_failures,
        curve=tuple(CurvePoint(labels=c.labels, accuracy=c.accuracy) for c in cycles),
        sites=sites,
        notes=tuple(notes),
    )


def _condition(run: Run, status: RunStatus | None, now: dt.datetime) -> tuple[Condition, str]:
    if status is None:
        if run.is_complete:
            return Condition.FINISHED, ""
        return (Condition.FAILED, run.stopped) if run.stopped else (Condition.UNFINISHED, "")
    if status.is_silent(now):
        return Condition.SILENT, f"its server has written nothing since {_utc(status.written)}"
    if status.state is State.RUNNING:
        is_waiting = status.phase is Phase.LABELLING and any(s.missing for s in status.sites)
        return (Condition.WAITING if is_waiting else Condition.RUNNING), ""
    return Condition(status.state.value), status.reason


def _position(run: Run, status: RunStatus | None) -> tuple[int, int]:
    """Return the cycle, from 0, and the round of it that is at work, or was last."""
    settings = run.settings
    if status is not None:
        return min(status.cycle, settings.num_cycles - 1), min(status.round, settings.rounds)
    found = _checkpoint(run.folder)
    if found is None:
        rounds = run.metrics.rounds
        found = (rounds[-1].cycle, rounds[-1].round) if rounds else (0, 0)
    cycle, round_ = found
    if cycle >= settings.num_cycles or run.is_complete:
        return max(0, len(run.metrics.cycles) - 1), settings.rounds
    return cycle, round_


def _labels(run: Run, status: RunStatus | None) -> tuple[int, int]:
    """Return how many labels all sites have given, and how many are missing."""
    joined = [site for site in status.sites if site.client is not None] if status else []
    if joined:
        return sum(site.given for site in joined), sum(site.missing for site in joined)
    if not run.metrics.cycles:
        return 0, 0
    ledger = run.metrics.cycles[-1].ledger
    return ledger.spent, ledger.reserved


def _checkpoint(folder: Path) -> tuple[int, int] | None:
    """Return the position of the newest checkpoint that can be read, or None."""
    for state in sorted((folder / CHECKPOINT).glob(f"*/{CHECKPOINT_STATE}"), reverse=True):
        try:
            content = json.loads(state.read_bytes())
            return int(content["cycle"]), int(content["round"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return None


def _sites(run: Run, status: RunStatus | None) -> tuple[SiteOverview, ...]:
    failures, last = _failures(run.metrics)
    known = status.sites if status else _sites_of_records(run)
    return tuple(
        SiteOverview(
            **site.model_dump(),
            called=_called(site),
            failures=failures[site.client] if site.client is not None else 0,
            last_failure=last.get(site.client, "") if site.client is not None else "",
        )
        for site in known
    )


def _called(site: SiteStatus) -> str:
    return site.name if site.client is None else called(site.client, site.name)


def _failures(metrics: Metrics) -> tuple[Mapping[int, int], dict[int, str]]:
    """Return how many messages to each client failed, and why the last one did."""
    failures = Counter[int]()
    last: dict[int, tuple[int, str]] = {}
    for record in metrics.records:
        for failure in record.failed:
            failures[failure.client] += 1
            # Records of cycles stand behind all rounds.
            if record.cycle >= last.get(failure.client, (0, ""))[0]:
                last[failure.client] = (record.cycle, failure.reason)
    return failures, {client: reason for client, (_, reason) in last.items()}


def _sites_of_records(run: Run) -> Iterable[SiteStatus]:
    """Return what the records say of the clients of a run without a status."""
    cycles = run.metrics.cycles
    given = cycles[-1].labels_per_client if cycles else ()
    names = {f.client: f.site for record in run.metrics.records for f in record.failed}
    return [
        SiteStatus(client=client, name=names.get(client, ""), wanted=labels, given=labels)
        for client, labels in enumerate(given)
    ]


def _longest(sites: Iterable[SiteOverview]) -> Waits | None:
    waiting = [
        Waits(images=site.longest, since=site.longest_since, site=site.name or site.called)
        for site in sites
        if site.missing and site.longest and site.longest_since
    ]
    # What was asked for in the same minute has waited as long: then the most.
    return min(waiting, key=lambda each: (_minute(each.since), -each.images), default=None)


def _below(folder: Path, depth: int) -> Iterable[Path]:
    if _is_run(folder):
        yield folder
    elif depth:
        try:
            below = [each for each in folder.iterdir() if each.is_dir() and each.name[:1] != "."]
        except OSError:
            return  # Not ours to look into.
        for each in below:
            yield from _below(each, depth - 1)


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _minute(time: dt.datetime) -> dt.datetime:
    return time.replace(second=0, microsecond=0)


def _utc(time: dt.datetime) -> str:
    return f"{time.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
