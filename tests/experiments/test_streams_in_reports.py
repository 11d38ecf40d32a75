"""Data that come over time in a sweep's report: figures of which all is known by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from support.simulation import SharedRuns

from ahfal_app.config import parse_settings
from ahfal_app.experiments.report import all_tables
from ahfal_app.experiments.results import ExperimentResults, RunResult
from ahfal_app.experiments.scales import Scale
from ahfal_app.experiments.streams import (
    changed_sides,
    mean_deviations,
    prequential_accuracy,
    stream_table,
)
from ahfal_app.ledger import ArrivalFigures
from ahfal_app.results.reading import Run, read_run
from ahfal_app.results.records import ArrivalsRecord, ArrivalTests, CycleRecord, Forgetting


def with_arrivals(cycle: CycleRecord, right: int, count: int) -> CycleRecord:
    tests = ArrivalTests(next_right=right, next_count=count)
    record = ArrivalsRecord(figures=ArrivalFigures(20, 10, 10, 0, 0), tests=tests)
    return cycle.model_copy(update={"arrivals": record})


def with_forgetting(
    cycle: CycleRecord,
    deviation: float,
    plain: float,
    low: Sequence[bool],
    plain_low: Sequence[bool],
) -> CycleRecord:
    told = Forgetting(deviation=(plain, plain), low=tuple(plain_low))
    update = {"deviation": (deviation, deviation), "low": tuple(low), "forgetting": told}
    return cycle.model_copy(update=update)


@pytest.fixture
def run(shared_runs: SharedRuns) -> Run:
    return read_run(shared_runs(cycles=1).folder)


def results_of(run: Run, cycles: dict[str, list[list[CycleRecord]]]) -> ExperimentResults:
    runs = []
    for method, of_seeds in cycles.items():
        for seed, records in enumerate(of_seeds):
            settings = parse_settings({**run.settings.to_flat(), "seed": seed})
            metrics = dataclasses.replace(run.metrics, cycles=tuple(records))
            runs.append(
                RunResult(
                    {"seed": seed, "method": method},
                    dataclasses.replace(run, settings=settings, metrics=metrics),
                )
            )
    return ExperimentResults(
        title="Streams",
        file="streams.yaml",
        scale=Scale.PAPER,
        axes={"seed": (0, 1), "method": tuple(cycles)},
        overrides={},
        paper=(),
        runs=tuple(runs),
        missing=(),
        failures={},
        other_code=False,
    )


def test_what_came_counts_by_sample_and_not_by_cycle(run: Run) -> None:
    """(3 + 30) of (10 + 50), and nothing comes after the last cycle."""
    (cycle,) = run.metrics.cycles
    came = [with_arrivals(cycle, *each) for each in ((3, 10), (30, 50), (0, 0))]
    assert prequential_accuracy(came) == pytest.approx(55)
    assert prequential_accuracy([cycle]) is None
    assert prequential_accuracy([with_arrivals(cycle, 0, 0)]) is None


def test_forgetting_beside_all_labels_alike(run: Run) -> None:
    """The last cycle has no statistics and counts for nothing."""
    (cycle,) = run.metrics.cycles
    bare = cycle.model_copy(update={"deviation": None, "low": None})
    forgets = [
        with_forgetting(cycle, 0.10, 0.04, (True, False), (True, True)),
        with_forgetting(cycle, 0.20, 0.06, (False, False), (True, True)),
        bare,
    ]
    assert mean_deviations(forgets) == pytest.approx((15, 5))
    assert changed_sides(forgets) == 1.5
    for nothing in (bare, cycle):
        assert mean_deviations([nothing]) is None
        assert changed_sides([nothing]) is None


def test_the_table_has_both_over_seeds(run: Run) -> None:
    (cycle,) = run.metrics.cycles
    forgets = with_forgetting(with_arrivals(cycle, 1, 2), 0.1, 0.05, (True,), (False,))
    results = results_of(
        run,
        {
            "comes": [[with_arrivals(cycle, 1, 4)], [with_arrivals(cycle, 3, 4)]],
            "forgets": [[forgets]],
            "neither": [[cycle]],
        },
    )
    table = stream_table(results)
    assert table is not None
    assert [tuple(row)[1:] for row in table.rows] == [
        ("comes", "50.00 ± 35.36 (2)", "–", "–", "–"),
        ("forgets", "50.00 (1)", "10.00 (1)", "5.00 (1)", "1.00 (1)"),
    ]
    assert table.title in [shown.title for shown in all_tables(results)]
    assert stream_table(results_of(run, {"neither": [[cycle]]})) is None
