"""The tables of an experiment's report, for the page and as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.comparison import (
    CONFIDENCE,
    TEST_NAME,
    clear_best,
    labels_to_reach,
    paired_difference,
    shown_from,
    summarise,
)
from ahfal_app.experiments.results import ExperimentResults, Point, RunResult, area, final_value
from ahfal_app.multiple_tests import holm
from ahfal_app.parameters import Scalar
from ahfal_app.results.kept import ACCURACY
from ahfal_app.results.last_rounds import LastRounds
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import bytes_text, seconds_text

#: Marks, in plain text, a method that is better than every other one.
BEST = "*"

#: Where nothing was measured, or nothing reported.
NOTHING = "–"

#: Said of areas where runs have stopped early, or have other budgets.
_OTHER_RANGES = (
    " Runs cover different ranges of labels, each area is over its own run's: such areas are not "
    "comparable."
)

#: What a spreadsheet has of a cycle's last rounds.
LAST_ROUNDS = ("mean of last rounds", "lowest of them", "highest of them")

#: What is compared of a run, in percent; None where it has none.
Measure = Callable[[RunResult], float | None]


def other_methods(results: ExperimentResults) -> list[Scalar]:
    """Return the methods that are compared with the reference."""
    return [method for method in results.methods if method != results.reference]


def final_values(results: ExperimentResults, point: Point, method: Scalar) -> dict[int, float]:
    """Return the metric in the last cycle's test of a method's runs at a point, by seed."""
    return results.by_seed(point, method, final_value)


def mean_text(values: dict[int, float]) -> str:
    """Return mean and standard deviation over seeds, with their number, as tables show them."""
    if not values:
        return NOTHING
    summary = summarise(list(values.values()))
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    return f"{summary.mean:.2f}{spread} ({summary.count})"


def accuracy_table(results: ExperimentResults) -> TextTable:
    """Return the final accuracies, mean and deviation over seeds, beside the paper's.

    With another metric than the accuracy, that stands in its place, and the paper's do not.
    """
    points = results.settings_points
    has_paper = bool(results.paper) and results.metric == ACCURACY
    headings = [results.method_axis]
    for point in points:
        headings.append(f"{point_text(point) or results.metric} (ours)")
        if has_paper:
            headings.append("paper")
    best = {point: _best(results, point) for point in points}
    rows = []
    for method in results.methods:
        row = [str(method)]
        for point in points:
            mark = f" {BEST}" if best[point] == method else ""
            row.append(mean_text(final_values(results, point, method)) + mark)
            if has_paper:
                row.append(_paper_text(results, point, method))
        rows.append(row)
    return TextTable(
        title=f"Final test {results.metric} in %",
        headings=headings,
        rows=rows,
        numbers=frozenset(range(1, len(headings))),
        note="Mean ± standard deviation over seeds (their number in brackets). "
        f"{BEST} marks the best where it differs from every other one ({TEST_NAME}).",
    )


def difference_table(
    results: ExperimentResults, measure: Measure = final_value, of: str = ""
) -> TextTable | None:
    """Return paired differences to the reference; None for a single method.

    Parameters
    ----------
    results : ExperimentResults
        What is done of the experiment.
    measure : Measure
        What is compared of each run, in percent.
    of : str
        What the title says of it.
    """
    reference, others = results.reference, other_methods(results)
    if reference is None:
        return None
    rows = []
    for point in results.settings_points:
        base = results.by_seed(point, reference, measure)
        found = [
            paired_difference(results.by_seed(point, other, measure), base) for other in others
        ]
        tests = [difference.p if difference else None for difference in found]
        compared = zip(others, found, holm(tests), strict=True)
        for place, (other, difference, p) in enumerate(compared):
            if difference is None:
                continue
            interval = (
                NOTHING
                if difference.low is None
                else f"{difference.low:+.2f} to {difference.high:+.2f}"
            )
            least = shown_from(difference, [*tests[:place], *tests[place + 1 :]])
            texts = (NOTHING if v is None else f"{v:.{d}f}" for v, d in ((p, 3), (least, 2)))
            row = (point_text(point) or "all", str(other), f"{difference.mean:+.2f}")
            rows.append((*row, interval, *texts, f"{difference.count}"))
    if not rows:
        return None
    return TextTable(
        title=f"Differences to {reference}{of}, in points of {results.metric}",
        headings=(
            "Where",
            results.method_axis,
            "Difference",
            "Interval",
            "p",
            "Shown from",
            "Seeds",
        ),
        rows=rows,
        numbers=frozenset({2, 3, 4, 5, 6}),
        note=f"Paired by seed. Intervals at {CONFIDENCE:.0%} (Student's t), not corrected; p by "
        f"the {TEST_NAME}, among the methods of a row's place. Shown from: the least difference "
        "that would count with this spread and the other methods as they are; smaller ones could "
        "not have been shown.",
    )


def curve_table(results: ExperimentResults) -> TextTable:
    """Return areas under the learning curves, and the labels that methods need."""
    rows, ranges = [], set()
    for point in results.settings_points:
        target = _target(results, point)
        for method in results.methods:
            runs = results.at(point, method)
            if not runs:
                continue
            curves = [(run.labels_T, run.values_T) for run in runs]
            ranges |= {(point, labels_T[0], labels_T[-1]) for labels_T, _ in curves}
            areas = dict(enumerate(map(area, runs)))
            whole = {place: value for place, value in areas.items() if value is not None}
            needed = [None if target is None else labels_to_reach(target, *c) for c in curves]
            reached = [value for value in needed if value is not None]
            needed_text = f"{np.mean(reached):,.0f}" if len(reached) == len(runs) else NOTHING
            if 0 < len(reached) < len(runs):
                needed_text = f"{np.mean(reached):,.0f} ({len(reached)} of {len(runs)} seeds)"
            rows.append(
                (
                    point_text(point) or "all",
                    str(method),
                    mean_text(whole),
                    NOTHING if target is None else f"{target:.2f}",
                    needed_text,
                )
            )
    return TextTable(
        title="Learning curves",
        headings=(
            "Where",
            results.method_axis,
            "Area in %",
            results.metric.capitalize(),
            "Labels needed for it",
        ),
        rows=rows,
        numbers=frozenset({2, 3, 4}),
        note=f"Area: mean {results.metric} over the labels, by the trapezoidal rule. Labels "
        f"needed: to reach the final mean {results.metric} of random sampling, or where that was "
        "not run the lowest of a method; between cycles the curve is a straight line."
        + (_OTHER_RANGES if len(ranges) > len({point for point, *_ in ranges}) else ""),
    )


def class_table(results: ExperimentResults) -> TextTable | None:
    """Return the accuracies of the classes of high and low deviation, and their gap.

    Of runs whose partition is known; None where there are none.
    """
    rows = []
    for point in results.settings_points:
        for method in results.methods:
            runs = [run for run in results.at(point, method) if run.knows_partition]
            if not runs:
                continue
            high, low = zip(*(class_halves(run) for run in runs), strict=True)
            gaps = [second - first for first, second in zip(high, low, strict=True)]
            cells = (mean_text(dict(enumerate(values))) for values in (high, low, gaps))
            rows.append((point_text(point) or "all", str(method), *cells))
    if not rows:
        return None
    return TextTable(
        title="Classes of high and low variance, accuracy in %",
        headings=("Where", results.method_axis, "High variance", "Low variance", "Gap"),
        rows=rows,
        numbers=frozenset({2, 3, 4}),
        note="The half of the classes whose share of the clients' samples deviates most over the "
        "clients, and the other half. The gap is low less high.",
    )


def class_halves(result: RunResult) -> tuple[float, float]:
    """Return the mean accuracy of the high- and of the low-variance half of the classes."""
    order_C = np.argsort(-result.class_deviation_C, kind="stable")
    half = len(order_C) // 2
    accuracy_C = result.class_accuracy_C[order_C]
    return float(np.nanmean(accuracy_C[:half])), float(np.nanmean(accuracy_C[half:]))


def cost_table(results: ExperimentResults) -> TextTable:
    """Return time and traffic of a run, mean over all seeds and places."""

    def mean(runs: Sequence[RunResult], measure: Callable[[RunResult], float]) -> float:
        return float(np.mean([measure(run) for run in runs]))

    rows = []
    for method in results.methods:
        runs = results.of_method(method)
        if not runs:
            continue
        rows.append(
            (
                str(method),
                f"{len(runs)}",
                seconds_text(mean(runs, lambda run: run.run.summary["seconds"]["total"])),
                seconds_text(mean(runs, lambda run: run.run.metrics.seconds.get("train", 0.0))),
                seconds_text(mean(runs, lambda run: run.run.metrics.seconds.get("select", 0.0))),
                bytes_text(round(mean(runs, lambda run: run.run.metrics.bytes_down))),
                bytes_text(round(mean(runs, lambda run: run.run.metrics.bytes_up))),
            )
        )
    headings = ("Runs", "Time", "Training", "Selection", "To clients", "From clients")
    return TextTable(
        title="Cost of a run",
        headings=(results.method_axis, *headings),
        rows=rows,
        numbers=frozenset(range(1, 7)),
        note="Mean wall-clock time and bytes. Runs that shared a machine with others took longer.",
    )


def run_rows(results: ExperimentResults) -> tuple[list[str], list[list[object]]]:
    """Return a line for each cycle of each run, for a spreadsheet: headings and rows."""
    axes = list(results.axes)
    cycles = [cycle for result in results.runs for cycle in result.run.metrics.cycles]
    others = sorted({name for cycle in cycles for name in cycle.metrics} - {ACCURACY, "loss"})
    has_last = any(last for result in results.runs for last in result.last_rounds_T)
    of_last = [f"{results.metric} {name}" for name in LAST_ROUNDS] if has_last else []
    headings = [*axes, "cycle", "labels", "accuracy", *others, "loss", *of_last]
    headings += ["seconds", "commit", "folder"]
    rows: list[list[object]] = []
    for result in results.runs:
        place = [result.labels.get(axis, "") for axis in axes]
        summary = result.run.summary
        for cycle, last in zip(result.run.metrics.cycles, result.last_rounds_T, strict=True):
            measured = [cycle.accuracy, *map(cycle.metrics.get, others), cycle.loss]
            measured += _shares(last) if has_last else []
            values = [cycle.cycle + 1, cycle.labels, *measured]
            about = [summary["seconds"]["total"], summary["commit"], result.run.folder.name]
            rows.append([*place, *values, *about])
    return headings, rows


def _shares(last: LastRounds | None) -> list[float | None]:
    if last is None:
        return [None] * len(LAST_ROUNDS)
    return [value / 100 for value in (last.mean, last.low, last.high)]


def markdown(table: TextTable) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(table.headings) + " |"]
    lines.append(
        "|" + "".join(" ---: |" if i in table.numbers else " --- |" for i in _places(table))
    )
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows
    ]
    return "\n".join([f"**{table.title}**", "", *lines, "", table.note, ""])


def latex(table: TextTable) -> str:
    """Return a table as LaTeX, for a document that uses `booktabs`."""
    columns = "".join("r" if place in table.numbers else "l" for place in _places(table))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(_escaped(cell) for cell in table.headings) + r" \\", r"\midrule"]
    lines += [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _places(table: TextTable) -> range:
    return range(len(table.headings))


def _latex_cell(cell: str) -> str:
    if cell.endswith(f" {BEST}"):
        return rf"\textbf{{{_escaped(cell.removesuffix(f' {BEST}'))}}}"
    return _escaped(cell)


def _escaped(text: str) -> str:
    for letter in "&%#_":
        text = text.replace(letter, f"\\{letter}")
    symbols = {"±": r"$\pm$", "α": r"$\alpha$", "τ": r"$\tau$", "ε": r"$\varepsilon$", "–": "--"}
    return "".join(symbols.get(letter, letter) for letter in text)


def _best(results: ExperimentResults, point: Point) -> Scalar | None:
    finals = {str(m): final_values(results, point, m) for m in results.methods}
    best = clear_best({name: values for name, values in finals.items() if values})
    return next((method for method in results.methods if str(method) == best), None)


def _target(results: ExperimentResults, point: Point) -> float | None:
    means = {
        str(method): summarise(list(finals.values())).mean
        for method in results.methods
        if (finals := final_values(results, point, method))
    }
    return means.get("random", min(means.values(), default=None))


def _paper_text(results: ExperimentResults, point: Point, method: Scalar) -> str:
    number = results.paper_number(point, method)
    if number is None:
        return NOTHING
    return f"{number.accuracy:.2f}" + ("" if number.std is None else f" ± {number.std:.2f}")
