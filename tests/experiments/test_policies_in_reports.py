"""Policies that servers learn in a sweep's report: figures of which all is known by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from support.simulation import SharedRuns

from ahfal_app.experiments.policies import VARIANCE, policy_figures, policy_table
from ahfal_app.experiments.report import all_tables
from ahfal_app.experiments.results import ExperimentResults, RunResult
from ahfal_app.experiments.scales import Scale
from ahfal_app.results.reading import Run, read_run


def result_of(run: Run, method: str, seed: int, told: Sequence[dict[str, float]]) -> RunResult:
    (cycle,) = run.metrics.cycles
    cycles = tuple(
        cycle.model_copy(update={"cycle": t, "labels": 10 + t, "policy": policy})
        for t, policy in enumerate(told)
    )
    metrics = dataclasses.replace(run.metrics, cycles=cycles)
    return RunResult({"method": method, "seed": seed}, dataclasses.replace(run, metrics=metrics))


@pytest.fixture
def one_cycle(shared_runs: SharedRuns) -> Run:
    return read_run(shared_runs(cycles=1).folder)


def test_figures_are_those_of_the_last_half(one_cycle: Run) -> None:
    """Of five cycles the last three: rewards of 1, 2 and 6, and a loss in two of them."""
    told = [{}, {"reward": 90.0}, {"reward": 1.0}, {"reward": 2.0, "loss": 4.0}, {"reward": 6.0}]
    told[-1]["loss"] = 5.0
    figures = policy_figures(result_of(one_cycle, "a", 0, told))
    assert figures == {"reward": 3.0, "loss": 4.5, VARIANCE: pytest.approx(7.0)}
    assert policy_figures(result_of(one_cycle, "a", 0, [{"reward": 2.0}])) == {"reward": 2.0}
    assert policy_figures(result_of(one_cycle, "a", 0, [{}, {}])) == {}


def test_table_has_a_row_for_each_method_that_learns(one_cycle: Run) -> None:
    runs = [
        result_of(one_cycle, "learned", 0, [{}, {"reward": 1.0, "loss": 0.5}]),
        result_of(one_cycle, "learned", 1, [{}, {"reward": 3.0, "loss": 1.0}]),
        result_of(one_cycle, "other", 0, [{}, {"reward": 2.0}]),
        result_of(one_cycle, "plain", 0, [{}, {}]),
    ]
    results = ExperimentResults(
        title="Policies",
        file="policies.yaml",
        scale=Scale.PAPER,
        axes={"seed": (0, 1), "method": ("learned", "other", "plain")},
        overrides={},
        paper=(),
        runs=tuple(runs),
        missing=(),
        failures={},
        other_code=False,
    )
    table = policy_table(results)
    assert table is not None
    assert table.headings == ("Where", "method", "Reward", "Loss")
    assert table.rows == [("all", "learned", "2", "0.75"), ("all", "other", "2", "–")]
    assert table.title in [each.title for each in all_tables(results)]
    only_plain = dataclasses.replace(results, runs=tuple(runs[3:]))
    assert policy_table(only_plain) is None
