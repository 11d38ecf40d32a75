"""What a person sees of a sweep: a bar for all runs with the time left, one for each at work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ahfal_app.experiments.workers import RoundDone


class SweepProgress:
    """Bars on a terminal, a line for each run elsewhere; also a context manager.

    Parameters
    ----------
    console : Console
        Where to write.
    passes : Mapping[str, int]
        How long each run takes, in any unit.
    done : Collection[str]
        Runs that need not be done.
    """

    def __init__(self, console: Console, passes: Mapping[str, int], done: Collection[str]) -> None:
        self._console = console
        self._passes = passes
        self._total = len(passes)
        self._ended = len(done)
        self._failed = 0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        # What is done already must not speed up the estimate of the time left.
        self._missing = sum(count for name, count in passes.items() if name not in done)
        self._all = self._bars.add_task(self._overview(), total=max(1, self._missing))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start the bars."""
        self._bars.start()
        if self._ended:
            self._line(f"{self._ended} of {self._total} runs are done already")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the bars and tell the outcome."""
        self._bars.stop()
        self._line(self._overview())

    def started(self, name: str) -> None:
        """Tell that a run has started."""
        self._tasks[name] = self._bars.add_task(name, total=self._passes[name])

    def round_done(self, name: str, done: RoundDone) -> None:
        """Tell that a run has done a round."""
        share = self._passes[name] * done.share
        self._bars.update(
            self._tasks[name],
            advance=share,
            description=f"{name} cycle {done.cycle + 1} round {done.round}",
        )
        self._bars.update(self._all, advance=share)

    def ended(self, name: str, failure: str) -> None:
        """Tell that a run has ended, with the reason where it failed."""
        task = self._tasks.pop(name)
        rest = self._passes[name] - self._bars.tasks[self._bars.task_ids.index(task)].completed
        self._bars.remove_task(task)
        self._ended += 1
        self._failed += bool(failure)
        self._bars.update(self._all, advance=rest, description=self._overview())
        if failure:
            self._line(f"failed: {name}: {failure.strip().splitlines()[-1]}", style="red")
        else:
            self._line(f"done ({self._ended}/{self._total}): {name}")

    def _overview(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended} of {self._total} runs{failed}"

    def _line(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
