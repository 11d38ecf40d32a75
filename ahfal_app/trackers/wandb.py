"""Weights & Biases: online, or in the run's folder with WANDB_MODE=offline.

What W&B has once been told stays. A record's place in `metrics.jsonl` is its step there, and
only records that it does not have are told. Online the server says how many it has; offline a
file beside the data does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from ahfal_app.parameters import Scalar
from ahfal_app.storage.files import write_text
from ahfal_app.trackers.core.points import REPORT_ARTIFACT, Point, TrackedRun

PROJECT = "ahfal"

#: How many records W&B was told, inside the folder `wandb` of the run.
COUNT = "records-told.txt"

#: The axis of all metrics: federated rounds done.
STEP = "rounds"

#: After that many seconds the end of a run no longer waits for uploads; `wandb sync` has the rest.
_FINISH_TIMEOUT_S = 300


def make(run: TrackedRun, history: Sequence[Point]) -> WeightsAndBiases:
    """Return the tracker of a run, with its history in it."""
    return WeightsAndBiases(run, history)


class WeightsAndBiases:
    """Tells W&B."""

    def __init__(self, run: TrackedRun, history: Sequence[Point]) -> None:
        self._count_file = run.folder / "wandb" / COUNT
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id,
            name=run.folder.name,
            dir=str(run.folder),
            resume="allow",
            settings=wandb.Settings(
                # The terminal is ours: its bar would be sent line by line.
                console="off",
                finish_timeout=_FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("*", step_metric=STEP)
        self._told = self._told_before() if self._run.offline else self._run.step
        self.log(history)

    def log_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Log the settings as the run's config."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def log(self, points: Sequence[Point]) -> None:
        """Tell the points that W&B does not have."""
        for point in points:
            if point.index >= self._told:
                self._run.log({STEP: point.step, **point.metrics}, step=point.index, commit=True)
                self._told = point.index + 1
                self._count_file.parent.mkdir(exist_ok=True)
                write_text(self._count_file, f"{self._told}\n")

    def finish(self, report: Path | None, stopped: str) -> None:
        """Log the report and wait until everything has been sent."""
        if report is not None:
            artifact = wandb.Artifact(f"report-{self._run.id}", type=REPORT_ARTIFACT)
            artifact.add_file(str(report))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=1 if stopped else 0)

    def _told_before(self) -> int:
        return int(self._count_file.read_text()) if self._count_file.is_file() else 0
