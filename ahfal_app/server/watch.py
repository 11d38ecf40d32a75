"""What those who watch a run are told: the loop says what it does, a thread of its own writes it.

The loop is never held up: what it says changes a few numbers in memory. They are written when they
have changed, at most about once a second (with thousands of clients more seldom), and as a sign of
life where nothing happens.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from ahfal_app.code_version import __version__
from ahfal_app.errors import ReportError
from ahfal_app.ledger import Ledger
from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.results.records import Record
from ahfal_app.results.status import (
    HEARTBEAT_S,
    STATUS,
    Phase,
    RunStatus,
    SiteStatus,
    State,
    read_status,
    write_status,
)
from ahfal_app.server.federation import Federation
from ahfal_app.server.membership import Membership

_LEAST_PAUSE_S = 1.0

# Of the time that may go into writing: with thousands of clients it would slow the run.
_MOST_SHARE = 0.02

#: Images that wait since so nearly the same moment were asked for together.
_SAME_WITHIN_S = 60.0

#: Of a site's reason for a failure, that much is kept.
_LONGEST_REASON = 500


class Watch:
    """Is told what the loop does. This one tells nobody."""

    def phase(self, phase: Phase, cycle: int, round_: int = 0) -> None:
        """Take note of what is begun.

        Parameters
        ----------
        phase : Phase
            What it is.
        cycle, round_ : int
            From 0 and from 1; round 0 outside of training.
        """

    def standing(
        self, cycle: int, answers: Mapping[int, QueryAnswer], failures: Mapping[int, str]
    ) -> None:
        """Take note of how a purchase stands.

        Parameters
        ----------
        cycle : int
            The cycle that labels were bought for.
        answers : Mapping[int, QueryAnswer]
            What clients say of it.
        failures : Mapping[int, str]
            Why others say nothing, by client.
        """


@dataclass(frozen=True)
class _Labels:
    """A site's labels as they stand, and since when."""

    ledger: Ledger
    missing_since: dt.datetime | None = None
    longest: int = 0
    longest_since: dt.datetime | None = None


@dataclass(frozen=True)
class Waiting:
    """What is waited for: labels of which cycle, since when, and at which sites."""

    cycle: int
    since: dt.datetime
    sites: tuple[SiteStatus, ...]


class StatusKeeper(Watch):
    """Keeps `status.json` in a run's folder; a context manager for as long as the run goes on.

    Parameters
    ----------
    folder : Path
        The run's folder. What an interrupted run has left there is gone on with.
    run : str
        The run's identity.
    federation : Federation
        Knows when each client was seen.
    warn : Callable[[str], None]
        Told where the file cannot be written; the run goes on.
    looked : Callable[[Waiting | None], None]
        Called by the thread whenever it has looked, with what is waited for.
    now : Callable[[], datetime]
        The time, with its zone.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        federation: Federation,
        warn: Callable[[str], None],
        looked: Callable[[Waiting | None], None] = lambda _: None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._folder = folder
        self._federation = federation
        self._warn = warn
        self._looked = looked
        self._now = now
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="status", daemon=True)
        self._has_warned = False
        self._membership: Membership | None = None
        self._labels: dict[int, _Labels] = {}
        self._failing: dict[int, tuple[str, dt.datetime]] = {}
        self._before: dict[int, SiteStatus] = {}
        self._status = self._first(run)

    def __enter__(self) -> Self:
        """Write for the first time, and go on as things change."""
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what has become of the run; it is there when this returns."""
        state, reason = outcome(error)
        with self._lock:
            self._set_phase(Phase.ENDED, self._status.cycle, self._status.round)
            self._status = self._status.model_copy(update={"state": state, "reason": reason})
        self._ending.set()
        self._changed.set()
        self._thread.join()
        self._write()

    def phase(self, phase: Phase, cycle: int, round_: int = 0) -> None:
        """Take note of what is begun."""
        with self._lock:
            self._set_phase(phase, cycle, round_)
        self._changed.set()

    def joined(self, membership: Membership) -> None:
        """Take note of who takes part, and of their labels as they have told them."""
        with self._lock:
            self._membership = membership
            for client, member in membership.members.items():
                if client not in self._labels or self._labels[client].ledger != member.ledger:
                    self._tell(client, member.ledger)
        self._changed.set()

    def standing(
        self, cycle: int, answers: Mapping[int, QueryAnswer], failures: Mapping[int, str]
    ) -> None:
        """Take note of how a purchase stands; while labels are missing, they are waited for."""
        with self._lock:
            for client, answer in answers.items():
                self._tell(client, answer.ledger, answer.longest, answer.longest_seconds)
                self._failing.pop(client, None)
            self._fail(failures)
            if any(labels.ledger.reserved for labels in self._labels.values()):
                self._wait_for(cycle)
        self._changed.set()

    def recorded(self, record: Record) -> None:
        """Take note of who has failed in a round or a cycle."""
        with self._lock:
            self._fail({failure.client: failure.reason for failure in record.failed})
        self._changed.set()

    def status(self) -> RunStatus:
        """Return how things stand."""
        with self._lock:
            update = {"written": self._now(), "sites": tuple(self._sites())}
            return self._status.model_copy(update=update)

    # --- inside, with the lock ------------------------------------------------------------

    def _first(self, run: str) -> RunStatus:
        now = self._now()
        status = RunStatus(
            run=run,
            state=State.RUNNING,
            phase=Phase.JOINING,
            phase_since=now,
            cycle=0,
            started=now,
            written=now,
            version=__version__,
        )
        try:
            before = read_status(self._folder)
        except ReportError as error:
            self._warn(f"{error}; it is begun anew")
            return status
        if before is None or before.run != run:
            return status
        self._before = {site.client: site for site in before.sites if site.client is not None}
        kept = ("started", "cycle", "round", "waiting_for", "waiting_since")
        update = {name: getattr(before, name) for name in kept}
        return status.model_copy(update={**update, "resumed": before.resumed + 1})

    def _set_phase(self, phase: Phase, cycle: int, round_: int) -> None:
        update: dict[str, object] = {"cycle": cycle, "round": round_}
        if phase is not self._status.phase:
            update |= {"phase": phase, "phase_since": self._now()}
        self._status = self._status.model_copy(update=update)

    def _wait_for(self, cycle: int) -> None:
        status, now = self._status, self._now()
        if status.phase is Phase.LABELLING:
            return
        since = status.waiting_since if status.waiting_for == cycle else None
        update = {
            "phase": Phase.LABELLING,
            "phase_since": now,
            "waiting_for": cycle,
            "waiting_since": since or now,
        }
        self._status = status.model_copy(update=update)

    def _tell(self, client: int, ledger: Ledger, longest: int = 0, seconds: float = 0.0) -> None:
        now, before = self._now(), self._known(client)
        labels = _Labels(ledger)
        if ledger.reserved:
            labels = replace(before, ledger=ledger, missing_since=before.missing_since or now)
        if longest:
            since = _since(now, seconds, before.longest_since)
            labels = replace(labels, longest=longest, longest_since=since)
        self._labels[client] = labels

    def _known(self, client: int) -> _Labels:
        """Return what was known of a site's labels, before this start if need be."""
        if client in self._labels:
            return self._labels[client]
        site, nothing = self._before.get(client), Ledger(0, 0, 0, 0)
        if site is None or not site.missing:
            return _Labels(nothing)
        return _Labels(nothing, site.missing_since, site.longest, site.longest_since)

    def _fail(self, failures: Mapping[int, str]) -> None:
        seen, now = self._federation.sightings(), self._now()
        for client, reason in failures.items():
            _, since = self._failing.get(client, ("", now))
            # What it has answered well in between ends what was wrong before.
            if client in seen and seen[client] > since:
                since = now
            self._failing[client] = (reason[:_LONGEST_REASON], since)

    def _sites(self) -> list[SiteStatus]:
        membership = self._membership
        if membership is None:
            connected = self._federation.connected()
            return [
                SiteStatus(client=None, name=name, last_seen=seen)
                for name, seen in sorted(connected.items())
            ]
        clients = sorted({*membership.members, *membership.failures})
        seen = self._federation.sightings()
        return [self._site(client, membership, seen.get(client)) for client in clients]

    def _site(self, client: int, membership: Membership, seen: dt.datetime | None) -> SiteStatus:
        member, labels = membership.members.get(client), self._known(client)
        before = self._before.get(client, SiteStatus(client=client))
        reason, since = self._failing.get(client, ("", None))
        if member is None:
            reason = reason or membership.failures[client]
        elif since is not None and seen is not None and seen > since:
            reason, since = "", None
        return SiteStatus(
            client=client,
            name=self._federation.site(client) or before.name,
            last_seen=seen or before.last_seen,
            wanted=labels.ledger.spent + labels.ledger.reserved,
            given=labels.ledger.spent,
            missing=labels.ledger.reserved,
            missing_since=labels.missing_since,
            longest=labels.longest,
            longest_since=labels.longest_since,
            failing=reason[:_LONGEST_REASON],
            failing_since=since,
            version=member.version if member else before.version,
            device=member.device if member else before.device,
        )

    # --- the thread -----------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            self._changed.wait(HEARTBEAT_S)
            self._changed.clear()
            if self._ending.is_set():
                return
            start = time.thread_time()
            self._looked(_waiting(self._write()))
            if self._ending.wait(pause_after(time.thread_time() - start)):
                return

    def _write(self) -> RunStatus:
        status = self.status()
        try:
            write_status(self._folder, status)
        except OSError as error:
            if not self._has_warned:
                self._warn(f"{self._folder / STATUS}: cannot be written ({error.strerror})")
            self._has_warned = True
        return status


def pause_after(spent: float) -> float:
    """Return the seconds for which nothing is written, after so many of the processor's."""
    return min(max(_LEAST_PAUSE_S, spent / _MOST_SHARE), HEARTBEAT_S)


def _since(now: dt.datetime, seconds: float, before: dt.datetime | None) -> dt.datetime | None:
    """Return since when images wait, by what their site says now and has said before."""
    try:
        since = now - dt.timedelta(seconds=seconds)
    except OverflowError:
        return None  # Longer than there are dates.
    # An answer takes a while to come, each time another one: the earlier is nearer to the truth.
    is_same = before is not None and abs((since - before).total_seconds()) < _SAME_WITHIN_S
    return min(since, before) if before is not None and is_same else since


def outcome(error: BaseException | None) -> tuple[State, str]:
    """Return what has become of a run that has ended with an error, or without."""
    if error is None:
        return State.FINISHED, ""
    if isinstance(error, Exception):
        return State.FAILED, f"{type(error).__name__}: {error}"
    # A signal, or whoever runs it has stopped it: it can be resumed.
    return State.INTERRUPTED, type(error).__name__


def _waiting(status: RunStatus) -> Waiting | None:
    if status.phase is not Phase.LABELLING or status.waiting_for is None:
        return None
    if status.waiting_since is None:
        return None
    sites = tuple(site for site in status.sites if site.missing)
    return Waiting(status.waiting_for, status.waiting_since, sites)
