"""Reports of experiments: every number in them is computed again here, by hand."""

from __future__ import annotations

import csv
import dataclasses
import html
import html.parser
import itertools
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from support.charts import OF_SWEEPS, with_charts
from support.sweeps import sweeps_here
from typer.testing import CliRunner

from ahfal_app.cli import app
from ahfal_app.config import Settings
from ahfal_app.errors import ReportError, SweepError
from ahfal_app.experiments import charts, report, tables, whole_curves
from ahfal_app.experiments.compare import compare_runs
from ahfal_app.experiments.paper import PaperNumber, departures
from ahfal_app.experiments.report import render_sweep_report, write_sweep_report
from ahfal_app.experiments.results import (
    ExperimentResults,
    RunResult,
    compared_by,
    with_reference,
)
from ahfal_app.experiments.same_data import data_warnings
from ahfal_app.experiments.scales import Scale
from ahfal_app.results.reading import Run, read_run
from ahfal_app.storage.yaml_text import dump_yaml

SEEDS = (0, 1, 2)
METHODS = ("random", "entropy", "ahfal")
ALPHAS = (0.1, 1.0)


def changed(run: Run, method: str, alpha: float, seed: int) -> Run:
    """Return a copy of a run whose accuracies are known: AHFAL is best at α = 0.1 alone."""
    bonus = {"random": 0.0, "entropy": 0.1, "ahfal": 0.3 if alpha == 0.1 else 0.05}[method]
    noise = {0: 0.0, 1: 0.01, 2: -0.02}[seed] * {"random": 1.5, "entropy": 1.4, "ahfal": 1}[method]
    cycles = tuple(
        cycle.model_copy(
            update={
                "accuracy": (accuracy := 0.2 + bonus + noise + 0.1 * place),
                # Best where the accuracy is worst.
                "metrics": {"macro-f1": 1 - accuracy, "undefined": None},
            }
        )
        for place, cycle in enumerate(run.metrics.cycles)
    )
    settings = run.settings.model_copy(update={"strategy": method, "alpha": alpha, "seed": seed})
    metrics = dataclasses.replace(run.metrics, cycles=cycles)
    return dataclasses.replace(run, settings=settings, metrics=metrics)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from support.simulation import Simulation

    folder = tmp_path_factory.mktemp("runs")
    return read_run(Simulation(folder, folder / "data")(strategy="entropy").folder)


@pytest.fixture
def results(one_run: Run) -> ExperimentResults:
    runs = [
        RunResult(
            {"strategy": method, "alpha": alpha, "seed": seed},
            changed(one_run, method, alpha, seed),
        )
        for method in METHODS
        for alpha in ALPHAS
        for seed in SEEDS
    ]
    return ExperimentResults(
        title="Table <1> & more",
        file="table.yaml",
        scale=Scale.SMALL,
        axes={"strategy": METHODS, "alpha": ALPHAS, "seed": SEEDS},
        overrides={"dataset": "elsewhere"},
        paper=(PaperNumber(accuracy=66.15, std=0.94, strategy="ahfal", alpha=0.1),),  # type: ignore[call-arg]
        runs=tuple(runs),
        missing=("a-run",),
        failures={"a-run": "SomeError: why"},
        other_code=False,
    )


def stopped_early(results: ExperimentResults) -> ExperimentResults:
    """Return the same, where each run of seed 2 has come to two cycles alone."""
    runs = []
    for result in results.runs:
        metrics = result.run.metrics
        if result.seed == 2:
            metrics = dataclasses.replace(metrics, cycles=metrics.cycles[:2])
        runs.append(
            dataclasses.replace(result, run=dataclasses.replace(result.run, metrics=metrics))
        )
    return dataclasses.replace(results, runs=tuple(runs))


def test_runs_that_have_stopped_early_are_drawn_as_far_as_they_go(
    results: ExperimentResults,
) -> None:
    stopped = stopped_early(results)
    page = render_sweep_report(stopped)
    assert "Some seeds have stopped earlier" in page
    assert "Some seeds have stopped earlier" not in render_sweep_report(results)
    assert "such areas are not comparable" in tables.curve_table(stopped).note
    assert "such areas are not comparable" not in tables.curve_table(results).note


def test_the_load_of_machines_stands_with_what_runs_were_made_with(
    results: ExperimentResults,
) -> None:
    loads = itertools.cycle([{"median": 1.96, "most": 3.0}, {"median": 2.44, "most": 2.5}, None])
    runs = [
        dataclasses.replace(
            each, run=dataclasses.replace(each.run, summary={**each.run.summary, "load": load})
        )
        for each, load in zip(results.runs, loads, strict=False)
    ]
    page = render_sweep_report(dataclasses.replace(results, runs=tuple(runs)))
    assert "2.0 to 2.4, median of each run&#39;s rounds" in page


def only(results: ExperimentResults, **labels: object) -> ExperimentResults:
    """Return the runs with these labels, as of a grid over what is left."""
    runs = tuple(
        RunResult({k: v for k, v in r.labels.items() if k not in labels}, r.run)
        for r in results.runs
        if labels.items() <= r.labels.items()
    )
    axes = {axis: values for axis, values in results.axes.items() if axis not in labels}
    return dataclasses.replace(results, axes=axes, runs=runs, paper=())


def test_seeds_alone_have_a_mean_and_a_curve(results: ExperimentResults) -> None:
    seeds = only(results, strategy="ahfal", alpha=0.1)
    assert seeds.methods == ("all",)
    values = finals(results, "ahfal", 0.1)
    (row,) = tables.accuracy_table(seeds).rows
    assert list(row) == ["all", f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (3)"]
    assert tables.difference_table(seeds) is None
    assert [row[:2] for row in tables.curve_table(seeds).rows] == [("all", "all")]
    assert [row[:2] for row in tables.cost_table(seeds).rows] == [("all", "3")]
    page = render_sweep_report(seeds)
    assert "Learning curves" in page
    one = only(results, strategy="ahfal", alpha=0.1, seed=1)
    (row,) = tables.accuracy_table(one).rows
    assert list(row) == ["all", f"{values[1]:.2f} (1)"]
    assert "Learning curves" in render_sweep_report(one)


def test_over_an_axis_means_are_of_one_place_on_all_others(results: ExperimentResults) -> None:
    """A second axis, on which accuracy differs, has a figure for each label."""
    runs = [
        RunResult(
            {**r.labels, "variant": variant}, changed(r.run, str(r.labels["strategy"]), 0.1, 0)
        )
        for r in results.runs
        for variant in ("full", "without")
    ]
    axes = {"strategy": METHODS, "alpha": ALPHAS, "variant": ("full", "without"), "seed": SEEDS}
    page = render_sweep_report(dataclasses.replace(results, axes=axes, runs=tuple(runs)))
    for variant in ("full", "without"):
        assert f"Final accuracy over alpha: variant = {variant}" in page
    assert "Final accuracy over alpha<" not in page


def finals(results: ExperimentResults, method: str, alpha: float) -> list[float]:
    return [
        100 * r.run.metrics.cycles[-1].accuracy
        for r in results.runs
        if r.labels["strategy"] == method and r.labels["alpha"] == alpha
    ]


def test_accuracies_with_deviation_and_the_paper_s_beside(results: ExperimentResults) -> None:
    table = tables.accuracy_table(results)
    assert table.headings == [
        "strategy",
        "alpha = 0.1 (ours)",
        "paper",
        "alpha = 1.0 (ours)",
        "paper",
    ]
    for row in table.rows:
        for place, alpha in ((1, 0.1), (3, 1.0)):
            values = finals(results, row[0], alpha)
            text = f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} (3)"
            assert row[place].removesuffix(" *") == text
    assert [row[2] for row in table.rows] == ["–", "–", "66.15 ± 0.94"]
    # Marked where it holds, and where the best cannot be told from the others not.
    assert [row[1].endswith("*") for row in table.rows] == [False, False, True]
    assert [row[3].endswith("*") for row in table.rows] == [False, True, False]


def test_runs_are_compared_by_another_metric(results: ExperimentResults) -> None:
    by_f1 = compared_by("macro-f1", results)
    table = tables.accuracy_table(by_f1)
    assert table.title == "Final test macro-f1 in %"
    assert table.headings == ["strategy", "alpha = 0.1 (ours)", "alpha = 1.0 (ours)"]
    for row in table.rows:
        values = [100 - value for value in finals(results, row[0], 0.1)]
        assert row[1].startswith(f"{statistics.fmean(values):.2f} ± ")
    assert [row[1].endswith("*") for row in table.rows] == [True, False, False]
    lines = tables.run_rows(by_f1)
    assert lines[0][5:8] == ["accuracy", "macro-f1", "undefined"]
    assert lines[1][0][6] == 1 - lines[1][0][5]
    assert "Final test macro-f1 in %" in render_sweep_report(by_f1)
    nothing = tables.accuracy_table(compared_by("undefined", results))
    assert {row[1] for row in nothing.rows} == {"–"}
    with pytest.raises(ReportError, match=r"metric='f1': allowed is accuracy \| macro-f1"):
        compared_by("f1", results)


def test_the_metric_of_all_runs_is_what_they_are_compared_by(results: ExperimentResults) -> None:
    def by(*metrics: str) -> str:
        runs = [
            dataclasses.replace(
                result,
                run=dataclasses.replace(
                    result.run, settings=result.run.settings.model_copy(update={"metric": metric})
                ),
            )
            for result, metric in zip(results.runs, metrics, strict=False)
        ]
        return compared_by("", dataclasses.replace(results, runs=tuple(runs))).metric

    assert by("macro-f1", "macro-f1") == "macro-f1"
    assert by("macro-f1", "accuracy") == "accuracy"
    assert by() == "accuracy"


def test_differences_are_paired_by_seed(results: ExperimentResults) -> None:
    table = tables.difference_table(results)
    assert table is not None
    assert table.title == "Differences to ahfal, in points of accuracy"
    assert [(row[0], row[1]) for row in table.rows] == [
        ("alpha = 0.1", "random"),
        ("alpha = 0.1", "entropy"),
        ("alpha = 1.0", "random"),
        ("alpha = 1.0", "entropy"),
    ]
    ours, base = finals(results, "random", 0.1), finals(results, "ahfal", 0.1)
    mean = statistics.fmean(a - b for a, b in zip(ours, base, strict=True))
    assert table.rows[0][2] == f"{mean:+.2f}"
    low, high = (float(bound) for bound in table.rows[0][3].split(" to "))
    assert low < mean < high
    # Two methods are compared at a place, so that a little more than the interval is needed.
    assert float(table.rows[0][5]) > (high - low) / 2
    assert {row[6] for row in table.rows} == {"3"}


def test_differences_are_to_whom_somebody_says(results: ExperimentResults) -> None:
    told = with_reference("random", results)
    table = tables.difference_table(told)
    assert table is not None
    assert table.title == "Differences to random, in points of accuracy"
    assert {row[1] for row in table.rows} == {"ahfal", "entropy"}
    ours, base = finals(results, "ahfal", 0.1), finals(results, "random", 0.1)
    mean = statistics.fmean(a - b for a, b in zip(ours, base, strict=True))
    (row,) = [row for row in table.rows if row[:2] == ("alpha = 0.1", "ahfal")]
    assert row[2] == f"{mean:+.2f}"
    assert with_reference("", results) is results
    with pytest.raises(ReportError, match=r"reference='randon': allowed is .*random.*random"):
        with_reference("randon", results)


def paired(results: ExperimentResults, method: str, alpha: float, cycle: int) -> NDArray[Any]:
    """Return a method's accuracy less AHFAL's after a cycle, seed by seed, in points."""
    ours, base = (
        np.array([run.values_T[cycle] for run in results.at((("alpha", alpha),), name)])
        for name in (method, "ahfal")
    )
    return ours - base


def test_differences_after_each_cycle(results: ExperimentResults) -> None:
    def unsteady(each: RunResult) -> dict[str, object]:
        first, *rest = each.run.metrics.cycles
        if each.labels["strategy"] == "entropy":
            accuracy = first.accuracy + {0: 0.2, 1: -0.3, 2: 0.1}[each.seed]
            first = first.model_copy(update={"accuracy": accuracy})
        return {"metrics": dataclasses.replace(each.run.metrics, cycles=(first, *rest))}

    results = with_runs(results, unsteady)
    table = whole_curves.cycle_difference_table(results)
    assert table is not None
    labels_T = results.runs[0].labels_T
    assert list(table.headings) == ["Where", "strategy", *(f"{labels:,}" for labels in labels_T)]
    assert [row[:2] for row in table.rows] == [
        (f"alpha = {alpha}", method) for alpha in ALPHAS for method in ("random", "entropy")
    ]
    seen = set()
    for alpha in ALPHAS:
        rows = [row for row in table.rows if row[0] == f"alpha = {alpha}"]
        for cycle in range(len(labels_T)):
            both_S = [paired(results, method, alpha, cycle) for method in ("random", "entropy")]
            p_values = multipletests(
                [stats.ttest_1samp(differences_S, 0).pvalue for differences_S in both_S],
                method="holm",
            )[1]
            for row, differences_S, p in zip(rows, both_S, p_values, strict=True):
                shown = f" ({p:.3f})" if p < 0.05 else ""
                assert row[2 + cycle] == f"{differences_S.mean():+.2f}{shown}"
                seen.add(p < 0.05)
    assert seen == {True, False}


def test_differences_in_the_area(results: ExperimentResults) -> None:
    table = whole_curves.area_difference_table(results)
    assert table is not None
    assert table.title == "Differences to ahfal in the area under the curve, in points of accuracy"
    (row,) = [row for row in table.rows if row[:2] == ("alpha = 0.1", "random")]
    steps_T = np.diff(results.runs[0].labels_T)
    by_cycle = np.array([paired(results, "random", 0.1, c).mean() for c in range(len(steps_T) + 1)])
    assert float(row[2]) == pytest.approx(
        (steps_T * (by_cycle[1:] + by_cycle[:-1]) / 2).sum() / steps_T.sum(), abs=0.005
    )


def test_runs_of_one_cycle_have_no_curve(results: ExperimentResults) -> None:
    def only_first(each: RunResult) -> dict[str, object]:
        metrics = each.run.metrics
        return {"metrics": dataclasses.replace(metrics, cycles=metrics.cycles[:1])}

    first = with_runs(results, only_first)
    assert whole_curves.cycle_difference_table(first) is None
    assert whole_curves.area_difference_table(first) is None
    assert whole_curves.cycle_difference_table(only(results, strategy="ahfal", alpha=0.1)) is None


def test_of_many_cycles_some_are_shown_and_an_undefined_value_is_left_out(
    results: ExperimentResults,
) -> None:
    def longer(each: RunResult) -> dict[str, object]:
        cycle = each.run.metrics.cycles[-1]
        cycles = tuple(cycle.model_copy(update={"labels": 100 + place}) for place in range(101))
        if each.seed == 0 and each.labels["strategy"] == "entropy":
            missing = {"accuracy": math.nan, "metrics": {}}
            cycles = (*cycles[:-1], cycles[-1].model_copy(update=missing))
        return {"metrics": dataclasses.replace(each.run.metrics, cycles=cycles)}

    many = with_runs(results, longer)
    table = whole_curves.cycle_difference_table(many)
    assert table is not None
    assert list(table.headings[2:]) == [str(labels) for labels in range(100, 201, 10)]
    (row,) = [row for row in table.rows if row[:2] == ("alpha = 0.1", "entropy")]
    last = paired(results, "entropy", 0.1, -1)[1:].mean()
    assert row[-1].split(" ")[0] == f"{last:+.2f}"


def test_learning_curves(results: ExperimentResults) -> None:
    table = tables.curve_table(results)
    by_place = {(row[0], row[1]): row for row in table.rows}
    run = results.at((("alpha", 0.1),), "ahfal")[0]
    labels, accuracy = run.labels_T, run.values_T
    area = sum(
        (labels[i + 1] - labels[i]) * (accuracy[i] + accuracy[i + 1]) / 2
        for i in range(len(labels) - 1)
    ) / (labels[-1] - labels[0])
    ours = by_place[("alpha = 0.1", "ahfal")]
    # The other seeds lie 1 above and 2 below: the mean is a third of a point lower.
    assert float(ours[2].split(" ")[0]) == pytest.approx(area - 1 / 3, abs=0.01)
    assert float(ours[3]) == pytest.approx(
        statistics.fmean(finals(results, "random", 0.1)), abs=0.01
    )
    assert ours[4] == f"{labels[0]:,}"


def test_halves_of_the_classes(results: ExperimentResults) -> None:
    run = results.runs[0]
    high, low = tables.class_halves(run)
    order = np.argsort(-run.class_deviation_C, kind="stable")
    assert high == pytest.approx(np.nanmean(run.class_accuracy_C[order[:5]]))
    assert low == pytest.approx(np.nanmean(run.class_accuracy_C[order[5:]]))
    counts = np.array(run.run.partition["counts"])
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run.class_deviation_C, 100 * shares.std(axis=0))


def with_runs(
    results: ExperimentResults, change: Callable[[RunResult], dict[str, object]]
) -> ExperimentResults:
    """Return the same with each run changed."""
    runs = (
        dataclasses.replace(each, run=dataclasses.replace(each.run, **change(each)))  # type: ignore[arg-type]
        for each in results.runs
    )
    return dataclasses.replace(results, runs=tuple(runs))


@pytest.mark.usefixtures("charts")
@pytest.mark.parametrize("count", [3, 30])
def test_axes_have_room_however_many_methods_there_are(
    results: ExperimentResults, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"method {number}, with a rather long name" for number in range(count)]
    template = results.at((("alpha", 0.1),), "random")
    runs = tuple(
        dataclasses.replace(run, labels={**run.labels, "strategy": name})
        for name in names
        for run in template
    )
    many = dataclasses.replace(
        results, axes={**results.axes, "strategy": tuple(names)}, runs=runs, paper=()
    )
    drawn: list[Figure] = []
    legend_below = charts._legend_below
    monkeypatch.setattr(
        charts,
        "_legend_below",
        lambda figure, methods: (legend_below(figure, methods), drawn.append(figure)),
    )
    # A figure without room warns, which is an error here.
    charts.learning_curves(many, (("alpha", 0.1),), "many")
    (figure,) = drawn
    box = figure.axes[0].get_position()
    assert box.height * figure.get_figheight() > 2
    (legend,) = figure.legends
    top = legend.get_window_extent().y1 / figure.bbox.height
    assert top < box.y0


def test_of_many_curves_some_are_told_apart(results: ExperimentResults) -> None:
    """The first, the reference, the five with the largest area and the one with the smallest."""
    template = results.at((("alpha", 0.1),), "random")
    names = [f"m{number}" for number in range(13)]

    def moved(number: int) -> Callable[[RunResult], dict[str, object]]:
        def change(run: RunResult) -> dict[str, object]:
            cycles = tuple(
                cycle.model_copy(update={"accuracy": 0.3 + number * 7 % 13 / 100})
                for cycle in run.run.metrics.cycles
            )
            return {"metrics": dataclasses.replace(run.run.metrics, cycles=cycles)}

        return change

    runs = tuple(
        dataclasses.replace(run, labels={**run.labels, "strategy": name})
        for number, name in enumerate(names)
        for run in with_runs(dataclasses.replace(results, runs=tuple(template)), moved(number)).runs
    )
    axes = {**results.axes, "strategy": tuple(names)}
    many = dataclasses.replace(results, axes=axes, runs=runs, paper=(), compared_with="m3")
    # 7 n modulo 13: the largest are of 11, 9, 7, 5 and 3, the smallest of 0, the next of 2.
    point = (("alpha", 0.1),)
    assert charts.told_apart(many, point) == ["m0", "m3", "m5", "m7", "m9", "m11"]
    other = dataclasses.replace(many, compared_with="m2")
    assert charts.told_apart(other, point) == ["m0", "m2", "m3", "m5", "m7", "m9", "m11"]
    assert "the others are grey here" in render_sweep_report(many)
    fewer = dataclasses.replace(many, axes={**axes, "strategy": tuple(names[:12])})
    assert charts.told_apart(fewer, point) == names[:12]
    assert "the others are grey here" not in render_sweep_report(fewer)


def test_without_a_partition_nothing_is_told_of_it(results: ExperimentResults) -> None:
    """As of runs over sites: no classes of high variance, no crossover, no bubbles."""
    two = {"axes": {**results.axes, "strategy": METHODS[:2]}, "runs": results.runs[:12]}
    results = dataclasses.replace(results, **two)
    unknown = with_runs(results, lambda _: {"partition": {}})
    assert "Learning curves" in render_sweep_report(unknown)
    assert tables.class_table(unknown) is None
    partition = ("classes-0", "classes-1", "crossover", "partition-0")
    names = [panel.chart.name for panel in report._panels(results)]
    assert set(partition) < set(names)
    left = [name for name in names if name not in partition]
    assert [panel.chart.name for panel in report._panels(unknown)] == left
    # Of those that have one it is told as ever.
    some = with_runs(results, lambda each: {"partition": {}} if each.seed else {})
    found, whole = tables.class_table(some), tables.class_table(results)
    assert found is not None
    assert whole is not None
    assert [row[:2] for row in found.rows] == [row[:2] for row in whole.rows]
    high, _ = tables.class_halves(results.runs[0])
    assert found.rows[0][2].startswith(f"{high:.2f}")
    assert [panel.chart.name for panel in report._panels(some)] == names


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_the_page_says_first_what_it_is_not(results: ExperimentResults) -> None:
    page = Page(render_sweep_report(results))
    text = " ".join(page.text)
    assert "Table <1> & more" in text
    banner = text.index("Not at the paper's scale (small)")
    assert banner < text.index("Learning curves")
    assert "1 runs are missing, 1 of them failed" in text
    assert text.index("Not the paper's protocol on digits: the paper has no results") < banner + 800
    assert text.index("1,438 images, 359 to test with") < text.index("Learning curves")
    assert "dataset=elsewhere" in text
    assert "a-run: SomeError: why" in text
    assert page.tags.count("svg") >= 8
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags


def test_departures_from_the_paper_s_protocol() -> None:
    protocol = {
        **Settings().to_flat(),
        **{"num-clients": 10, "rounds": 100, "target-fraction": 0.35},
    }
    assert departures("cifar10", [protocol], ()) == []
    shorter = {**protocol, "rounds": 10, "max-train-samples": 10000, "alpha": 0.5}
    longer = {**protocol, "rounds": 20}
    assert departures("cifar10", [protocol, shorter, longer], ()) == [
        "max-train-samples (paper: all): 10000",
        "rounds (paper: 100): 10, 20",
    ]
    assert departures("cifar10", [shorter], {"rounds", "max-train-samples"}) == []
    assert departures("mnist", [protocol], {"rounds", "target-fraction"}) == [
        "local-epochs (paper: 10): 5"
    ]
    assert departures("digits", [protocol], ()) == ["the paper has no results on digits"]


def test_tables_as_markdown_and_latex(results: ExperimentResults) -> None:
    table = tables.accuracy_table(results)
    lines = tables.markdown(table).splitlines()
    assert lines[2].startswith("| strategy | alpha = 0.1 (ours) | paper |")
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: |"
    text = tables.latex(dataclasses.replace(table, title="50 % & more_x α"))
    assert r"\caption{50 \% \& more\_x $\alpha$}" in text
    assert r"\textbf{69.67 $\pm$ 1.53 (3)}" in text
    assert text.count(r"\\") == 4


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    file = folder / "tiny.yaml"
    file.write_text(
        f"""
        num-clients: 3
        rounds: 1
        local-epochs: 1
        cycles: 2
        max-train-samples: 300
        data-dir: {data_dir}
        sweep: {{strategy: [random, entropy], seed: [0, 1]}}
        """
    )
    out = folder / "out"
    with sweeps_here(), with_charts(OF_SWEEPS):
        result = CliRunner().invoke(app, ["sweep", str(file), "--out", str(out), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert str(out / "report.html") in result.output.replace("\n", "")
    return out


@pytest.fixture
def swept(swept_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept_once, tmp_path / "out"))


@pytest.mark.slow
def test_a_sweep_ends_in_a_report_and_files(swept: Path) -> None:
    assert "Final test accuracy" in (swept / "report.html").read_text()
    rows = list(csv.DictReader((swept / "tables" / "tiny-paper.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 2
    assert {row["strategy"] for row in rows} == {"random", "entropy"}
    for row in rows:
        summary = json.loads((swept / "runs" / row["folder"] / "summary.json").read_text())
        cycle = int(row["cycle"]) - 1
        assert float(row["accuracy"]) == summary["accuracy_per_cycle"][cycle]
        assert int(row["labels"]) == summary["labels_per_cycle"][cycle]
    assert (swept / "tables" / "tiny-paper.tex").read_text().count(r"\begin{table}") >= 4
    picture = (swept / "figures" / "tiny-paper-curves-0.svg").read_text()
    ElementTree.fromstring(picture)
    assert 'fill="white"' in picture
    assert "**Final test accuracy in %**" in (swept / "tables" / "tiny-paper.md").read_text()


@pytest.mark.slow
def test_a_report_of_part_of_a_sweep(swept: Path) -> None:
    import shutil

    for folder in list((swept / "runs").glob("entropy*")):
        shutil.rmtree(folder)
    (swept / "summaries.jsonl").unlink()
    text = write_sweep_report(swept).read_text()
    assert "2 runs are missing." in text
    for folder in list((swept / "runs").iterdir()):
        shutil.rmtree(folder)
    assert "4 runs are missing." in write_sweep_report(swept).read_text()


@pytest.mark.slow
def test_several_experiments_in_one_folder(swept: Path) -> None:
    plan = swept / "experiments" / "tiny-paper.json"
    (swept / "experiments" / "other-small.json").write_text(
        plan.read_text().replace('"tiny.yaml"', '"other.yaml"').replace('"paper"', '"small"', 1)
    )
    contents = write_sweep_report(swept).read_text()
    assert 'href="report-tiny-paper.html"' in contents
    assert (swept / "report-tiny-paper.html").is_file()


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="not the folder of a sweep"):
        write_sweep_report(tmp_path)


def test_runs_are_compared_by_the_settings_that_differ(swept: Path, tmp_path: Path) -> None:
    folders = sorted((swept / "runs").iterdir())
    results = compare_runs(folders)
    assert list(results.axes) == ["strategy", "seed"]
    assert results.method_axis == "strategy"
    assert len(results.runs) == 4
    page = tmp_path / "page.html"
    output = CliRunner().invoke(app, ["compare", *map(str, folders), "--out", str(page)]).output
    assert "random" in output
    assert "Learning curves" in page.read_text()
    twice = compare_runs([folders[0], folders[0]])
    assert list(twice.axes) == ["run"]
    with pytest.raises(ReportError, match="at least 2"):
        compare_runs(folders[:1])
    with pytest.raises(ReportError, match="not the folder of a run"):
        compare_runs([folders[0], tmp_path])


Written = Callable[..., list[Path]]


@pytest.fixture
def written(one_run: Run, tmp_path: Path) -> Written:
    """Write copies of a run's folder: two seeds of each of some settings."""

    def written(*settings: dict[str, object]) -> list[Path]:
        folders = []
        for place, said in enumerate(settings):
            for seed in (0, 1):
                folder = tmp_path / f"{place}-{seed}"
                shutil.copytree(one_run.folder, folder)
                flat = {**one_run.settings.to_flat(), **said, "seed": seed}
                (folder / "config.yaml").write_text(dump_yaml(flat))
                folders.append(folder)
        return folders

    return written


def test_parameters_of_what_differs_are_part_of_its_label(written: Written) -> None:
    folders = written(
        {"strategy": "random"},
        {"strategy": "ahfal", "strategy.balance": "none"},
        {"strategy": "ahfal", "strategy.balance": "none", "strategy.toggle": "local"},
        {"strategy": "ahfal"},
    )
    results = compare_runs(folders)
    labels = (
        *("random", "ahfal strategy.balance=none"),
        *("ahfal strategy.balance=none strategy.toggle=local", "ahfal"),
    )
    assert results.axes == {"strategy": labels, "seed": (0, 1)}
    table = tables.accuracy_table(results)
    assert [row[0] for row in table.rows] == list(labels)
    assert all(row[1].endswith("(2)") for row in table.rows)
    differences = tables.difference_table(results)
    assert differences is not None
    assert [row[-1] for row in differences.rows] == ["2", "2", "2"]
    # Of one strategy they are the axis, as numbers that can be drawn over.
    assert compare_runs(folders[2:]).axes == {
        "strategy.balance": ("none", ""),
        "strategy.toggle": ("", "local"),
        "seed": (0, 1),
    }


def test_a_protection_s_budget_is_part_of_its_label(written: Written) -> None:
    private = {"privacy": "local-dp", "privacy.epsilon": 1.0}
    folders = written({}, private, {**private, "privacy.epsilon": 5.0})
    labels = ("none", "local-dp privacy.epsilon=1.0", "local-dp privacy.epsilon=5.0")
    assert compare_runs(folders).axes == {"privacy": labels, "seed": (0, 1)}
    assert list(compare_runs(folders[2:]).axes) == ["privacy.epsilon", "seed"]


def of_data(run: Run, fingerprint: str) -> Run:
    data = {**run.environment["data"], "fingerprint": fingerprint}
    return dataclasses.replace(run, environment={**run.environment, "data": data})


def test_methods_that_had_other_data_are_named(results: ExperimentResults) -> None:
    assert data_warnings(results) == []
    assert "Not the same data" not in render_sweep_report(results)
    runs = tuple(
        dataclasses.replace(r, run=of_data(r.run, "a" * 64 if r.labels["alpha"] == 0.1 else "b"))
        for r in results.runs
    )
    # What is compared had the same.
    assert data_warnings(dataclasses.replace(results, runs=runs)) == []
    runs = tuple(
        dataclasses.replace(r, run=of_data(r.run, "c" * 64))
        if (r.labels["strategy"], r.labels["alpha"]) == ("random", 0.1)
        else r
        for r in runs
    )
    other = dataclasses.replace(results, runs=runs)
    (warning,) = data_warnings(other)
    assert warning.startswith(
        "Not the same data at alpha = 0.1: fingerprints of digits are "
        "cccccccccccc for random; aaaaaaaaaaaa for entropy, ahfal; "
    )
    assert f"{warning}." in html.unescape(render_sweep_report(other))


def test_data_sets_that_are_compared_are_to_differ(results: ExperimentResults) -> None:
    """Two folders of one name: the method is the data set."""
    places = ("/here/photographs", "/there/photographs")
    runs = []
    for place in places:
        for result in results.runs[:2]:
            settings = result.run.settings.model_copy(update={"dataset": place})
            run = dataclasses.replace(of_data(result.run, place), settings=settings)
            runs.append(RunResult({"dataset": place, "seed": result.seed}, run))
    axes = {"dataset": places, "seed": SEEDS}
    assert data_warnings(dataclasses.replace(results, axes=axes, runs=tuple(runs))) == []


def test_compared_runs_of_other_data_are_named(written: Written, tmp_path: Path) -> None:
    folders = written({"strategy": "random"}, {"strategy": "entropy"})
    for folder in folders[2:]:
        environment = json.loads((folder / "environment.json").read_text())
        environment["data"]["fingerprint"] = "d" * 64
        (folder / "environment.json").write_text(json.dumps(environment))
    page = tmp_path / "page.html"
    output = CliRunner().invoke(app, ["compare", *map(str, folders), "--out", str(page)]).output
    assert "warning: Not the same data: fingerprints of digits are " in output
    assert "dddddddddddd for entropy" in page.read_text()


@pytest.mark.usefixtures("charts")
def test_a_partition_is_drawn_without_a_run(tmp_path: Path, simulation: Callable) -> None:  # type: ignore[type-arg]
    picture = tmp_path / "split.svg"
    data = f"data-dir={simulation.base['data-dir']}"
    arguments = ["partition", "num-clients=4", "alpha=0.5", data, "--out", str(picture)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "of 10 classes are low-variance at τ = 12" in result.output
    assert picture.read_text().startswith("<svg")
    assert not list(tmp_path.glob("runs"))


def test_a_run_that_knows_no_commit_is_compared(results: ExperimentResults) -> None:
    """As of a run by `flwr run`, which runs a copy of the app without git."""
    unknown = {"commit": None, "dirty": None}
    runs = []
    for result in results.runs:
        run = dataclasses.replace(result.run, summary={**result.run.summary, **unknown})
        runs.append(dataclasses.replace(result, run=run))
    page = render_sweep_report(dataclasses.replace(results, runs=tuple(runs)))
    assert re.search(r"commit</th>\s*<td[^>]*>unknown", page)
