"""A tracker behind a wall: whatever happens to it, the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ahfal_app.parameters import Scalar
from ahfal_app.results.records import Record
from ahfal_app.trackers.core.points import Point, TrackedRun, Tracker, point_of


class Tracking:
    """Hands a run's records to a tracker; also a context manager that ends the tracking.

    A record counts only once the checkpoint behind it is written: what is recorded before and
    lost with a crash is done again, and would appear twice. After a failure the tracker is left
    alone until the end of the run, since waiting for a dead server in every round would hold up
    the training; then what is missing is tried once more.

    Parameters
    ----------
    tracker : Tracker | None
        None: nothing is tracked.
    name : str
        How it is called in warnings.
    run : TrackedRun
        The run that is tracked.
    num_records : int
        Records that the tracker has already.
    warn : Callable[[str], None]
        Tells people about the first failure.
    """

    def __init__(
        self,
        tracker: Tracker | None,
        name: str,
        run: TrackedRun,
        num_records: int,
        warn: Callable[[str], None],
    ) -> None:
        self._tracker = tracker
        self._name = name
        self._run = run
        self._num_records = num_records
        self._warn = warn
        self._settings: dict[str, Scalar] = {}
        self._settings_logged: dict[str, Scalar] = {}
        self._uncommitted: list[Point] = []
        self._pending: list[Point] = []
        self._failed = False

    def __enter__(self) -> Self:
        """Return the tracking itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what `finish` has not ended."""
        self.finish(None, kind.__name__ if kind else "")

    def log_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Hand over the resolved settings, where they are not what was handed over before."""
        self._settings = dict(settings)
        self._hand_over()

    def recorded(self, record: Record) -> None:
        """Keep a record until its checkpoint is written."""
        index = self._num_records + len(self._uncommitted)
        self._uncommitted.append(point_of(record, index, self._run))

    def committed(self) -> None:
        """Hand over what was recorded, since the run cannot fall back behind it any more."""
        self._num_records += len(self._uncommitted)
        self._pending += self._uncommitted
        self._uncommitted = []
        self._hand_over()

    def finish(self, report: Path | None, stopped: str = "") -> None:
        """End the tracking; doing so twice does no harm.

        Parameters
        ----------
        report : Path | None
            The run's report, if there is one.
        stopped : str
            Why the run ended early; empty if it did not.
        """
        self._hand_over(last=True)
        tracker = self._tracker
        if tracker is not None:
            self._guarded(lambda: tracker.finish(report, stopped))
        self._tracker = None

    def _hand_over(self, last: bool = False) -> None:
        if self._tracker is None or (self._failed and not last):
            return
        self._guarded(self._log_pending)

    def _log_pending(self) -> None:
        if self._tracker is None:
            return
        if self._settings != self._settings_logged:
            self._tracker.log_settings(self._settings)
            self._settings_logged = self._settings
        if self._pending:
            self._tracker.log(self._pending)
            self._pending = []

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001
            # Libraries raise whatever they like, and none of it is worth a run.
            if not self._failed:
                self._warn(
                    f"tracker={self._name}: {type(error).__name__}: {error}; the run goes on, and "
                    "what is missing there is tried once more at its end"
                )
            self._failed = True
