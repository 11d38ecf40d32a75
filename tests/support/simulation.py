"""Small runs on digits in this process, with whatever a test wants to go wrong."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock
from flwr.app import Context, Message
from rich.console import Console

from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import Metrics, read_metrics
from ahfal_app.server.run import execute
from ahfal_app.server.start import Start, prepare

#: Three clients, three cycles of two rounds: a run of half a second. Convolutions would take as
#: long as all else together; where a test is about them or about batch norm, it names the model.
TINY: dict[str, object] = {
    "model": "mlp",
    "client-batching": "never",
    "num-clients": 3,
    "rounds": 2,
    "local-epochs": 1,
    "initial-fraction": 0.05,
    "query-fraction": 0.05,
    "target-fraction": 0.15,
    "quorum": 0.3,
}

Handler = Callable[[Message, Context], Message]


@dataclass
class Outcome:
    """What a run left behind."""

    folder: Path
    log: str

    @property
    def metrics(self) -> Metrics:
        return read_metrics(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    @property
    def selections(self) -> list[dict[str, Any]]:
        path = self.folder / "selections.parquet"
        return pq.read_table(path).to_pylist() if path.exists() else []

    @property
    def result(self) -> tuple[object, ...]:
        """Everything that must be equal between equal runs."""
        model = (self.folder / "model.safetensors").read_bytes()
        cycles = [
            (c.accuracy, c.class_accuracy, c.loss, c.labels_per_client, c.mean, c.deviation)
            for c in self.metrics.cycles
        ]
        losses = [(r.cycle, r.round, r.train_loss) for r in self.metrics.rounds]
        # As text, since the scores of a strategy that has none are NaN.
        return repr(self.selections), cycles, losses, model


class Simulation:
    """Runs settings in this process, each call of a client going through a handler."""

    def __init__(self, output_dir: Path, data_dir: Path) -> None:
        self.base = {"output-dir": str(output_dir), "data-dir": str(data_dir)}

    def __call__(
        self,
        settings: dict[str, object] | None = None,
        handler: Handler = client_app,
        grid: type[InProcessGrid] = InProcessGrid,
        workers: int = 1,
        **more: object,
    ) -> Outcome:
        values = {**TINY, **self.base, **(settings or {}), **more}
        start = prepare(values)
        nodes = grid(handler, start.settings.num_clients, workers)  # type: ignore[arg-type]
        return self._executed(start, nodes)

    def resume(
        self,
        folder: Path,
        handler: Handler = client_app,
        grid: type[InProcessGrid] = InProcessGrid,
        workers: int = 1,
        **said: object,
    ) -> Outcome:
        start = prepare({"resume": str(folder), **said})
        nodes = grid(handler, start.settings.num_clients, workers)  # type: ignore[arg-type]
        return self._executed(start, nodes)

    def _executed(self, start: Start, grid: InProcessGrid) -> Outcome:
        output = io.StringIO()
        with grid as nodes:
            folder = execute(start, nodes, Progress(Console(file=output, width=200)))
        return Outcome(folder, output.getvalue())


class SharedRuns:
    """Runs of settings in this process, each made once for the tests of all processes.

    Parameters
    ----------
    folder : Path
        Where they lie.
    data_dir : Path
        Decoded data.
    """

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self._folder = folder
        self._simulation = Simulation(folder, data_dir)

    def __call__(self, settings: dict[str, object] | None = None, **more: object) -> Outcome:
        """Return the run of some settings, which are small ones where they do not say else."""
        values = {**(settings or {}), **more}
        text = json.dumps(values, sort_keys=True)
        folder = self._folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        log = folder / "log"
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not log.exists():
                outcome = self._simulation(values, name=folder.name)
                log.write_text(outcome.log)
        return Outcome(folder, log.read_text())
