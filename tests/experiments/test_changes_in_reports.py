"""Data that change in a sweep's report: alarms and accuracies of which all is known by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest
from support.simulation import SharedRuns

from ahfal_app.config import parse_settings
from ahfal_app.experiments.changes import (
    alarm_table,
    alarms_of,
    first_changed,
    recovery_table,
    sudden_change,
)
from ahfal_app.experiments.report import all_tables
from ahfal_app.experiments.results import ExperimentResults, RunResult
from ahfal_app.experiments.scales import Scale
from ahfal_app.results.reading import Run, read_run
from ahfal_app.results.records import CycleRecord, DriftRecord, SiteDrift
from ahfal_app.settings import Settings

STREAM = {
    "dataset": "digits",
    "arrivals": "count",
    "arrival-start": 20,
    "arrival-rate": 10,
    "pool-memory": 1,
    "initial-labels": 10,
    "query-labels": 4,
    "target-labels": 46,
}
SUDDEN = {"arrival-order": "prior-drift", "arrival-order.path": "sudden"}
LINEAR = {"arrival-order": "prior-drift", "arrival-order.path": "linear"}


def settings_of(**values: object) -> Settings:
    return parse_settings({**STREAM, **values})


class TestChange:
    def test_a_sudden_one_comes_in_the_middle(self) -> None:
        """10 cycles: the sixth, which is 5 from 0, is the first with the new mix."""
        settings = settings_of(**SUDDEN)
        assert settings.num_cycles == 10
        assert sudden_change(settings) == first_changed(settings) == 5
        looks = settings_of(**{"covariate-drift": "noise", "severity-path": "sudden"})
        assert sudden_change(looks) == first_changed(looks) == 5

    @pytest.mark.parametrize(
        ("values", "first"),
        [
            ({}, math.inf),
            (LINEAR, 0),
            ({**LINEAR, "arrival-order.path": "recurring"}, 0),
            ({**LINEAR, "arrival-order.path": "walk"}, 0),
            ({"arrival-order": "class-incremental"}, 0),
            ({"covariate-drift": "noise"}, 0),
            ({**SUDDEN, "covariate-drift": "noise"}, 0),
            # A path that is not set is linear, and images alone change at once.
            (
                {
                    "arrival-order": "prior-drift",
                    "covariate-drift": "noise",
                    "severity-path": "sudden",
                },
                0,
            ),
        ],
    )
    def test_others(self, values: Mapping[str, object], first: float) -> None:
        settings = settings_of(**values)
        assert sudden_change(settings) is None
        assert first_changed(settings) == first

    def test_all_at_once_is_steady(self) -> None:
        assert first_changed(parse_settings({"dataset": "digits"})) == math.inf


def drift(says: str) -> DriftRecord | None:
    """`+`: a client's test says drift; `-`: none does; `x`: none can be made; `.`: not tested."""
    if says == ".":
        return None
    sites = (
        SiteDrift(client=0, refusal="too few")
        if says == "x"
        else SiteDrift(
            client=0,
            statistic=1.0,
            log_ratio=1.0,
            df=1,
            p=0.5,
            corrected=0.01 if says == "+" else 1.0,
        ),
        SiteDrift(client=1, refusal="too few"),
    )
    return DriftRecord(method="chi-square", window=2, sites=sites)


def changed(run: Run, values: Mapping[str, object], seed: int, says: str, first: float) -> Run:
    """Return a run of ten cycles; accuracy begins at `first` and rises by a point each."""
    (cycle,) = run.metrics.cycles
    cycles: list[CycleRecord] = [
        cycle.model_copy(
            update={"cycle": t, "accuracy": first + t / 100, "labels": 10 + t, "drift": drift(said)}
        )
        for t, said in enumerate(says)
    ]
    settings = settings_of(**{**values, "seed": seed})
    metrics = dataclasses.replace(run.metrics, cycles=tuple(cycles))
    return dataclasses.replace(run, settings=settings, metrics=metrics)


def results_of(
    run: Run, methods: Mapping[str, tuple[Mapping[str, object], list[str]]]
) -> ExperimentResults:
    runs = [
        RunResult(
            {"seed": seed, "method": method}, changed(run, values, seed, says, 0.5 + seed / 10)
        )
        for method, (values, of_seeds) in methods.items()
        for seed, says in enumerate(of_seeds)
    ]
    return ExperimentResults(
        title="Changes",
        file="changes.yaml",
        scale=Scale.PAPER,
        axes={"seed": (0, 1), "method": tuple(methods)},
        overrides={},
        paper=(),
        runs=tuple(runs),
        missing=(),
        failures={},
        other_code=False,
    )


@pytest.fixture
def one_cycle(shared_runs: SharedRuns) -> Run:
    return read_run(shared_runs(cycles=1).folder)


def test_alarms_are_counted_before_and_after_the_change(one_cycle: Run) -> None:
    """Before 5: seed 0 one of one, seed 1 none of one. After: one of two, at 7; one of one, at 9.

    At 5 of seed 1 no client's mix could be tested.
    """
    results = results_of(
        one_cycle,
        {
            "sudden": (SUDDEN, ["...+.-.+..", "...-.x...+"]),
            "steady": ({}, ["...+.-.-..", ".........-"]),
            "linear": (LINEAR, ["...-.-.-..", "...-.+...."]),
            "untested": (SUDDEN, [".........."] * 2),
        },
    )
    table = alarm_table(results)
    assert table is not None
    assert table.headings[1] == "method"
    assert [tuple(row)[1:] for row in table.rows] == [
        ("sudden", "1 of 2", "2 of 3", "2 of 2", "3.0"),
        ("steady", "1 of 4", "–", "–", "–"),
        ("linear", "–", "1 of 5", "1 of 2", "5.0"),
    ]
    assert table.title in [shown.title for shown in all_tables(results)]


def test_an_indicator_gives_no_alarm(one_cycle: Run) -> None:
    record = DriftRecord(method="predicted", window=2, sites=(SiteDrift(client=0, divergence=9.0),))
    run = changed(one_cycle, SUDDEN, 0, "." * 10, 0.5)
    cycles = tuple(cycle.model_copy(update={"drift": record}) for cycle in run.metrics.cycles)
    run = dataclasses.replace(run, metrics=dataclasses.replace(run.metrics, cycles=cycles))
    assert alarms_of(RunResult({"seed": 0, "method": "a"}, run)) is None


def test_accuracy_about_a_sudden_change(one_cycle: Run) -> None:
    """Cycle 4 is before it; 5, 7 and 9 are one, three and five cycles after."""
    results = results_of(
        one_cycle, {"sudden": (SUDDEN, ["." * 10] * 2), "linear": (LINEAR, ["." * 10] * 2)}
    )
    table = recovery_table(results)
    assert table is not None
    assert [tuple(row)[1:] for row in table.rows] == [
        ("sudden", *(f"{mean}.00 ± 7.07 (2)" for mean in (59, 60, 62, 64)))
    ]
    assert alarm_table(results) is None


def test_a_run_that_was_stopped_early_has_no_later_accuracy(one_cycle: Run) -> None:
    results = results_of(one_cycle, {"sudden": (SUDDEN, ["." * 6])})
    table = recovery_table(results)
    assert table is not None
    assert tuple(table.rows[0])[2:] == ("54.00 (1)", "55.00 (1)", "–", "–")
