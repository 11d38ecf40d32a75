"""`report.html`: a run in one file that opens from disk and needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ahfal_app.class_statistics import Dispersion, dispersion_percent
from ahfal_app.config import SITES, Settings
from ahfal_app.errors import ReportError
from ahfal_app.results import (
    evaluation_charts,
    evaluation_tables,
    figures,
    heat_maps,
    tables,
)
from ahfal_app.results.arrivals import (
    accuracies_by_task,
    arrivals_table,
    arrived_classes,
    class_tasks,
    first_cycles,
    forgetting_table,
    mix_table,
    tasks_table,
)
from ahfal_app.results.costs import amount, cost_of, money
from ahfal_app.results.drift import audit_table, drift_table
from ahfal_app.results.grants import grants_table
from ahfal_app.results.kept import kept_of
from ahfal_app.results.last_rounds import last_accuracies
from ahfal_app.results.policy import policy_table
from ahfal_app.results.privacy import privacy_table
from ahfal_app.results.reading import PARTITION, REPORT, Run, read_run
from ahfal_app.results.records import CycleRecord, TestRecord
from ahfal_app.results.selections import read_class_counts
from ahfal_app.results.stopping import SERIES, saved_labels, stopping_table
from ahfal_app.results.summary import status_text
from ahfal_app.results.svg import Chart
from ahfal_app.results.tables import TextTable, grid_table
from ahfal_app.results.template import PAGE, STYLE
from ahfal_app.results.units import bounds_text, bytes_text, percent, seconds_text
from ahfal_app.storage.files import write_text


@dataclass(frozen=True)
class Fact:
    """A headline number."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """A figure with its caption and the numbers behind it."""

    chart: Chart
    caption: str
    table: TextTable | None = None


def write_report(folder: Path) -> Path:
    """Write the report of a run, also of one that goes on or was killed.

    Equal folders give equal reports, byte by byte.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Returns
    -------
    Path
        Absolute path of `report.html`.

    Raises
    ------
    ReportError
        The folder lacks `config.yaml` or `metrics.jsonl`, or a file cannot be read.
    """
    run = read_run(folder)
    path = run.folder / REPORT
    write_text(path, render_report(run))
    return path


def render_report(run: Run) -> str:
    """Return the report of a run as HTML."""
    settings = run.settings
    return _page().render(
        title=run.folder.name,
        subtitle=f"{settings.strategy} on {settings.data_name}, seed {settings.seed}",
        style=STYLE,
        banner=_banner(run),
        facts=_facts(run),
        panels=_panels(run),
        tables=_tables(run),
    )


@cache
def _page() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE)


def _banner(run: Run) -> str:
    status = status_text(run)
    return f"{status[0].upper()}{status[1:]}." if status else ""


def _facts(run: Run) -> list[Fact]:
    metrics, settings = run.metrics, run.settings
    facts = []
    if metrics.cycles:
        last = metrics.cycles[-1]
        name = "Final test accuracy" if run.is_complete else "Test accuracy so far"
        facts += [
            Fact(name, percent(last.accuracy), _trained_note(last)),
            *_kept_fact(run),
            Fact("Labels spent", f"{last.ledger.spent:,}", _ledger_note(last)),
            Fact("Clients", f"{len(last.labels_per_client)}", _partition_note(run)),
            *_cost_fact(run),
        ]
    seconds = sum(metrics.seconds.values())
    sent = f"{bytes_text(metrics.bytes_down)} to, {bytes_text(metrics.bytes_up)} from clients"
    return [
        *facts,
        Fact("Query strategy", settings.strategy, _strategy_note(settings)),
        Fact("Data set", settings.data_name, _data_note(run)),
        Fact("Cycles", f"{len(metrics.cycles)} of {settings.num_cycles}", _rounds_note(run)),
        Fact("Time", seconds_text(seconds), "sum over all phases"),
        Fact("Sent", bytes_text(metrics.bytes_down + metrics.bytes_up), sent),
    ]


def _cost_fact(run: Run) -> list[Fact]:
    cost = cost_of(run)
    if cost is None:
        return []
    parts = [f"{money(cost.labels, cost.currency)} for labels"]
    if cost.rounds:
        parts.append(f"{money(cost.rounds, cost.currency)} for rounds")
    if saved := saved_labels(run):
        price = money(amount(saved, run.settings.label_cost), cost.currency)
        parts.append(f"{price} saved by stopping")
    return [Fact("Cost", money(cost.total, cost.currency), ", ".join(parts))]


def _kept_fact(run: Run) -> list[Fact]:
    kept = kept_of(run)
    if kept is None or not kept.is_chosen:
        return []
    return [Fact("Accuracy of the best model", percent(kept.accuracy), f"{kept.where}; {kept.why}")]


def _trained_note(cycle: CycleRecord) -> str:
    """Tell what the accuracy is worth, and what the model was trained on."""
    bounds = cycle.tests[0].intervals.get("accuracy") if cycle.tests else None
    words = [f"95 %: {bounds_text(bounds)}"] if bounds else []
    words.append(f"trained on {cycle.labels:,} labels")
    if cycle.held_out:
        words.append(f"{cycle.held_out:,} held out")
    return "; ".join(words)


def _ledger_note(cycle: CycleRecord) -> str:
    ledger = cycle.ledger
    rest = f", {ledger.reserved:,} reserved" if ledger.reserved else ""
    return f"of {ledger.allotted:,} allotted{rest}, {ledger.free:,} free"


def _data_note(run: Run) -> str:
    words = [f"model {run.settings.model}"]
    if augmentation := run.environment.get("resolved", {}).get("augmentation"):
        words.append(_augmentation_note(augmentation))
    if not run.settings.has_dataset:
        words.append("the server has none: classes and format are those of the settings")
    if not_used := run.environment.get("data", {}).get("not_used"):
        words.append(f"{sum(line['count'] for line in not_used):,} found and not used")
    words += run.environment.get("data", {}).get("notes", ())
    return "; ".join(words)


def _augmentation_note(augmentation: Mapping[str, Any]) -> str:
    padding, flip = augmentation["padding"], augmentation["flip"]
    moved = f"moved by up to {padding} {'pixel' if padding == 1 else 'pixels'}" if padding else ""
    words = " and ".join(filter(None, (moved, "mirrored" if flip else "")))
    return f"in training, images are {words} at random" if words else "images are not augmented"


def _partition_note(run: Run) -> str:
    settings = run.settings
    skew = "" if settings.partition in ("iid", SITES) else f", alpha {settings.alpha:g}"
    return f"{settings.partition}{skew}"


def _rounds_note(run: Run) -> str:
    rounds = f"{len(run.metrics.rounds)} rounds, {run.settings.rounds} in a cycle"
    stopped_by = run.metrics.cycles[-1].stopped_by if run.metrics.cycles else ""
    if not stopped_by:
        return rounds
    return (
        f"{rounds}; stopping={run.settings.stopping}: {stopped_by}; {saved_labels(run):,} labels "
        "fewer than planned"
    )


def _panels(run: Run) -> list[Panel]:
    cycles = run.metrics.cycles
    candidates = [
        _learning_panel(run) if cycles else None,
        _deviation_panel(run) if cycles else None,
        _accuracy_panel(run) if cycles else None,
        _partition_panel(run),
        *_test_panels(run),
        _arrivals_panel(run) if run.class_names else None,
        _tasks_panel(run) if cycles else None,
        _selection_panel(run) if run.class_names else None,
        _rounds_panel(run) if run.metrics.rounds else None,
        _predictions_panel(cycles),
    ]
    return [panel for panel in candidates if panel is not None]


def _learning_panel(run: Run) -> Panel:
    cycles, headings, note = run.metrics.cycles, ["Labels", "Test accuracy"], ""
    rows = {f"{c.cycle + 1}": [f"{c.labels:,}", percent(c.accuracy)] for c in cycles}
    last_rounds = [last_accuracies(run, cycle) for cycle in cycles]
    if any(last_rounds):
        among = f"the last {run.settings.last_rounds} rounds"
        headings += [f"Mean of {among}", "Lowest to highest"]
        for cells, last in zip(rows.values(), last_rounds, strict=True):
            bounds = None if last is None else (last.low, last.high)
            cells += ["" if last is None else percent(last.mean), bounds_text(bounds, digits=2)]
        note = f"Bars: from the lowest to the highest of {among}. "
    where = "the server's test set"
    if cycles[-1].tests:
        where = evaluation_charts.WHERE[cycles[-1].tests[0].where]
    warning = evaluation_tables.size_warning(cycles)
    return Panel(
        figures.learning_curve(cycles, last_rounds),
        f"Of the global model on {where}, at the end of each cycle. {note}{warning}".rstrip(),
        grid_table("Test accuracy against labels", "Cycle", headings, rows),
    )


def _test_panels(run: Run) -> list[Panel]:
    """Return the charts of the last test, of each place where it was made."""
    if not run.metrics.cycles or not run.class_names:
        return []
    last, panels = run.metrics.cycles[-1], list[Panel]()
    for test in last.tests:
        where = evaluation_charts.WHERE[test.where]
        if (confusion := evaluation_charts.confusion_chart(test, run.class_names)) is not None:
            panels.append(
                Panel(
                    confusion,
                    f"Of the last global model on {where}; each row in percent of the samples of "
                    "its class. Grey: no samples.",
                    _confusion_table(test, run.class_names),
                )
            )
        if (calibration := evaluation_charts.calibration_chart(test)) is not None:
            panels.append(
                Panel(
                    calibration,
                    f"How often the last global model is right on {where}, by how sure it is. "
                    "Larger dots: more samples; on the dashed line it is as sure as it should be.",
                )
            )
    if last.sites:
        whole = next(test for test in last.tests if test.where == "sites")
        panels.append(
            Panel(
                evaluation_charts.sites_chart(last.sites, whole),
                "Of the last global model on what each site holds out.",
            )
        )
    return panels


def _confusion_table(test: TestRecord, class_names: Sequence[str]) -> TextTable:
    rows = {
        f"{place}: {name}": [f"{count:,}" for count in test.confusion[place]]
        for place, name in enumerate(class_names)
    }
    return grid_table("Samples by true and predicted class", "True class", class_names, rows)


def _strategy_note(settings: Settings) -> str:
    unit = figures.DISPERSION_WORDS[settings.dispersion][1]
    words = [f"threshold τ: {settings.tau:g} {unit}"]
    if settings.tau_rule == "otsu":
        words = [f"threshold τ: by Otsu's method in each cycle, in {unit}"]
    if settings.align != "none":
        words.append(f"aligned to the {settings.align} classes by {settings.align_membership} ones")
    if settings.local_update != "plain":
        words.append(f"local update: {settings.local_update}")
    return "; ".join(words)


def _deviation_panel(run: Run) -> Panel | None:
    cycles = [cycle for cycle in run.metrics.cycles if cycle.deviation is not None]
    dispersion = run.settings.dispersion
    what, unit = figures.DISPERSION_WORDS[dispersion]
    chart = figures.deviation_chart(cycles, run.class_names, dispersion)
    if chart is None:
        return None
    rows = {
        f"{place}: {name}": [_deviation_cell(cycle, place, dispersion) for cycle in cycles]
        for place, name in enumerate(run.class_names)
    }
    return Panel(
        chart,
        f"{what} over the clients of each class's share of the labels, in {unit}. "
        "Hollow markers: low-variance classes, below τ (dashed).",
        grid_table(f"{what} in {unit}", "Class", _cycle_names(cycles), rows),
    )


def _deviation_cell(cycle: CycleRecord, place: int, dispersion: Dispersion) -> str:
    if cycle.mean is None or cycle.deviation is None or cycle.low is None:
        return "n/a"
    value = dispersion_percent(cycle.mean, cycle.deviation, dispersion)[place]
    return f"{value:.2f} {'low' if cycle.low[place] else 'high'}"


def _accuracy_panel(run: Run) -> Panel:
    cycles = run.metrics.cycles
    rows = {
        f"{place}: {name}": [percent(cycle.class_accuracy[place]) for cycle in cycles]
        for place, name in enumerate(run.class_names)
    }
    return Panel(
        heat_maps.class_accuracy_map(cycles, run.class_names),
        "Of the global model at the end of each cycle, in percent. Grey: no test samples.",
        grid_table("Test accuracy of each class", "Class", _cycle_names(cycles), rows),
    )


def _partition_panel(run: Run) -> Panel | None:
    if "counts" not in run.partition:
        return None
    counts_KC = _partition_counts(run)
    names = run.class_names or tuple(str(place) for place in range(counts_KC.shape[1]))
    rows = {
        f"{client}": [f"{count:,}" for count in counts_C]
        for client, counts_C in enumerate(counts_KC)
    }
    return Panel(
        heat_maps.partition_map(counts_KC, names),
        "How the training samples, labelled or not, are split over the clients.",
        grid_table("Samples of each client and class", "Client", names, rows),
    )


def _partition_counts(run: Run) -> NDArray[np.int64]:
    path = run.folder / PARTITION
    try:
        counts_KC = np.array(run.partition["counts"], dtype=np.int64)
    except (ValueError, TypeError) as error:
        raise ReportError(f"{path}: counts: {error}") from error
    num_classes = len(run.class_names) or counts_KC.shape[-1]
    if counts_KC.ndim != 2 or counts_KC.shape[1] != num_classes:
        raise ReportError(
            f"{path}: counts has the shape {counts_KC.shape}; allowed is (clients, {num_classes})"
        )
    return counts_KC


def _selection_panel(run: Run) -> Panel | None:
    counts_TC = read_class_counts(run.folder, len(run.class_names))
    if counts_TC is None or not counts_TC.size:
        return None
    return Panel(
        heat_maps.selection_map(counts_TC, run.class_names),
        "By their true class, over all clients; known in simulation only.",
        grid_table(
            "Selected samples of each class",
            "Class",
            [f"Cycle {number + 1}" for number in range(len(counts_TC))],
            _selection_rows(counts_TC, run.class_names),
        ),
    )


def _bought_classes(run: Run) -> NDArray[np.int64] | None:
    return read_class_counts(run.folder, len(run.class_names)) if run.class_names else None


def _arrivals_panel(run: Run) -> Panel | None:
    counts_TC = arrived_classes(run)
    if counts_TC is None:
        return None
    return Panel(
        heat_maps.arrivals_map(counts_TC, run.class_names),
        "By their true class, over all clients, in the cycle in which they came first; known in "
        "simulation only.",
        grid_table(
            "Samples of each class that came",
            "Class",
            [f"Cycle {number + 1}" for number in range(len(counts_TC))],
            _selection_rows(counts_TC, run.class_names),
        ),
    )


def _tasks_panel(run: Run) -> Panel | None:
    task_C, cycles = class_tasks(run), run.metrics.cycles
    if task_C is None:
        return None
    accuracy_TG = accuracies_by_task(cycles, task_C)
    rows = {
        f"Task {task + 1}": ["n/a" if np.isnan(a) else percent(float(a)) for a in accuracy_T]
        for task, accuracy_T in enumerate(accuracy_TG.T)
    }
    return Panel(
        figures.tasks_chart(accuracy_TG, first_cycles(len(rows), run.settings.num_cycles)),
        "The mean of each task's classes on the test set, at the end of each cycle.",
        grid_table("Test accuracy of each task", "Task", _cycle_names(cycles), rows),
    )


def _selection_rows(
    counts_TC: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, list[str]]:
    return {
        f"{place}: {name}": [f"{count:,}" for count in counts_TC[:, place]]
        for place, name in enumerate(class_names)
    }


def _rounds_panel(run: Run) -> Panel:
    return Panel(
        figures.rounds_chart(run.metrics),
        "Mean loss of local training over the clients, weighted by their examples.",
    )


def _predictions_panel(cycles: Sequence[CycleRecord]) -> Panel | None:
    chart = figures.predictions_chart(cycles)
    if chart is None:
        return None
    observed = [cycle for cycle in cycles if cycle.stop_set is not None]
    rows = {
        f"{cycle.cycle + 1}": [
            f"{cycle.stop_set.compared:,} of {cycle.stop_set.drawn:,}",
            *(
                "n/a" if (value := getattr(cycle.stop_set, name)) is None else f"{value:.4f}"
                for name in SERIES
            ),
        ]
        for cycle in observed
        if cycle.stop_set is not None
    }
    headings = ("Compared", "Kappa", "Changed", "ΔF, macro", "ΔF, worst class", "Uncertainty")
    return Panel(
        chart,
        "Of the global model on the clients' stop set, against the cycle before. Models that start "
        "afresh in each cycle differ by that alone.",
        grid_table("Predictions of the stop set", "Cycle", headings, rows),
    )


def _cycle_names(cycles: Sequence[CycleRecord]) -> list[str]:
    return [f"Cycle {cycle.cycle + 1}" for cycle in cycles]


def _tables(run: Run) -> list[TextTable]:
    metrics = run.metrics
    last = metrics.cycles[-1] if metrics.cycles else None
    by_class = (
        [evaluation_tables.class_table(t, run.class_names) for t in last.tests] if last else []
    )
    candidates = (
        tables.cycle_table(metrics) if metrics.cycles else None,
        evaluation_tables.metrics_table(last) if last else None,
        evaluation_tables.sites_table(last) if last else None,
        *by_class,
        grants_table(run),
        arrivals_table(run),
        mix_table(run, _bought_classes(run)),
        tasks_table(run),
        forgetting_table(run),
        audit_table(run),
        drift_table(run),
        policy_table(run),
        stopping_table(run),
        privacy_table(run),
        tables.joined_table(metrics),
        tables.failure_table(metrics),
        tables.not_used_table(run.environment),
        tables.time_table(metrics),
        tables.features_table(run.environment),
        tables.traffic_table(metrics),
        tables.settings_table(run),
        tables.environment_table(run.environment) if run.environment else None,
    )
    return [table for table in candidates if table is not None]
