"""TensorBoard: event files in the run's folder; `tensorboard --logdir runs` shows all runs.

Event files cannot be corrected, and a killed process leaves them torn. They are small, so a
resumed run writes them anew from its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ahfal_app.parameters import Scalar
from ahfal_app.trackers.core.points import Point, TrackedRun

FOLDER = "tensorboard"

#: What the HPARAMS page shows beside the settings.
_OUTCOMES = ("cycle/accuracy", "cycle/loss", "cycle/labels")


def make(run: TrackedRun, history: Sequence[Point]) -> TensorBoard:
    """Return the tracker of a run, with its history in it."""
    return TensorBoard(run.folder / FOLDER, history)


class TensorBoard:
    """Writes event files into a folder."""

    def __init__(self, folder: Path, history: Sequence[Point]) -> None:
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer = SummaryWriter(str(folder))
        self.log(history)

    def log_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Write the settings for the HPARAMS page, and as text."""
        writer = cast(FileWriter, self._writer.file_writer)
        # `add_hparams` would make a run of its own of them, apart from the metrics.
        for summary in hparams(dict(settings), dict.fromkeys(_OUTCOMES, 0.0)):
            writer.add_summary(summary)
        lines = yaml.safe_dump(dict(settings), sort_keys=False).splitlines()
        # Four spaces make it code in Markdown.
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in lines))
        self._writer.flush()

    def log(self, points: Sequence[Point]) -> None:
        """Write points; they are on disk when this returns."""
        for point in points:
            for name, value in point.metrics.items():
                self._writer.add_scalar(name, value, point.step, point.time)
        self._writer.flush()

    def finish(self, report: Path | None, stopped: str) -> None:
        """Close the file; TensorBoard has no artifacts and knows no status."""
        self._writer.close()
