"""The report of a sweep: one HTML file, and its tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import jinja2
import numpy as np

from ahfal_app.experiments import (
    changes,
    charts,
    last_rounds,
    policies,
    streams,
    tables,
    whole_curves,
)
from ahfal_app.experiments.files import NOT_IDENTITY
from ahfal_app.experiments.paper import departures
from ahfal_app.experiments.results import ExperimentResults, Point, RunResult, read_experiments
from ahfal_app.experiments.same_data import data_warnings
from ahfal_app.experiments.scales import MEANING, Scale
from ahfal_app.experiments.summaries import SUMMARIES
from ahfal_app.parameters import Scalar
from ahfal_app.results.reading import REPORT
from ahfal_app.results.report import Fact, Panel
from ahfal_app.results.svg import Chart
from ahfal_app.results.tables import TextTable
from ahfal_app.results.template import PAGE, STYLE
from ahfal_app.storage.files import write_text

TABLES = "tables"
FIGURES = "figures"

# More maps than this say no more than the first ones.
_MOST_PARTITIONS = 6


def write_sweep_report(out: Path, metric: str = "", reference: str = "") -> Path:
    """Write the report of a sweep, also of one that is not complete.

    Parameters
    ----------
    out : Path
        The sweep's folder.
    metric : str
        What the runs are compared by; empty: as their settings say.
    reference : str
        The method that differences are to; empty: as the experiment's file says.

    Returns
    -------
    Path
        Absolute path of `report.html`; one page for each further experiment lies beside it.

    Raises
    ------
    SweepError, ReportError
        The folder is not one of a sweep, or a run in it cannot be read or has no such metric,
        or an experiment has no such method.
    """
    out = out.absolute()
    experiments = read_experiments(out, metric, reference)
    for folder in (TABLES, FIGURES):
        (out / folder).mkdir(exist_ok=True)
    pages = []
    for results in experiments:
        name = f"{Path(results.file).stem}-{results.scale.value}"
        _write_tables(out / TABLES, name, results)
        panels = _panels(results)
        for panel in panels:
            write_text(out / FIGURES / f"{name}-{panel.chart.name}.svg", _standalone(panel.chart))
        pages.append((name, _render(results, panels)))
    if len(pages) == 1:
        write_text(out / REPORT, pages[0][1])
        return out / REPORT
    for name, page in pages:
        write_text(out / f"report-{name}.html", page)
    write_text(out / REPORT, _contents(experiments, [name for name, _ in pages]))
    return out / REPORT


def render_sweep_report(results: ExperimentResults) -> str:
    """Return the report of an experiment as HTML."""
    return _render(results, _panels(results))


def _render(results: ExperimentResults, panels: list[Panel]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(PAGE).render(
        title=results.title,
        subtitle=f"{results.file}, scale {results.scale.value}: {MEANING[results.scale]}",
        style=STYLE,
        banner=_banner(results),
        facts=_facts(results),
        panels=panels,
        tables=[*all_tables(results), _provenance_table(results)],
    )


def all_tables(results: ExperimentResults) -> list[TextTable]:
    """Return the tables that an experiment's results give."""
    if not results.runs:
        return []
    candidates = [
        tables.accuracy_table(results),
        tables.difference_table(results),
        last_rounds.last_rounds_table(results),
        last_rounds.mean_difference_table(results),
        last_rounds.paper_difference_table(results),
        tables.curve_table(results),
        whole_curves.area_difference_table(results),
        whole_curves.cycle_difference_table(results),
        tables.class_table(results),
        changes.recovery_table(results),
        changes.alarm_table(results),
        streams.stream_table(results),
        policies.policy_table(results),
        _privacy_table(results),
        tables.cost_table(results),
    ]
    return [table for table in candidates if table is not None]


def _banner(results: ExperimentResults) -> str:
    """Say all that keeps these numbers from being the paper's, or each other's match."""
    lines = []
    if results.scale is not Scale.PAPER:
        lines.append(f"Not at the paper's scale ({results.scale.value}): {MEANING[results.scale]}.")
    if results.missing:
        failed = f", {len(results.failures)} of them failed" if results.failures else ""
        lines.append(f"{len(results.missing)} runs are missing{failed}.")
    overrides = {k: v for k, v in results.overrides.items() if k not in NOT_IDENTITY}
    if overrides:
        changed = ", ".join(f"{key}={value}" for key, value in overrides.items())
        lines.append(f"Settings that are not the file's: {changed}.")
    lines += [f"{warning}." for warning in (*results.warnings, *data_warnings(results))]
    if results.other_code:
        lines.append("Run by another version of the code than the one that made this report.")
    lines += [f"Not the paper's protocol on {name}: {what}." for name, what in _departures(results)]
    return " ".join(lines)


def _departures(results: ExperimentResults) -> list[tuple[str, str]]:
    """Return, for each data set whose runs depart from the paper's protocol, how."""
    by_dataset: dict[str, list[dict[str, Scalar]]] = {}
    for result in results.runs:
        by_dataset.setdefault(result.dataset, []).append(result.run.settings.to_flat())
    found = {
        name: departures(name, settings, results.axes) for name, settings in by_dataset.items()
    }
    return [(name, "; ".join(phrases)) for name, phrases in found.items() if phrases]


def _data_facts(results: ExperimentResults) -> list[Fact]:
    """Say what was trained and tested on."""
    counts: dict[str, str] = {}
    for result in results.runs:
        data = result.run.environment["data"]
        # Runs of older versions have not written it down.
        sizes = f"{data['train']:,} images, {data['test']:,} to test with" if "name" in data else ""
        counts[result.dataset] = sizes
    return [Fact("Data", name, images) for name, images in counts.items()]


def _facts(results: ExperimentResults) -> list[Fact]:
    total = len(results.runs) + len(results.missing)
    summarised = sum(result.summarised for result in results.runs)
    done = f"done, {summarised} of them by {SUMMARIES} alone" if summarised else "done"
    facts = [Fact("Runs", f"{len(results.runs)} of {total}", done), *_data_facts(results)]
    for axis, labels in results.axes.items():
        facts.append(Fact(axis, f"{len(labels)}", ", ".join(str(label) for label in labels)))
    return facts


def _panels(results: ExperimentResults) -> list[Panel]:
    panels = [
        Panel(
            charts.learning_curves(results, point, f"curves-{place}"),
            "Mean over seeds; bars: standard deviation."
            + _grey_note(results, point)
            + _stopped_note(results, point),
        )
        for place, point in enumerate(results.settings_points)
        if any(len(run.labels_T) > 1 for run in results.runs)
    ]
    for axis, labels in results.axes.items():
        numeric = all(isinstance(label, int | float) for label in labels)
        if numeric and len(labels) > 1 and axis not in ("seed", results.method_axis):
            rests = [
                tuple(pair for pair in point if pair[0] != axis)
                for point in results.settings_points
            ]
            for rest in dict.fromkeys(rests):
                chart = charts.accuracy_over(results, axis, rest, f"over-{len(panels)}")
                panels.append(Panel(chart, "Mean over seeds; bars: standard deviation."))
    panels += _last_rounds_panels(results)
    panels += _class_panels(results)
    panels += _deviation_panels(results)
    panels += _partition_panels(results)
    return panels


def _grey_note(results: ExperimentResults, point: Point) -> str:
    """Say which curves are told apart, where not all are."""
    if len(charts.told_apart(results, point)) == len(results.methods):
        return ""
    return (
        " Told apart are the first method, the one that differences are to, the five with the"
        " largest area under the curve and the one with the smallest; the others are grey here, and"
        " all are in the tables."
    )


def _stopped_note(results: ExperimentResults, point: Point) -> str:
    """Say so where runs of one method have come to different numbers of cycles."""
    lengths = [{len(run.labels_T) for run in results.at(point, m)} for m in results.methods]
    if all(len(of_method) < 2 for of_method in lengths):
        return ""
    return " Some seeds have stopped earlier: where they end, the mean is that of the others."


def _last_rounds_panels(results: ExperimentResults) -> list[Panel]:
    note = "Of the last cycle, means over seeds; bars: from the lowest to the highest round."
    return [
        Panel(charts.last_rounds(results, point, f"last-rounds-{place}"), note)
        for place, point in enumerate(results.settings_points)
        if any(results.last_rounds(point, method) for method in results.methods)
    ]


def _class_panels(results: ExperimentResults) -> list[Panel]:
    panels = []
    for place, point in enumerate(results.settings_points):
        rows = []
        for method in results.methods:
            runs = [run for run in results.at(point, method) if run.knows_partition]
            halves = [tables.class_halves(run) for run in runs]
            if halves:
                high, low = np.mean(halves, axis=0).tolist()
                rows.append((str(method), high, low))
        if rows:
            chart = charts.class_gaps(rows, point, f"classes-{place}")
            panels.append(Panel(chart, "Halves of the classes by the deviation of all samples."))
    crossover = _crossover_panel(results)
    return panels if crossover is None else [*panels, crossover]


def _crossover_panel(results: ExperimentResults) -> Panel | None:
    """Compare two methods class by class; only where there are just two."""
    if len(results.methods) != 2:
        return None
    first, second = results.methods
    variation, difference = [], []
    for point in results.settings_points:
        others = {run.seed: run for run in results.at(point, second)}
        for run in results.at(point, first):
            if run.seed in others and run.knows_partition:
                variation.append(_variation(run))
                difference.append(run.class_accuracy_C - others[run.seed].class_accuracy_C)
    if not variation:
        return None
    chart = charts.crossover(
        np.concatenate(variation), np.concatenate(difference), (first, second), "crossover"
    )
    return Panel(chart, "Difference of the final accuracy of each class, in points.")


def _variation(run: RunResult) -> np.ndarray:
    counts_KC = run.client_counts_KC
    mean_C = counts_KC.mean(axis=0)
    variation_C: np.ndarray = counts_KC.std(axis=0) / np.maximum(mean_C, 1e-12)
    return variation_C


def _deviation_panels(results: ExperimentResults) -> list[Panel]:
    reference = results.reference
    method = results.methods[0] if reference is None else reference
    panels = []
    for place, point in enumerate(results.settings_points):
        runs = results.at(point, method)
        if runs and any(cycle.deviation is not None for cycle in runs[0].run.metrics.cycles):
            chart = charts.deviation_bands(runs, point, f"deviation-{place}")
            which = f"for {reference}" if reference is not None else "of all runs"
            panels.append(Panel(chart, f"Of the labelled samples, {which}."))
    return panels


def _partition_panels(results: ExperimentResults) -> list[Panel]:
    """Draw each split that is known once; methods and repetitions share theirs."""
    seen: dict[str, Panel] = {}
    for run in results.runs:
        if not run.knows_partition:
            continue
        fingerprint = str(run.run.partition.get("fingerprint"))
        point = tuple(pair for pair in run.labels.items() if pair[0] != results.method_axis)
        if fingerprint in seen or len(seen) >= _MOST_PARTITIONS:
            continue
        chart = charts.partition_bubbles(run.client_counts_KC, point, f"partition-{len(seen)}")
        seen[fingerprint] = Panel(chart, chart.description)
    return list(seen.values())


def _privacy_table(results: ExperimentResults) -> TextTable | None:
    """Accuracy by protection of the histograms; None where all runs have the same."""
    modes: dict[str, list[RunResult]] = {}
    for run in results.runs:
        settings = run.run.settings.to_flat()
        epsilon = (
            f", ε = {settings['privacy.epsilon']:g}" if "dp" in str(settings["privacy"]) else ""
        )
        modes.setdefault(f"{settings['privacy']}{epsilon}", []).append(run)
    if len(modes) < 2:
        return None
    rows = []
    for mode, runs in modes.items():
        values = [value for run in runs if (value := run.final_value) is not None]
        queries = [sum(c.bytes_up for c in run.run.metrics.cycles) for run in runs]
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        shown = f"{np.mean(values):.2f}{spread}" if values else tables.NOTHING
        rows.append((mode, shown, f"{np.mean(queries):,.0f}"))
    return TextTable(
        title="Privacy of the histograms",
        headings=(
            "Protection",
            f"{results.metric.capitalize()} in %",
            "Bytes from clients besides models",
        ),
        rows=rows,
        numbers=frozenset({1, 2}),
    )


def _provenance_table(results: ExperimentResults) -> TextTable:
    """Say what the runs were made with; whatever differs between them is listed."""
    seen: dict[str, set[str]] = {}
    for result in results.runs:
        environment, summary = result.run.environment, result.run.summary
        fingerprint = environment["data"]["fingerprint"] or ""
        about = {
            # A copy without git, as Flower runs one, knows none.
            "commit": (summary["commit"] or "unknown") + (" (changed)" if summary["dirty"] else ""),
            "data": f"{result.run.settings.dataset} {fingerprint[:12]}",
            "resolved": json.dumps(environment.get("resolved", {}), sort_keys=True),
            "hardware": json.dumps(environment.get("hardware", {}), sort_keys=True),
        }
        for key, value in about.items():
            seen.setdefault(key, set()).add(value)
    rows = [(key, value) for key, values in seen.items() for value in sorted(values)]
    if loads := [load["median"] for r in results.runs if (load := r.run.summary.get("load"))]:
        rows.append(("load", f"{min(loads):.1f} to {max(loads):.1f}, median of each run's rounds"))
    rows += [("failed", f"{name}: {reason}") for name, reason in results.failures.items()]
    rows += [
        (f"by {SUMMARIES} alone", result.run.folder.name)
        for result in results.runs
        if result.summarised
    ]
    return TextTable(title="What the runs were made with", headings=("What", "Value"), rows=rows)


def _standalone(chart: Chart) -> str:
    """Return a figure as a file of its own, which has no page to give it a background."""
    root, inside = chart.svg.split(">", 1)
    return f'{root}><rect width="100%" height="100%" fill="white"/>{inside}\n'


def _write_tables(folder: Path, name: str, results: ExperimentResults) -> None:
    found = all_tables(results)
    write_text(folder / f"{name}.md", "\n".join(tables.markdown(table) for table in found))
    write_text(folder / f"{name}.tex", "\n".join(tables.latex(table) for table in found))
    headings, rows = tables.run_rows(results)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(headings)
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", text.getvalue())


_CONTENTS = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Experiments</title><style>{{ style | safe }}</style></head>
<body><main><h1>Experiments</h1><ul>
{%- for name, results in pages %}
<li><a href="report-{{ name }}.html">{{ results.title }}</a>
<span class="soft">({{ results.scale.value }}, {{ results.runs | length }} runs)</span></li>
{%- endfor %}
</ul></main></body></html>
"""


def _contents(experiments: list[ExperimentResults], names: list[str]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    pages = list(zip(names, experiments, strict=True))
    return environment.from_string(_CONTENTS).render(style=STYLE, pages=pages)
