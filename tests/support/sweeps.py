"""Sweeps in this process: one of its own takes longer to start than small runs take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from ahfal_app.experiments import workers


class WorkerHere:
    """Stands in for a worker: does its task as soon as it has it."""

    def __init__(self) -> None:
        self.task: workers.Task | None = None
        self.reports: list[workers.Report] = []

    def start(self, task: workers.Task) -> None:
        self.task = task
        failure = workers._failure(task, self, 1)  # type: ignore[arg-type]
        self.send(workers.RunDone(failure))

    def send(self, report: workers.Report) -> None:
        self.reports.append(report)


class WorkersHere:
    """Stands in for `Workers`."""

    def __init__(self, count: int, clients_at_once: int, gpus: int = 0) -> None:
        self._workers = [WorkerHere() for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def idle(self) -> list[WorkerHere]:
        return [worker for worker in self._workers if worker.task is None]

    def wait(self, timeout: float) -> list[tuple[WorkerHere, workers.Report]]:
        told = [(worker, report) for worker in self._workers for report in worker.reports]
        for worker in self._workers:
            worker.reports.clear()
        return told

    def release(self, worker: WorkerHere) -> None:
        worker.task = None


@contextmanager
def sweeps_here() -> Iterator[None]:
    """Have sweeps do their runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ahfal_app.experiments.sweep.Workers", WorkersHere)
        yield
