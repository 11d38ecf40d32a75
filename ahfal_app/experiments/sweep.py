"""Running an experiment's grid: what is missing, in parallel, and again after any stop."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from ahfal_app.code_version import code_hash
from ahfal_app.config import Settings
from ahfal_app.errors import SweepError
from ahfal_app.experiments.files import Experiment, PlannedRun
from ahfal_app.experiments.progress import SweepProgress
from ahfal_app.experiments.results import EXPERIMENTS, FAILURES, RUNS, read_done
from ahfal_app.experiments.summaries import SUMMARIES, Summaries
from ahfal_app.experiments.workers import RoundDone, Task, Workers
from ahfal_app.storage.files import write_json, write_text

_WAIT_S = 0.5
_JOBS_PER_GPU = 4


@dataclass
class SweepResult:
    """What a sweep came to."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_sweep(
    experiments: Sequence[Experiment],
    out: Path,
    console: Console,
    jobs: int | None = None,
    force: bool = False,
) -> SweepResult:
    """Do all runs of some experiments that are not done yet.

    A run is known by its settings, the code, and the data and backbone that it had: experiments
    share the runs that they have in common, and one that was stopped in the middle goes on where it
    was. What is done gets a line in `summaries.jsonl`, and a run whose line is there is done
    without its folder. Failures are kept in files and do not stop the others.

    Parameters
    ----------
    experiments : Sequence[Experiment]
        From `load_experiments`.
    out : Path
        The sweep's folder; may hold other experiments' runs, too.
    console : Console
        Where progress is shown.
    jobs : int, optional
        Worker processes; by default one a core, or a few for each GPU, but no more than runs.
    force : bool
        Do all runs again.

    Raises
    ------
    SweepError
        The folder cannot be used, or another process is at it.
    """
    out = out.absolute()
    try:
        (out / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"{out}: no folder can be made there ({error.strerror})") from error
    try:
        with FileLock(out / ".lock", blocking=False):
            for warning in (each for experiment in experiments for each in experiment.warnings):
                console.print(f"warning: {warning}", markup=False, soft_wrap=True)
            runs = {run.name: run for experiment in experiments for run in experiment.runs}
            summaries = Summaries(out)
            if force:
                for name in runs:
                    shutil.rmtree(out / RUNS / name, ignore_errors=True)
                summaries.drop(summaries.standing_for(runs.values()).values())
            in_folders, summarised = _done_already(runs, out, summaries, console)
            if summarised:
                console.print(f"{len(summarised)} runs are done by {SUMMARIES}, without a folder")
            for experiment in experiments:
                _tell_of_other_plan(experiment, out, console)
                _write_plan(experiment, out, summarised)
            result = SweepResult(skipped=[n for n in runs if n in in_folders or n in summarised])
            _run_missing(runs, _Place(out, summaries), console, jobs, result)
            return result
    except Timeout:
        raise SweepError(f"{out}: another process is at this sweep") from None


@dataclass(frozen=True, eq=False)
class _Place:
    """A sweep's folder and its summaries."""

    out: Path
    summaries: Summaries


def _done_already(
    runs: Mapping[str, PlannedRun], out: Path, summaries: Summaries, console: Console
) -> tuple[set[str], dict[str, str]]:
    """Return which runs are done by their folders, and which by what lines alone."""
    in_folders = _in_folders(runs, out, summaries, console)
    summarised = summaries.standing_for(run for name, run in runs.items() if name not in in_folders)
    for name in runs:
        if name not in in_folders and name not in summarised:
            # Or the report would count the line for the run that is missing.
            summaries.put_aside(name)
    return in_folders, summarised


def _in_folders(
    runs: Mapping[str, PlannedRun], out: Path, summaries: Summaries, console: Console
) -> set[str]:
    """Return which runs are done by their folders; each of them has a line from then on.

    Runs of other data than lie there now keep their folders, under other names.
    """
    found, others = set(), []
    for name, planned in runs.items():
        run = read_done(out / RUNS / name)
        if run is None:
            continue
        summaries.add(planned, run)
        if summaries.is_same(planned, run):
            found.add(name)
        else:
            others.append(summaries.put_aside(name))
            # One that is there already is of the same settings, code and data.
            shutil.rmtree(out / RUNS / others[-1], ignore_errors=True)
            (out / RUNS / name).rename(out / RUNS / others[-1])
    if others:
        console.print(
            f"{len(others)} runs are of other data, or of another backbone, than lie there now, "
            f"and are done again; those stay in {out / RUNS}, such as {others[0]}",
            soft_wrap=True,
            markup=False,
        )
    return found


def _run_missing(
    runs: Mapping[str, PlannedRun],
    place: _Place,
    console: Console,
    jobs: int | None,
    result: SweepResult,
) -> None:
    missing = deque(run for name, run in runs.items() if name not in result.skipped)
    cores = os.cpu_count() or 1
    gpus = torch.cuda.device_count() if any(r.settings.device != "cpu" for r in missing) else 0
    jobs = max(1, min(jobs or default_jobs(cores, gpus), len(missing)))
    threads = max(run.settings.threads for run in runs.values())
    clients_at_once = max(1, cores // (jobs * max(1, threads)))
    passes = {name: sample_passes(run.settings) for name, run in runs.items()}
    with SweepProgress(console, passes, result.skipped) as progress:
        if missing:
            with Workers(jobs, clients_at_once, gpus_to_share(missing, gpus)) as workers:
                _drive(missing, place, workers, progress, result)


def default_jobs(cores: int, gpus: int) -> int:
    """Return how many runs to do at once.

    On a GPU, clients of one run train together already; a few runs fill the pauses in which they
    select and are tested. How many pay best has not been measured.
    """
    return min(cores, _JOBS_PER_GPU * gpus) if gpus else cores


def gpus_to_share(runs: Iterable[PlannedRun], gpus: int) -> int:
    """Return among how many GPUs the workers are dealt out; none where a run names its own."""
    return 0 if any(":" in run.settings.device for run in runs) else gpus


def _drive(
    missing: deque[PlannedRun],
    place: _Place,
    workers: Workers,
    progress: SweepProgress,
    result: SweepResult,
) -> None:
    running = 0
    planned_by_name = {planned.name: planned for planned in missing}
    while missing or running:
        for worker in workers.idle():
            if not missing:
                break
            planned = missing.popleft()
            worker.start(_task(planned, place.out))
            progress.started(planned.name)
            running += 1
        for worker, report in workers.wait(_WAIT_S):
            if worker.task is None:
                continue
            name = worker.task.name
            if isinstance(report, RoundDone):
                progress.round_done(name, report)
                continue
            workers.release(worker)
            running -= 1
            _close(planned_by_name[name], report.failure, place, result)
            progress.ended(name, report.failure)


def _close(planned: PlannedRun, failure: str, place: _Place, result: SweepResult) -> None:
    name = planned.name
    path = place.out / FAILURES / f"{name}.txt"
    if failure:
        path.parent.mkdir(exist_ok=True)
        write_text(path, failure)
        result.failed[name] = failure.strip().splitlines()[-1]
    else:
        path.unlink(missing_ok=True)
        run = read_done(place.out / RUNS / name)
        if run is not None:
            place.summaries.add(planned, run)
        result.done.append(name)


def _task(planned: PlannedRun, out: Path) -> Task:
    folder = out / RUNS / planned.name
    place = {"output_dir": str(folder.parent), "name": folder.name}
    settings = planned.settings.model_copy(update=place)
    return Task(planned.name, settings.to_flat(), folder)


def sample_passes(settings: Settings) -> int:
    """Return a number in proportion to how long a run takes: labels times epochs."""
    labels = sum(settings.labelled_amount(cycle) for cycle in range(settings.num_cycles))
    return max(1, round(1000 * labels * settings.rounds * settings.local_epochs))


def _plan_file(experiment: Experiment, out: Path) -> Path:
    return out / EXPERIMENTS / f"{experiment.file.stem}-{experiment.scale.value}.json"


def _tell_of_other_plan(experiment: Experiment, out: Path, console: Console) -> None:
    """Say so if this plan takes the place of another one that has runs which this has not."""
    path = _plan_file(experiment, out)
    try:
        planned = [run["labels"] for run in json.loads(path.read_bytes())["runs"]]
    except (OSError, ValueError, LookupError, TypeError):
        return
    # By their places: a run that was done on another machine has another name there.
    left = [labels for labels in planned if labels not in [run.labels for run in experiment.runs]]
    if left:
        console.print(
            f"{path}: planned {len(left)} runs that {experiment.file.name} does not have now; what "
            f"is done of them stays in {out / RUNS}, and the report has this plan's alone",
            soft_wrap=True,
            markup=False,
        )


def _write_plan(experiment: Experiment, out: Path, summarised: Mapping[str, str]) -> None:
    (out / EXPERIMENTS).mkdir(exist_ok=True)
    write_json(
        _plan_file(experiment, out),
        {
            "title": experiment.title,
            "file": experiment.file.name,
            "scale": experiment.scale.value,
            "code": code_hash(),
            "axes": {name: list(points) for name, points in experiment.axes.items()},
            "overrides": experiment.overrides,
            "paper": [number.model_dump() for number in experiment.paper],
            "warnings": list(experiment.warnings),
            "reference": experiment.reference,
            # A run that was done on another machine has another name there.
            "runs": [
                {
                    "folder": run.name,
                    "labels": run.labels,
                    "summary": summarised.get(run.name, run.name),
                }
                for run in experiment.runs
            ],
        },
    )
