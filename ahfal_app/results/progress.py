"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from ahfal_app.results.records import CycleRecord, RoundRecord

#: Plain text gets a line for a round at most this often, besides the last one of a cycle.
SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Observes a run and tells about it; also a context manager that ends the bar.

    Parameters
    ----------
    console : Console, optional
        Where to write; standard output by default. A bar is shown if it is a terminal.
    clock : Callable[[], float]
        Seconds of a monotonic clock.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console()
        self._clock = clock
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._num_cycles = 0
        self._rounds = 0
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        """Return the observer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the bar, whether or not the run went well."""
        self.run_done()

    def run_started(self, num_cycles: int, rounds: int, rounds_done: int = 0) -> None:
        """Start telling about a run.

        Parameters
        ----------
        num_cycles, rounds : int
            Cycles of the run and rounds of each cycle.
        rounds_done : int
            Rounds that a resumed run has behind it.
        """
        self._num_cycles, self._rounds = num_cycles, rounds
        if not self._console.is_terminal:
            return
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(
            "starting", total=num_cycles * rounds, completed=rounds_done
        )
        self._bar.start()

    def round_done(self, record: RoundRecord) -> None:
        """Tell about a round."""
        for failure in record.failed:
            self.warn(f"{self._place(record)}: {failure.who}: {failure.reason}")
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=self._place(record))
            return
        now = self._clock()
        is_last = record.round == self._rounds
        if is_last or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.note(f"{self._place(record)}: {_round_text(record)}")

    def cycle_done(self, record: CycleRecord) -> None:
        """Tell about a cycle."""
        place = f"cycle {record.cycle + 1}/{self._num_cycles}"
        for failure in record.failed:
            self.warn(f"{place}, selection: {failure.who}: {failure.reason}")
        self.note(f"{place}: {_cycle_text(record)}")

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(text, style=None)

    def warn(self, text: str) -> None:
        """Write a line that stands out."""
        self._write(f"warning: {text}", style="yellow")

    def run_done(self) -> None:
        """End the bar; doing so twice does no harm."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _place(self, record: RoundRecord) -> str:
        return f"cycle {record.cycle + 1}/{self._num_cycles} round {record.round}/{self._rounds}"

    def _write(self, text: str, style: str | None) -> None:
        # Clients' words are data: no markup in them, and no wrapping that would split a line.
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


def _round_text(record: RoundRecord) -> str:
    loss = "not finite" if record.train_loss is None else f"{record.train_loss:.4f}"
    words = [f"{record.clients} clients", f"training loss {loss}"]
    if record.test_accuracy is not None:
        words.append(f"test accuracy {record.test_accuracy:.2%}")
    return ", ".join(words)


def _cycle_text(record: CycleRecord) -> str:
    words = [f"test accuracy {record.accuracy:.2%} with {record.labels} labels"]
    if record.low is not None:
        words.append(f"{sum(record.low)} of {len(record.low)} classes low-variance")
    if record.budget:
        words.append(f"{record.bought} of {record.budget} labels bought")
    if record.pending:
        words.append(f"{record.pending} pending")
    return ", ".join(words)
