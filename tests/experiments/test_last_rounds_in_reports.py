"""The last rounds in a sweep's report, by accuracies of which all is computed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.simulation import SharedRuns

from ahfal_app.experiments.files import load_experiment
from ahfal_app.experiments.last_rounds import (
    last_rounds_table,
    mean_difference_table,
    paper_difference_table,
)
from ahfal_app.experiments.paper import PaperNumber
from ahfal_app.experiments.report import _panels, all_tables, render_sweep_report
from ahfal_app.experiments.results import ExperimentResults, RunResult, compared_by
from ahfal_app.experiments.scales import Scale
from ahfal_app.experiments.tables import TextTable, difference_table, markdown, run_rows
from ahfal_app.results.last_rounds import LastRounds
from ahfal_app.results.reading import Run, read_run

#: Accuracies of the last three rounds by method and seed; of the end alone where no other is known.
LAST: dict[str, tuple[Sequence[float], ...]] = {
    "random": ([0.60, 0.72, 0.75], [0.60, 0.64, 0.65]),
    "entropy": ([0.81, 0.83, 0.85], [0.70]),
    "ahfal": ([0.80, 0.90, 0.85], [0.70, 0.76, 0.73]),
}

#: AHFAL is 8 points above random and 7 below entropy.
PAPER = {"random": 60.0, "entropy": 75.0, "ahfal": 68.0}


def changed(run: Run, method: str, seed: int) -> Run:
    """Return a copy of a run of one cycle with the accuracies above, and their mirror as F1."""
    values = LAST[method][seed]
    mirrored = [1 - value for value in values]
    cycle = run.metrics.cycles[-1].model_copy(
        update={"accuracy": values[-1], "metrics": {"macro-f1": mirrored[-1]}}
    )
    told = {"accuracy": [values], "macro-f1": [mirrored]} if len(values) > 1 else {}
    settings = run.settings.model_copy(update={"strategy": method, "seed": seed})
    metrics = dataclasses.replace(run.metrics, cycles=(cycle,))
    summary = {**run.summary, "last_rounds_per_cycle": told}
    return dataclasses.replace(run, settings=settings, metrics=metrics, summary=summary)


@pytest.fixture
def results(shared_runs: SharedRuns) -> ExperimentResults:
    run = read_run(shared_runs(cycles=1).folder)
    return ExperimentResults(
        title="Last rounds",
        file="table.yaml",
        scale=Scale.PAPER,
        axes={"seed": (0, 1), "strategy": tuple(LAST)},
        overrides={},
        paper=tuple(
            PaperNumber.model_validate({"strategy": method, "accuracy": number})
            for method, number in PAPER.items()
        ),
        runs=tuple(
            RunResult(
                {"seed": seed, "strategy": method}, changed(run, method, seed), summarised=True
            )
            for seed in (0, 1)
            for method in LAST
        ),
        missing=(),
        failures={},
        other_code=False,
    )


def rows_of(table: TextTable | None) -> list[tuple[str, ...]]:
    assert table is not None
    return [tuple(row) for row in table.rows]


def test_mean_range_and_swing() -> None:
    last = LastRounds((0.5, 1.0, 0.25, 0.75))
    assert (last.final, last.mean, last.low, last.high) == (0.75, 0.625, 0.25, 1.0)
    assert (last.swing, last.rise) == (0.75, 0.25)


def test_each_method_s_last_rounds(results: ExperimentResults) -> None:
    table = last_rounds_table(results)
    # Random: finals 75 and 65, means 69 and 63, swings 15 and 5; the lowest is 60 twice. AHFAL
    # swings by 10 and 6, and ends 5 and 3 above where its last rounds begin.
    assert rows_of(table) == [
        ("all", "random", "70.00 ± 7.07 (2)", "66.00 ± 4.24 (2)", "60.00 to 70.00",
         "10.00 ± 7.07 (2)", "+10.00", "3"),
        ("all", "entropy", "85.00 (1)", "83.00 (1)", "81.00 to 85.00", "4.00 (1)", "+4.00", "3"),
        ("all", "ahfal", "79.00 ± 8.49 (2)", "79.00 ± 8.49 (2)", "75.00 to 83.00",
         "8.00 ± 2.83 (2)", "+4.00", "3"),
    ]  # fmt: skip
    assert table is not None
    assert table.title == "Last rounds, test accuracy in %"


def test_differences_once_of_the_final_round_and_once_of_the_mean(
    results: ExperimentResults,
) -> None:
    # Finals: 75 − 85 and 65 − 73; entropy's second run has a final round, too.
    final = rows_of(difference_table(results))
    assert [row[1:3] for row in final] == [("random", "-9.00"), ("entropy", "-1.50")]
    # Means: 69 − 85 and 63 − 73, −13 ± 3 · 12.706; p = 1 − 2/π · atan(13/3), of one test alone.
    table = mean_difference_table(results)
    assert rows_of(table) == [
        ("all", "random", "-13.00", "-51.12 to +25.12", "0.144", "38.12", "2"),
        ("all", "entropy", "-2.00", "–", "–", "–", "1"),
    ]
    title = "Differences to ahfal in the mean of the last rounds, in points of accuracy"
    assert table is not None
    assert table.title == title


def test_which_of_the_paper_s_differences_are_smaller_than_the_swing(
    results: ExperimentResults,
) -> None:
    table = paper_difference_table(results)
    # Swings: (10 + 8) / 2 and (4 + 8) / 2.
    assert rows_of(table) == [
        ("all", "random", "-8.00", "9.00", "yes", "-9.00", "-13.00"),
        ("all", "entropy", "+7.00", "6.00", "no", "-1.50", "-2.00"),
    ]
    assert table is not None
    assert table.note.startswith("1 of the paper's 2 differences is smaller than the swing")
    # Larger than the swing is one of either sign.
    wider = tuple(n.model_copy(update={"accuracy": 1.2 * n.accuracy}) for n in results.paper)
    found = rows_of(paper_difference_table(dataclasses.replace(results, paper=wider)))
    assert [row[2:5] for row in found] == [("-9.60", "9.00", "no"), ("+8.40", "6.00", "no")]
    without = tuple(n for n in results.paper if n.labels != {"strategy": "ahfal"})
    assert paper_difference_table(dataclasses.replace(results, paper=without)) is None
    alone = tuple(n for n in results.paper if n.labels != {"strategy": "random"})
    assert len(rows_of(paper_difference_table(dataclasses.replace(results, paper=alone)))) == 1


def test_by_another_metric(results: ExperimentResults) -> None:
    by_f1 = compared_by("macro-f1", results)
    random = rows_of(last_rounds_table(by_f1))[0]
    assert random[2:5] == ("30.00 ± 7.07 (2)", "34.00 ± 4.24 (2)", "30.00 to 40.00")
    assert rows_of(mean_difference_table(by_f1))[0][2] == "+13.00"
    assert paper_difference_table(by_f1) is None


def test_a_metric_that_one_round_lacks_has_no_range(results: ExperimentResults) -> None:
    first = results.runs[0]
    summary = {**first.run.summary, "last_rounds_per_cycle": {"accuracy": [[0.6, None, 0.75]]}}
    run = dataclasses.replace(first.run, summary=summary)
    assert RunResult(first.labels, run, summarised=True).last_rounds is None


def test_every_cycle_in_the_spreadsheet(results: ExperimentResults) -> None:
    headings, rows = run_rows(results)
    names = ("mean of last rounds", "lowest of them", "highest of them")
    places = [headings.index(f"accuracy {name}") for name in names]
    found = {(row[1], row[0]): [row[place] for place in places] for row in rows}
    assert found["random", 0] == pytest.approx([0.69, 0.60, 0.75])
    assert found["entropy", 1] == [None, None, None]
    assert {len(row) for row in rows} == {len(headings)}


def test_runs_without_them_are_as_before(results: ExperimentResults) -> None:
    summary = {k: v for k, v in results.runs[0].run.summary.items() if "last_rounds" not in k}
    runs = tuple(
        dataclasses.replace(r, run=dataclasses.replace(r.run, summary=summary))
        for r in results.runs
    )
    older = dataclasses.replace(results, runs=runs)
    assert [r.last_rounds for r in runs] == [None] * 6
    titles = [table.title for table in all_tables(older)]
    assert not [title for title in titles if "ast rounds" in title or "swing" in title]
    assert len(all_tables(results)) == len(titles) + 3
    assert "accuracy mean of last rounds" not in run_rows(older)[0]
    assert "last-rounds-0" not in [panel.chart.name for panel in _panels(older)]


@pytest.mark.usefixtures("charts")
def test_page_and_chart_have_both(results: ExperimentResults) -> None:
    page = render_sweep_report(results)
    for text in ("Final test accuracy in %", "Last rounds, test accuracy in %", "-51.12 to +25.12"):
        assert text in page
    (chart,) = [p.chart for p in _panels(results) if p.chart.name == "last-rounds-0"]
    assert "random: 60.0 to 70.0, mean 66.0, final 70.0; entropy: 81.0 to 85.0" in chart.svg
    assert "mean of the last rounds" in chart.svg
    table = paper_difference_table(results)
    assert table is not None
    assert "| all | random | -8.00 | 9.00 | yes |" in markdown(table)


def test_the_column_mnist_does_a_seed_of_six_methods_before_the_next() -> None:
    conf = Path(__file__).parents[2] / "conf" / "paper"
    column = load_experiment(conf / "table2a-mnist.yaml")
    order = ["ahfal", "random", "entropy", "core-set", "logo", "kafal"]
    planned = [(run.settings.seed, run.settings.strategy) for run in column.runs]
    assert planned == [(seed, strategy) for seed in (0, 1, 2) for strategy in order]
    # With the others the same runs and numbers as in the whole table, but for the tests.
    more = load_experiment(conf / "table2a-mnist-more.yaml")
    others = [run for run in more.runs if run.labels["method"] == run.settings.strategy]
    whole = load_experiment(conf / "table2a.yaml")
    of_whole = [r.settings for r in whole.runs if r.labels["data"] == "MNIST"]
    of_column = [r.settings for r in (*column.runs, *others)]
    untested = [settings.model_copy(update={"evaluate_last": 0}) for settings in of_column]
    assert sorted(map(repr, untested)) == sorted(map(repr, of_whole))
    assert {r.settings.evaluate_last for r in (*column.runs, *more.runs)} == {5}
    numbers = {n.labels["strategy"]: n.accuracy for n in whole.paper if n.labels["data"] == "MNIST"}
    told = {n.labels["strategy"]: n.accuracy for n in column.paper}
    assert told | {n.labels["method"]: n.accuracy for n in more.paper} == numbers
