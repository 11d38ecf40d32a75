"""What is told elsewhere as a run goes on: to an address by POST, or to a command of the server.

Each event is told at most once in a run, whatever is resumed: that it is told is on the disk before
it is. Whoever is told hears numbers and names of sites, and nothing of a single image. No text of a
site is part of a command: what there is to say is JSON, in the body or on the standard input.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import queue
import shlex
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from ahfal_app.config import Settings, expanded
from ahfal_app.errors import ConfigError
from ahfal_app.results.records import CycleRecord
from ahfal_app.results.status import State
from ahfal_app.results.units import percent
from ahfal_app.server.watch import Waiting, outcome
from ahfal_app.storage.files import write_json

EVENTS = "events.json"

#: Seconds that an address or a command may take; a run that ends waits twice that for what is left.
TIMEOUT_S = 10.0

_KEY = "on-event"

#: Characters of a reason that are told.
_MOST_REASON = 500
_ALLOWED = (
    "allowed is an address with http:// or https://, a command that is there, or env:NAME for a "
    "variable that says it"
)

#: What a target starts with that names a variable of the server's environment.
_VARIABLE = "env:"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: what is told is for the address that was set."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        """Return no request, so that the answer counts as a refusal."""


@dataclass(frozen=True)
class EventSource:
    """The run that events are about: its identity, its folder, and how many cycles it has."""

    run: str
    folder: Path
    num_cycles: int


class Events:
    """Tells events, on a thread of its own; a context manager for as long as the run goes on.

    The run neither waits for whoever is told nor fails with them: a failure is told in the log.

    Parameters
    ----------
    target : str
        An address or a command, as `checked_target` returns it; empty: nobody is told.
    after_hours : float
        Hours that labels are waited for until that is an event.
    source : EventSource
        The run.
    warn : Callable[[str], None]
        Told what has failed.
    now : Callable[[], datetime]
        The time, with its zone.
    """

    def __init__(
        self,
        target: str,
        after_hours: float,
        source: EventSource,
        warn: Callable[[str], None],
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        is_named = target.startswith(_VARIABLE)
        self._target = checked_target(_from_environment(target)) if is_named else target
        self._after = dt.timedelta(hours=after_hours)
        self._source = source
        self._warn = warn
        self._now = now
        self._lock = threading.Lock()
        self._told: set[str] | None = set()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)

    def __enter__(self) -> Self:
        """Find what was told before, and begin."""
        if self._target:
            self._told = self._read_told()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell how the run has ended, and wait a little until all is told."""
        state, reason = outcome(error)
        if state is State.FINISHED:
            # By the cycles that are done, since a run that has ended may be gone on with.
            self._tell("run-finished", f"run-finished:{self._cycles_done()}", "is finished", {})
        elif state is State.FAILED:
            # With each start it is another failure: by the time, which no other has.
            key = f"run-failed:{self._now().isoformat()}"
            sort = reason.partition(":")[0]
            told = "".join(letter if letter.isprintable() else " " for letter in reason)
            # Parts of the reason may be other parties' words: they are no part of the text, which
            # a chat may take for its own.
            self._tell("run-failed", key, f"has failed: {sort}", {"reason": told[:_MOST_REASON]})
        if self._target:
            self._queue.put(None)
            self._thread.join(2 * TIMEOUT_S)
            if self._thread.is_alive():
                self._warn(f"{_KEY}: not all could be told before the run ended")

    def cycle_done(self, record: CycleRecord) -> None:
        """Tell that a cycle is done."""
        number, cycles = record.cycle + 1, self._source.num_cycles
        told = {
            "cycle": record.cycle,
            "labels": record.labels,
            "accuracy": record.accuracy,
            "bought": record.bought,
            "pending": record.pending,
            "failed": [{"client": f.client, "site": f.site} for f in record.failed],
        }
        text = f"has done cycle {number} of {cycles}: test accuracy "
        text += f"{percent(record.accuracy)} with {record.labels} labels"
        self._tell("cycle-done", f"cycle-done:{record.cycle}", text, told)

    def drifted(self, record: CycleRecord) -> None:
        """Tell that class mixes have changed, where a cycle's tests say so."""
        drift = record.drift
        if drift is None or not drift.is_drift:
            return
        told = {
            "cycle": record.cycle,
            "window": drift.window,
            "pooled": drift.pooled,
            "sites": [
                {"client": s.client, "site": s.site, "p": s.corrected} for s in drift.drifting
            ],
        }
        text = f"sees the class mix drift in cycle {record.cycle + 1}"
        if drift.drifting:
            text += f", at {len(drift.drifting)} of {len(drift.sites)} clients"
        self._tell("drift", f"drift:{record.cycle}", text, told)

    def doubted(self, record: CycleRecord, warning: str) -> None:
        """Tell that class statistics may be noise, where there is such a warning of a cycle."""
        if warning:
            text = f"has class statistics in cycle {record.cycle + 1} that may be noise: {warning}"
            told = {"cycle": record.cycle, "reason": warning}
            self._tell("noisy-statistics", f"noisy-statistics:{record.cycle}", text, told)

    def looked(self, waiting: Waiting | None) -> None:
        """Tell that labels are waited for, if they are for so long."""
        if waiting is None or not waiting.sites or self._now() - waiting.since < self._after:
            return
        missing = sum(site.missing for site in waiting.sites)
        hours = (self._now() - waiting.since).total_seconds() / 3600
        told = {
            "cycle": waiting.cycle,
            "missing": missing,
            "since": waiting.since.isoformat(),
            "sites": [
                {
                    "client": site.client,
                    "site": site.name,
                    "missing": site.missing,
                    "longest": site.longest,
                    "longest_since": _iso(site.longest_since),
                    "last_seen": _iso(site.last_seen),
                }
                for site in waiting.sites
            ],
        }
        text = f"waits for {missing} labels of {len(waiting.sites)} sites for {hours:.1f} hours"
        self._tell("waiting-for-labels", f"waiting-for-labels:{waiting.cycle}", text, told)

    # --- inside -------------------------------------------------------------------------

    def _tell(self, event: str, key: str, text: str, told: Mapping[str, object]) -> None:
        with self._lock:
            if not self._target or self._told is None or key in self._told:
                return
            if not self._keep(self._told | {key}):
                return
            self._told.add(key)
        source = self._source
        content = {
            "event": event,
            "text": f"{source.folder.name} {text}",
            "run": source.run,
            "name": source.folder.name,
            "at": self._now().isoformat(),
            **told,
        }
        self._queue.put(json.dumps(content).encode())

    def _cycles_done(self) -> int:
        """Return how many cycles have been told of, in this start and before."""
        told = [key.partition(":")[2] for key in self._told or () if key.startswith("cycle-done:")]
        return 1 + max(map(int, told), default=-1)

    def _keep(self, told: Iterable[str]) -> bool:
        """Write down what is told; return whether that is on the disk."""
        try:
            write_json(self._source.folder / EVENTS, {"told": sorted(told)})
        except OSError as error:
            self._warn(f"{EVENTS}: cannot be written ({error.strerror}); the event is not told")
            return False
        return True

    def _read_told(self) -> set[str] | None:
        """Return what was told before; None where nobody knows, so that nothing is told twice."""
        path = self._source.folder / EVENTS
        try:
            return set(map(str, json.loads(path.read_bytes())["told"]))
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._warn(f"{path}: cannot be read ({error}); no more events are told")
            return None

    def _work(self) -> None:
        while (content := self._queue.get()) is not None:
            if problem := deliver(self._target, content):
                self._warn(f"{_KEY}: {_place(self._target)}: {problem}; the run goes on")


def deliver(target: str, content: bytes, timeout: float = TIMEOUT_S) -> str:
    """Tell an address or a command; return what went wrong, or nothing.

    Parameters
    ----------
    target : str
        As `checked_target` returns it.
    content : bytes
        JSON.
    timeout : float
        Seconds that it may take.
    """
    return (_post if _is_address(target) else _run)(target, content, timeout)


def checked_target(target: str) -> str:
    """Return what is told of events, so that it means the same from every working directory.

    Raises
    ------
    ConfigError
        It is neither an address nor a command that is there.
    """
    if target.startswith(_VARIABLE):
        checked_target(_from_environment(target))
        return target
    if _is_address(target):
        return _checked_address(target)
    try:
        words = shlex.split(target)
    except ValueError as error:
        raise ConfigError([f"{_KEY}={target!r}: {error}; {_ALLOWED}"]) from error
    name = words[0] if words else ""
    # Without a folder it is one of the search path's.
    found = shutil.which(expanded(_KEY, name).absolute() if os.sep in name else name)
    if found is None:
        raise ConfigError([f"{_KEY}={target!r}: {_ALLOWED}"])
    return shlex.join([str(Path(found).absolute()), *words[1:]])


def _from_environment(target: str) -> str:
    """Return what a variable of the server's environment says, whose name a target is."""
    name = target.removeprefix(_VARIABLE)
    value = os.environ.get(name, "")
    if not value or value.startswith(_VARIABLE):
        raise ConfigError(
            [f"{_KEY}={target!r}: the environment of the server has no {name!r}; {_ALLOWED}"]
        )
    return value


def _checked_address(target: str) -> str:
    try:
        parts = urlsplit(target)
        is_usable = bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or any(not " " < letter < "\x7f" for letter in target):
        raise ConfigError([f"{_KEY}={target!r}: {_ALLOWED}, without a name and password in it"])
    return target


def _is_address(target: str) -> bool:
    return target.lower().startswith(("http://", "https://"))


def _place(target: str) -> str:
    """Return whom a warning is about: no path, in which secrets stand, and no arguments."""
    if not _is_address(target):
        return shlex.split(target)[0]
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.netloc}"


def _post(target: str, content: bytes, timeout: float) -> str:
    request = urllib.request.Request(  # noqa: S310 (http or https)
        target, content, {"Content-Type": "application/json"}, method="POST"
    )
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=timeout):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"status {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"


def _run(target: str, content: bytes, timeout: float) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (the server's own command; no shell)
            shlex.split(target),
            input=content,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
            # Ctrl-C for the run is none for it.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return f"it was not done within {timeout:g} s"
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    return f"exit code {done.returncode}" if done.returncode else ""


def make_events(settings: Settings, run: str, folder: Path, warn: Callable[[str], None]) -> Events:
    """Return what tells a run's events, as its settings have it."""
    source = EventSource(run, folder, settings.num_cycles)
    return Events(settings.on_event, settings.on_event_after_hours, source, warn)


def _iso(time: dt.datetime | None) -> str | None:
    return time.isoformat() if time else None
