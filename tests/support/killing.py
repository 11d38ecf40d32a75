"""Runs that are killed at a chosen event, to be resumed."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Context, Message
from support.simulation import Handler, Outcome, Simulation

from ahfal_app.client import coordination as of_client
from ahfal_app.client.momentum import MomentumFiles
from ahfal_app.client_app import app as client_app
from ahfal_app.data import features
from ahfal_app.labels.store import LabelStore
from ahfal_app.privacy.store import PrivacyStore
from ahfal_app.results.run_folder import Recorder
from ahfal_app.server import candidates, coordination, secure_sum, shared_budget
from ahfal_app.server import run as run_module
from ahfal_app.server import start as start_module
from ahfal_app.training import resources


class Killed(BaseException):
    """Stops a run as SIGKILL does: nothing that handles errors sees it."""


class KillSwitch:
    """Kills at the n-th event; an event is any moment around a message or a write."""

    def __init__(self, fatal: int | None = None, handler: Handler = client_app) -> None:
        self.fatal = fatal
        self._handler = handler
        self.events = 0

    def tick(self) -> None:
        self.events += 1
        if self.events == self.fatal:
            raise Killed

    def handler(self, message: Message, context: Context) -> Message:
        self.tick()
        reply = self._handler(message, context)
        self.tick()
        return reply

    def around(self, function):
        def wrapped(*arguments, **keywords):
            self.tick()
            result = function(*arguments, **keywords)
            self.tick()
            return result

        return wrapped

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for module in (start_module, run_module):
            patch.setattr(module, "write_checkpoint", self.around(module.write_checkpoint))
        patch.setattr(candidates, "write_bytes", self.around(candidates.write_bytes))
        patch.setattr(MomentumFiles, "write", self.around(MomentumFiles.write))
        patch.setattr(Recorder, "record", self.around(Recorder.record))
        patch.setattr(LabelStore, "allot", self.around(LabelStore.allot))
        patch.setattr(LabelStore, "reserve", self.around(LabelStore.reserve))
        patch.setattr(LabelStore, "commit", self.around(LabelStore.commit))
        patch.setattr(LabelStore, "hold_out", self.around(LabelStore.hold_out))
        patch.setattr(PrivacyStore, "release", self.around(PrivacyStore.release))
        patch.setattr(PrivacyStore, "save_session", self.around(PrivacyStore.save_session))
        patch.setattr(PrivacyStore, "keep_survivors", self.around(PrivacyStore.keep_survivors))
        patch.setattr(secure_sum, "write_json", self.around(secure_sum.write_json))
        patch.setattr(coordination, "write_bytes", self.around(coordination.write_bytes))
        patch.setattr(shared_budget, "write_json", self.around(shared_budget.write_json))

    def install_in_features(self, patch: pytest.MonkeyPatch) -> None:
        """Make an event of each write to a store of features, and of each note that goes."""
        synced = {name: self.around(getattr(os, name)) for name in ("fsync", "truncate")}
        patch.setattr(features, "os", SimpleNamespace(**{**vars(os), **synced}))
        patch.setattr(features, "write_bytes", self.around(features.write_bytes))
        unlink, watched = Path.unlink, self.around(Path.unlink)

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            (watched if path.name.startswith("rows-") else unlink)(path, missing_ok)

        patch.setattr(Path, "unlink", unlinked)


def killed_in_features(work: Callable[[], object], event: int | None = None) -> int:
    """Do what computes features, in a process that has loaded nothing, until a write of them.

    Returns
    -------
    int
        How many events there were.
    """
    switch = KillSwitch(event)
    resources._memo.clear()
    with pytest.MonkeyPatch.context() as patch:
        switch.install_in_features(patch)
        if event is None:
            work()
        else:
            with pytest.raises(Killed):
                work()
    resources._memo.clear()
    return switch.events


@dataclass
class Uninterrupted(Outcome):
    """A run that went through, and how many events it had."""

    events: int

    def spread(self, number: int) -> list[int]:
        """Return so many events that are spread over all.

        A long exchange has hundreds, of which the same kinds come again and again.
        """
        last = self.events - 1
        return sorted({3 + round(k * (last - 3) / (number - 1)) for k in range(number)})


def uninterrupted(simulation: Simulation, **settings: object) -> Uninterrupted:
    """Run some settings, and count the events at which the run could have been killed."""
    switch = KillSwitch()
    with pytest.MonkeyPatch.context() as patch:
        switch.install(patch)
        outcome = simulation(settings, handler=switch.handler, name="uninterrupted")
    return Uninterrupted(outcome.folder, outcome.log, switch.events)


def killed_at(
    event: int,
    simulation: Simulation,
    folder: Path | None = None,
    watch: Handler = client_app,
    **settings: object,
) -> Path:
    """Run, or resume, until an event; return the run's folder."""
    switch = KillSwitch(event, watch)
    with pytest.MonkeyPatch.context() as patch:
        switch.install(patch)
        if folder is not None:
            with pytest.raises(Killed):
                simulation.resume(folder, switch.handler)
            return folder
        with pytest.raises(Killed):
            simulation(settings, handler=switch.handler, name=f"killed-{event}")
    return Path(str(simulation.base["output-dir"])) / f"killed-{event}"


class Camera(KillSwitch):
    """Keeps what is on the disk at some events, where the run goes on: as SIGKILL would leave it.

    Attributes
    ----------
    expected : frozenset[int]
        The events.
    pictures : dict[int, Path]
        The folder of each of them so far.
    """

    def __init__(self, events: Iterable[int], folder: Path) -> None:
        super().__init__()
        self.expected = frozenset(events)
        self._folder = folder
        self._lock = threading.Lock()  # Clients and server have threads of their own.
        self.pictures: dict[int, Path] = {}

    def tick(self) -> None:
        with self._lock:
            super().tick()
            if self.events in self.expected:
                picture = self._folder.with_name(f"killed-{self.events}")
                shutil.copytree(self._folder, picture, copy_function=_copy_what_is_there)
                self.pictures[self.events] = picture


def _copy_what_is_there(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # The status is written by a thread, too.
        shutil.copy2(source, target)


def killed_at_each(
    events: Iterable[int], simulation: Simulation, **settings: object
) -> Iterator[tuple[int, Path]]:
    """Run once, and return for each event the folder of a run that was killed at it.

    Each folder goes when the next one is asked for.
    """
    folder = Path(str(simulation.base["output-dir"])) / "never-killed"
    camera = Camera(events, folder)
    with pytest.MonkeyPatch.context() as patch:
        camera.install(patch)
        simulation(settings, handler=camera.handler, name=folder.name)
    shutil.rmtree(folder)
    # On a busy machine a run once had fewer events than the one that they were counted in; which
    # was not seen. Such events are its last ones here.
    assert set(camera.pictures) == {event for event in camera.expected if event <= camera.events}
    missing = len(camera.expected) - len(camera.pictures)
    assert missing <= max(1, len(camera.expected) // 10)
    for event, picture in camera.pictures.items():
        of_client._under_way.clear()  # A new process knows what is on the disk, and no more.
        yield event, picture
        shutil.rmtree(picture)
