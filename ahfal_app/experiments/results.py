"""What a sweep's folder holds: an experiment's plan and the runs that are done.

Shapes: T cycles, R a cycle's last rounds, C classes, K clients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahfal_app.class_statistics import class_proportions
from ahfal_app.code_version import code_hash
from ahfal_app.errors import ReportError, SweepError
from ahfal_app.experiments.comparison import area_under_curve
from ahfal_app.experiments.grid import SEED
from ahfal_app.experiments.paper import PaperNumber
from ahfal_app.experiments.scales import Scale
from ahfal_app.experiments.summaries import Summaries
from ahfal_app.parameters import Scalar, suggestion
from ahfal_app.results.kept import ACCURACY, LOWER_IS_BETTER, value_of
from ahfal_app.results.last_rounds import LastRounds, last_rounds_per_cycle
from ahfal_app.results.reading import Run, read_run

EXPERIMENTS = "experiments"
RUNS = "runs"
FAILURES = "failures"

#: What is compared where nothing but the seed differs: all runs, under one name.
ALL_RUNS = "all"

#: A place in the grid without the seed: (axis, label) pairs in the axes' order.
Point = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True, eq=False)
class RunResult:
    """A run that is done, with its place in the grid, and the metric that runs are compared by.

    Of one that is `summarised` the line in `summaries.jsonl` is all that is here.
    """

    labels: dict[str, Scalar]
    run: Run
    metric: str = ACCURACY
    summarised: bool = False

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.settings.seed

    @property
    def dataset(self) -> str:
        """Short name of its data set."""
        named = str(self.run.environment["data"].get("name", self.run.settings.dataset))
        return named.rstrip("/").rsplit("/", 1)[-1]

    @property
    def point(self) -> Point:
        """Its place in the grid without the seed."""
        return tuple((axis, label) for axis, label in self.labels.items() if axis != SEED)

    @property
    def labels_T(self) -> list[int]:
        """Labels that each cycle's model was trained on."""
        return [cycle.labels for cycle in self.run.metrics.cycles]

    @property
    def values_T(self) -> list[float]:
        """The metric in the test of each cycle, in percent; NaN where it is not defined."""
        found = (value_of(cycle, self.metric) for cycle in self.run.metrics.cycles)
        return [math.nan if value is None else 100 * value for value in found]

    @property
    def final_value(self) -> float | None:
        """The metric in the test of the last cycle, in percent; None where it is not defined."""
        value = self.values_T[-1]
        return None if math.isnan(value) else value

    @property
    def last_rounds_T(self) -> list[LastRounds | None]:
        """The metric in the tests of each cycle's last rounds, in percent.

        None where its end alone was tested, or the metric is not defined in all of them.
        """
        # Of a run that is summarised no rounds are known, but what its summary said of them.
        told = self.run.summary.get("last_rounds_per_cycle", {})
        values_by_name = told if self.summarised else last_rounds_per_cycle(self.run)
        values_TR = values_by_name.get(self.metric) or [()] * len(self.labels_T)
        return [_in_percent(values_R) for values_R in values_TR]

    @property
    def last_rounds(self) -> LastRounds | None:
        """The same of the last cycle."""
        return self.last_rounds_T[-1]

    @property
    def class_accuracy_C(self) -> NDArray[np.float64]:
        """Test accuracy of each class in the last cycle, in percent; NaN without samples."""
        last = self.run.metrics.cycles[-1].class_accuracy
        return np.array([np.nan if value is None else 100 * value for value in last])

    @property
    def knows_partition(self) -> bool:
        """Whether it is known what samples clients have: of simulated ones, and not of sites."""
        return "counts" in self.run.partition

    @property
    def client_counts_KC(self) -> NDArray[np.int64]:
        """Samples of each client and class, labelled or not, where the partition is known."""
        return np.array(self.run.partition["counts"], dtype=np.int64)

    @cached_property
    def class_deviation_C(self) -> NDArray[np.float64]:
        """Deviation over clients of each class's share of all samples, percentage points."""
        deviation_C: NDArray[np.float64] = 100 * class_proportions(self.client_counts_KC).std(
            axis=0
        )
        return deviation_C


@dataclass(frozen=True, eq=False)
class ExperimentResults:
    """An experiment and what is done of it.

    Attributes
    ----------
    title, file : str
        The experiment's title and the name of its file.
    scale : Scale
        How much of it was run.
    axes : dict[str, tuple[Scalar, ...]]
        The labels on each axis.
    overrides : dict[str, Any]
        Settings that replaced the file's.
    paper : tuple[PaperNumber, ...]
        What the paper reports.
    runs : tuple[RunResult, ...]
        The runs that are done.
    missing : tuple[str, ...]
        Folders of those that are not.
    failures : dict[str, str]
        Why some of these failed.
    other_code : bool
        Whether they were run by another version of the code than this.
    warnings : tuple[str, ...]
        What a reader should know: labels that stand for the same run.
    metric : str
        What the runs are compared by.
    compared_with : Scalar | None
        The method that differences are to, where somebody has said it.
    """

    title: str
    file: str
    scale: Scale
    axes: dict[str, tuple[Scalar, ...]]
    overrides: dict[str, Any]
    paper: tuple[PaperNumber, ...]
    runs: tuple[RunResult, ...]
    missing: tuple[str, ...]
    failures: dict[str, str]
    other_code: bool
    warnings: tuple[str, ...] = ()
    metric: str = ACCURACY
    compared_with: Scalar | None = None

    @property
    def method_axis(self) -> str:
        """The axis whose labels are compared: the first one that is not the seed.

        Where there is none, "runs", which is no axis, and whose one label is `ALL_RUNS`.
        """
        return next((axis for axis in self.axes if axis != SEED), "runs")

    @property
    def methods(self) -> tuple[Scalar, ...]:
        """The labels that are compared."""
        return self.axes.get(self.method_axis, (ALL_RUNS,))

    @property
    def reference(self) -> Scalar | None:
        """What the others are compared with; None where all is one.

        What was said, or else AHFAL, or else the first.
        """
        if self.method_axis not in self.axes:
            return None
        if self.compared_with is not None:
            return self.compared_with
        for label in self.methods:
            if str(label).lower() == "ahfal":
                return label
        return self.methods[0] if self.methods else None

    @property
    def settings_points(self) -> list[Point]:
        """The points of all axes but the methods' and the seed, in their order."""
        points = (
            tuple(pair for pair in result.point if pair[0] != self.method_axis)
            for result in self.runs
        )
        order = {axis: list(labels) for axis, labels in self.axes.items()}
        return sorted(
            dict.fromkeys(points), key=lambda point: [order[a].index(label) for a, label in point]
        )

    def at(self, point: Point, method: Scalar) -> list[RunResult]:
        """Return the runs of a method at a point, by seed."""
        wanted = dict(point)
        if self.method_axis in self.axes:
            wanted[self.method_axis] = method
        found = [r for r in self.runs if {k: v for k, v in r.labels.items() if k != SEED} == wanted]
        return sorted(found, key=lambda result: result.seed)

    def of_method(self, method: Scalar) -> list[RunResult]:
        """Return the runs of a method, wherever they are."""
        if self.method_axis not in self.axes:
            return list(self.runs)
        return [run for run in self.runs if run.labels[self.method_axis] == method]

    def by_seed(
        self, point: Point, method: Scalar, measure: Callable[[RunResult], float | None]
    ) -> dict[int, float]:
        """Return a measure of a method's runs at a point, by seed, where there is one."""
        measured = {result.seed: measure(result) for result in self.at(point, method)}
        return {seed: value for seed, value in measured.items() if value is not None}

    def last_rounds(self, point: Point, method: Scalar) -> dict[int, LastRounds]:
        """Return the last rounds of a method's runs at a point, by seed, where they are tested."""
        found = {result.seed: result.last_rounds for result in self.at(point, method)}
        return {seed: last for seed, last in found.items() if last is not None}

    def paper_number(self, point: Point, method: Scalar) -> PaperNumber | None:
        """Return what the paper reports of a method at a point."""
        place = dict(point) | {self.method_axis: method}
        for number in self.paper:
            if number.labels.items() <= place.items():
                return number
        return None


def final_value(result: RunResult) -> float | None:
    """Return the metric in the test of a run's last cycle."""
    return result.final_value


def area(result: RunResult) -> float | None:
    """Return the area under a run's learning curve, in percent; None where a value is missing."""
    values_T = result.values_T
    return area_under_curve(result.labels_T, values_T) if np.isfinite(values_T).all() else None


def read_experiments(out: Path, metric: str = "", reference: str = "") -> list[ExperimentResults]:
    """Read all experiments of a sweep's folder.

    Parameters
    ----------
    out : Path
        The sweep's folder.
    metric : str
        What the runs are compared by, of which more is better; empty: the setting `metric`, where
        it is the same in all runs of an experiment, and else the accuracy.
    reference : str
        The method that differences are to; empty: as the experiment's file says.

    Raises
    ------
    SweepError
        The folder is not one of a sweep.
    ReportError
        Runs have no such metric, or an experiment no such method.
    """
    files = sorted((out / EXPERIMENTS).glob("*.json"))
    if not files:
        raise SweepError(f"{out.absolute()}: not the folder of a sweep: no {EXPERIMENTS}/*.json")
    summaries = Summaries(out)
    experiments = [_read_experiment(out, file, summaries) for file in files]
    return [with_reference(reference, compared_by(metric, each)) for each in experiments]


def with_reference(reference: str, results: ExperimentResults) -> ExperimentResults:
    """Return an experiment's results with the method that the others are compared with.

    Raises
    ------
    ReportError
        There is none of this name.
    """
    if not reference:
        return results
    labels = {str(label): label for label in results.methods}
    if reference not in labels:
        raise ReportError(
            f"{results.file}: reference={reference!r}: allowed is {' | '.join(labels)}"
            f"{suggestion(reference, labels)}"
        )
    return replace(results, compared_with=labels[reference])


def compared_by(metric: str, results: ExperimentResults) -> ExperimentResults:
    """Return an experiment's results with the metric that its runs are compared by.

    Parameters
    ----------
    metric : str
        As of `read_experiments`.
    results : ExperimentResults
        What is done of the experiment.

    Raises
    ------
    ReportError
        A run has no such metric.
    """
    said = {result.run.settings.metric for result in results.runs}
    of_all = said.pop() if len(said) == 1 else ACCURACY
    wanted = metric or (ACCURACY if of_all in LOWER_IS_BETTER else of_all)
    for result in results.runs:
        others = result.run.metrics.cycles[-1].metrics.keys() - {ACCURACY} - LOWER_IS_BETTER
        known = (ACCURACY, *sorted(others))
        if wanted not in known:
            raise ReportError(
                f"{result.run.folder}: metric={wanted!r}: allowed is {' | '.join(known)}"
                f"{suggestion(wanted, known)}"
            )
    runs = tuple(replace(result, metric=wanted) for result in results.runs)
    return replace(results, runs=runs, metric=wanted)


def _in_percent(values_R: Sequence[float | None]) -> LastRounds | None:
    known = [100 * value for value in values_R if value is not None]
    # A range of one is none, and one with a gap would be another.
    return LastRounds(tuple(known)) if len(known) == len(values_R) > 1 else None


def is_done(folder: Path) -> bool:
    """Return whether a folder holds a run that has come to its end."""
    return read_done(folder) is not None


def _read_experiment(out: Path, file: Path, summaries: Summaries) -> ExperimentResults:
    try:
        plan = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SweepError(f"{file}: cannot be read: {error}") from error
    runs, missing, failures = [], [], {}
    for entry in plan["runs"]:
        run = read_done(out / RUNS / entry["folder"])
        if run is not None:
            runs.append(RunResult(entry["labels"], run))
            continue
        run = summaries.run(entry.get("summary", entry["folder"]))
        if run is not None:
            runs.append(RunResult(entry["labels"], run, summarised=True))
            continue
        missing.append(entry["folder"])
        failure = out / FAILURES / f"{entry['folder']}.txt"
        if failure.is_file():
            failures[entry["folder"]] = failure.read_text().strip().splitlines()[-1]
    return ExperimentResults(
        title=plan["title"],
        file=plan["file"],
        scale=Scale(plan["scale"]),
        axes={axis: tuple(labels) for axis, labels in plan["axes"].items()},
        overrides=plan["overrides"],
        paper=tuple(PaperNumber.model_validate(number) for number in plan["paper"]),
        runs=tuple(runs),
        missing=tuple(missing),
        failures=failures,
        other_code=plan["code"] != code_hash(),
        warnings=tuple(plan.get("warnings", ())),
        compared_with=plan.get("reference"),
    )


def read_done(folder: Path) -> Run | None:
    """Return the run in a folder if it has come to its end, or None."""
    try:
        run = read_run(folder)
    except ReportError:
        return None
    return run if run.is_complete and run.summary.get("complete") else None
