"""Worker processes that run one simulation after another.

Processes and not threads: training holds Python's lock too often. They live on from run to
run, since importing torch takes longer than a small run, and share decoded data by its
memory map.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ahfal_app.config import parse_settings
from ahfal_app.errors import CheckpointError, ResumeError
from ahfal_app.results.records import RoundRecord

if TYPE_CHECKING:
    from ahfal_app.results.progress import Progress

_STOP_AFTER_S = 5.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Task:
    """A run to do: its name, flat settings, and the folder that they put it into."""

    name: str
    settings: Mapping[str, object]
    folder: Path


@dataclass(frozen=True)
class RoundDone:
    """A worker has done one more round: which, and what share of the whole run it is."""

    cycle: int
    round: int
    share: float


@dataclass(frozen=True)
class RunDone:
    """A worker has finished its run; with the reason where it failed."""

    failure: str = ""


Report = RoundDone | RunDone


class Worker:
    """A process that does one task at a time.

    Parameters
    ----------
    clients_at_once : int
        Clients that a run may serve at the same time.
    gpu : int | None
        The only GPU that it sees, counted from 0 among those that this process sees; None: all.
    """

    def __init__(self, clients_at_once: int, gpu: int | None = None) -> None:
        # Not forked: torch's threads and locks do not survive that.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_work, args=(theirs, clients_at_once, gpu), daemon=True
        )
        self._process.start()
        # Or the end of the process could not be told from a pause.
        theirs.close()
        self.task: Task | None = None

    def start(self, task: Task) -> None:
        """Hand over a task; the worker must not have one."""
        self.task = task
        self.connection.send(task)

    def exit_text(self) -> str:
        """Return in words how the process ended."""
        self._process.join(_STOP_AFTER_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"the worker process was killed by signal {-code} ({signal.strsignal(-code)})"
        return f"the worker process ended with exit code {code}"

    def stop(self) -> None:
        """End the process, in the middle of a run if need be; the run can be resumed."""
        self.connection.close()
        if self.task is None:
            # It ends by itself, and cleans up after its libraries.
            self._process.join(_STOP_AFTER_S)
        self._process.terminate()
        self._process.join(_STOP_AFTER_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Workers:
    """Some workers, as a context manager that ends them all.

    Parameters
    ----------
    count : int
        Number of processes.
    clients_at_once : int
        Clients that each may serve at the same time.
    gpus : int
        GPUs that they are dealt out to, one each; 0: each sees what there is.
    """

    def __init__(self, count: int, clients_at_once: int, gpus: int = 0) -> None:
        self._clients_at_once = clients_at_once
        self._gpus = gpus
        self._workers = [self._worker(place) for place in range(count)]

    def __enter__(self) -> Self:
        """Return the workers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.stop()

    def idle(self) -> list[Worker]:
        """Return the workers without a task."""
        return [worker for worker in self._workers if worker.task is None]

    def wait(self, timeout: float) -> list[tuple[Worker, Report]]:
        """Return what workers have to tell, waiting a moment for the first; frees who is done.

        A worker that died is replaced, and its run reported as failed.
        """
        by_connection = {worker.connection: worker for worker in self._workers if worker.task}
        if not by_connection:
            return []
        told: list[tuple[Worker, Report]] = []
        ready = multiprocessing.connection.wait(list(by_connection), timeout)
        for connection, worker in by_connection.items():
            if connection not in ready:
                continue
            try:
                report: Report = worker.connection.recv()
            except (EOFError, ConnectionError):
                report = RunDone(worker.exit_text())
                self._replace(worker)
            told.append((worker, report))
        return told

    def release(self, worker: Worker) -> None:
        """Take a worker's task from it, after its run is done."""
        worker.task = None

    def _replace(self, worker: Worker) -> None:
        worker.stop()
        place = self._workers.index(worker)
        self._workers[place] = self._worker(place)

    def _worker(self, place: int) -> Worker:
        return Worker(self._clients_at_once, place % self._gpus if self._gpus else None)


def see_one_gpu(gpu: int, environment: MutableMapping[str, str]) -> None:
    """Have CUDA, which is not started yet, see one GPU of those that it would see."""
    visible = environment.get(_VISIBLE, "")
    names = visible.split(",") if visible else []
    environment[_VISIBLE] = names[gpu].strip() if gpu < len(names) else str(gpu)


def _work(connection: Connection, clients_at_once: int, gpu: int | None = None) -> None:
    """Do tasks until the parent has no more, or is gone."""
    if gpu is not None:
        see_one_gpu(gpu, os.environ)
    # The parent decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task: Task = connection.recv()
        except (EOFError, ConnectionError):
            return
        report = RunDone(_failure(task, connection, clients_at_once))
        give_back_memory()
        connection.send(report)


def give_back_memory() -> None:
    """Give memory that nothing uses back to the system.

    What several threads have freed glibc keeps for them: a worker had 7 GiB after some hours, and
    1.2 GiB of data. Other libraries of C have no such call, and nothing happens there.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _end_with_parent() -> None:
    """Exit as soon as the parent does, even by SIGKILL; the run can be resumed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _failure(task: Task, connection: Connection, clients_at_once: int) -> str:
    """Do a task; return the reason where it failed."""
    from rich.console import Console

    from ahfal_app.results.progress import Progress

    settings = parse_settings(task.settings)
    whole = settings.rounds * float(
        sum(settings.labelled_amount(cycle) for cycle in range(settings.num_cycles))
    )

    class _Told(Progress):
        def round_done(self, record: RoundRecord) -> None:
            share = float(settings.labelled_amount(record.cycle)) / whole
            connection.send(RoundDone(record.cycle, record.round, share))

    try:
        _simulate(task, _Told(Console(quiet=True)), clients_at_once)
    except Exception:  # noqa: BLE001 (ends this run alone)
        # Whatever goes wrong in one run must not end the others; it is kept in full.
        return traceback.format_exc()
    return ""


def _simulate(task: Task, progress: Progress, clients_at_once: int) -> None:
    """Do a run, from where it was left if it was."""
    from ahfal_app.engine.local import simulate

    if task.folder.exists():
        try:
            simulate({"resume": str(task.folder)}, progress, clients_at_once)
            return
        except (ResumeError, CheckpointError):
            # Nothing to go on from; in a simulation no label is lost by starting again.
            shutil.rmtree(task.folder)
    simulate(task.settings, progress, clients_at_once)
