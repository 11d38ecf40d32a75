"""AHFAL as a library: runs and sweeps as function calls, with their results as objects."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from ahfal_app.config import Settings
from ahfal_app.config_sources import read_settings_file
from ahfal_app.experiments.scales import Scale
from ahfal_app.ledger import Ledger
from ahfal_app.results.reading import MODEL, REPORT, SUMMARY, Metrics, read_run


@dataclass(frozen=True)
class RunResult:
    """A run that is over.

    Attributes
    ----------
    folder : Path
        Its folder.
    settings : Settings
        Every setting, resolved.
    metrics : Metrics
        The records of its rounds and cycles.
    """

    folder: Path
    settings: Settings
    metrics: Metrics

    @classmethod
    def read(cls, folder: Path | str) -> RunResult:
        """Return the run of a folder.

        Raises
        ------
        ResultsError
            There is no run in it.
        """
        run = read_run(Path(folder))
        return cls(run.folder, run.settings, run.metrics)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Test accuracy after each cycle, in [0, 1]."""
        return tuple(cycle.accuracy for cycle in self.metrics.cycles)

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels that each cycle was trained on, over all clients."""
        return tuple(cycle.labels for cycle in self.metrics.cycles)

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last cycle, in [0, 1]."""
        return self.accuracies[-1]

    @property
    def ledger(self) -> Ledger:
        """Labels allotted, spent, reserved and free, at the end, over all clients."""
        return self.metrics.cycles[-1].ledger

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / REPORT

    @property
    def model(self) -> Path:
        """The final global model, as safetensors."""
        return self.folder / MODEL

    @property
    def summary(self) -> Path:
        """The outcome in a few numbers, as JSON."""
        return self.folder / SUMMARY


@dataclass(frozen=True)
class SweepResult:
    """A sweep, as far as it came.

    Attributes
    ----------
    folder : Path
        Its folder; the same call with it goes on where this one ended.
    runs : tuple[RunResult, ...]
        What is done, in the order of the grid, where its folder is here. Of what is done by its
        line in `summaries.jsonl` alone, the report tells.
    failed : Mapping[str, str]
        Why the others failed, by the names of their folders.
    report : Path
        The report, one HTML file.
    """

    folder: Path
    runs: tuple[RunResult, ...]
    failed: Mapping[str, str]
    report: Path


def run(
    settings: Mapping[str, object] | Path | str | None = None,
    *,
    engine: Literal["in-process", "flower"] = "in-process",
    progress: bool = False,
    **more: object,
) -> RunResult:
    """Run federated active learning, as `ahfal run` does, and return what came of it.

    Parameters
    ----------
    settings : Mapping[str, object] | Path | str, optional
        Flat settings by their keys, or a YAML file of them; by default all defaults.
    engine : str
        `in-process`, or `flower`: Flower's simulation.
    progress : bool
        Whether to show progress on standard output.
    **more : object
        Settings that replace those, with `_` for `-`: `num_clients=5`. Parameters of components
        have a dot in their key and go into `settings`.

    Raises
    ------
    ConfigError
        A setting cannot be used; nothing was done.
    AhfalError
        The run had to stop; `resume=folder` goes on.
    """
    if isinstance(settings, Path | str):
        settings = read_settings_file(Path(settings))
    values = {**(settings or {}), **{key.replace("_", "-"): value for key, value in more.items()}}
    console = Console() if progress else Console(file=io.StringIO())
    if engine == "flower":
        from ahfal_app.engine.flower import run_on_flower

        return RunResult.read(run_on_flower(values, console))
    from ahfal_app.engine.local import run_in_process

    return RunResult.read(run_in_process(values, console))


def sweep(
    files: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    settings: Mapping[str, object] | None = None,
    scale: Literal["paper", "small", "smoke"] = "paper",
    jobs: int | None = None,
    force: bool = False,
    progress: bool = False,
) -> SweepResult:
    """Run experiments' grids, what is missing of them, as `ahfal sweep` does.

    Runs are done in processes of their own, which import the program that calls this: a script
    must call it below `if __name__ == "__main__":`.

    Parameters
    ----------
    files : Path | str | Sequence[Path | str]
        Files of experiments.
    out : Path | str
        The sweep's folder; given again, the sweep goes on.
    settings : Mapping[str, object], optional
        Settings that replace the files'.
    scale : str
        How much of it: `paper`, `small` or `smoke`.
    jobs : int, optional
        Runs at the same time; by default one a core, or 4 a GPU.
    force : bool
        Do again what is done.
    progress : bool
        Whether to show progress on standard output.

    Raises
    ------
    ConfigError
        A file or a setting cannot be used; nothing was done.
    SweepError
        Another process is at this sweep.
    """
    from ahfal_app.experiments.files import load_experiments
    from ahfal_app.experiments.report import write_sweep_report
    from ahfal_app.experiments.results import RUNS, is_done
    from ahfal_app.experiments.sweep import run_sweep

    paths = [files] if isinstance(files, Path | str) else files
    experiments = load_experiments([Path(path) for path in paths], Scale(scale), settings or {})
    folder = Path(out).absolute()
    console = Console() if progress else Console(file=io.StringIO())
    result = run_sweep(experiments, folder, console, jobs, force)
    names = dict.fromkeys(run.name for experiment in experiments for run in experiment.runs)
    done = [folder / RUNS / name for name in names if is_done(folder / RUNS / name)]
    runs = tuple(RunResult.read(path) for path in done)
    return SweepResult(folder, runs, result.failed, write_sweep_report(folder))
