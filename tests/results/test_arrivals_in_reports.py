"""What a report says of arrivals and of forgetting."""

from __future__ import annotations

import numpy as np
import pytest
from support.simulation import SharedRuns

from ahfal_app.drift import smoothed_divergence
from ahfal_app.ledger import ArrivalFigures
from ahfal_app.results.arrivals import (
    arrivals_table,
    average_forgetting,
    forgetful_accuracy,
    forgetting_table,
    mix_table,
    statistics_warnings,
    tasks_table,
)
from ahfal_app.results.reading import read_run
from ahfal_app.results.records import ArrivalsRecord, ArrivalTests
from ahfal_app.results.selections import read_class_counts

STREAM: dict[str, object] = {
    "arrivals": "count",
    "arrival-start": 10,
    "arrival-rate": 10,
    "pool-memory": 1,
    "initial-labels": 10,
    "query-labels": 2,
    "target-labels": 16,
    "rounds": 1,
    "max-train-samples": 200,
    "max-test-samples": 50,
}


def test_average_forgetting_is_not_clipped():
    accuracy = np.array([[80, 0, 0], [60, 70, 0], [50, 75, 90]], np.float64)
    assert average_forgetting(accuracy) == 12.5
    assert average_forgetting(accuracy[:1, :1]) == 0


def test_divergence_of_smoothed_mixes():
    p, q = np.array([1.5, 0.5]) / 2, np.array([2.5, 2.5]) / 5
    expected = float((p * np.log(p / q)).sum())
    assert smoothed_divergence(np.array([1, 0]), np.array([2, 2])) == pytest.approx(expected)


def told(right: int, count: int) -> ArrivalsRecord:
    tests = ArrivalTests(next_right=right, next_count=count)
    return ArrivalsRecord(figures=ArrivalFigures(0, 0, 0, 0, 0), tests=tests)


def test_accuracy_on_what_came_next_by_hand():
    """λ = 1/2: (8) / 10, (4 + 4) / (5 + 10), (2 + 2 + 12) / (2.5 + 5 + 20)."""
    cycles = [told(8, 10), told(4, 10), told(12, 20), told(0, 0)]
    halved = forgetful_accuracy(cycles, 1.0)
    assert halved[:3] == pytest.approx([0.8, 8 / 15, 16 / 27.5])
    # Nothing came, and all weighs half as much as before.
    assert halved[3] == halved[2]
    assert forgetful_accuracy(cycles, 0.0) == pytest.approx([0.8, 0.6, 0.6, 0.6])
    assert forgetful_accuracy([told(0, 0)], 1.0) == [None]


@pytest.mark.slow
def test_a_report_tells_what_came_and_went(shared_runs: SharedRuns):
    run = read_run(shared_runs(STREAM).folder)
    table = arrivals_table(run)
    assert table is not None
    # Arrived, new, open, expired, skipped, labelled, pending and free.
    assert [row[1:9] for row in table.rows] == [
        ("30", "30", "0", "0", "0", "30", "0", "0"),
        ("60", "30", "24", "0", "0", "36", "0", "0"),
        ("90", "30", "24", "24", "0", "42", "0", "0"),
        ("120", "30", "24", "48", "0", "48", "0", "0"),
    ]
    assert "80 samples never come" in table.note
    assert table.rows[-1][-1] == "n/a"
    mixes = mix_table(run, read_class_counts(run.folder, 10))
    assert mixes is not None
    assert [row[:3] for row in mixes.rows] == [(f"{c}", "30", "6") for c in (2, 3, 4)]
    page = (run.folder / "report.html").read_text()
    assert "Arrivals" in page
    assert "Classes of what came and of what was bought" in page


def test_a_report_tells_how_images_and_tasks_change(shared_runs: SharedRuns):
    more = {"arrival-order": "class-incremental", "arrival-order.groups": 2}
    looks = {"covariate-drift": "noise"}
    run = read_run(shared_runs({**STREAM, **more, **looks}).folder)
    table = arrivals_table(run)
    assert table is not None
    assert [row[-1] for row in table.rows] == ["0.00", "1.67", "3.33", "5.00"]
    tasks = tasks_table(run)
    assert tasks is not None
    assert [len([cell for cell in row if cell]) for row in tasks.rows] == [2, 3]
    assert "Average forgetting" in tasks.note


def test_a_report_tells_what_forgetting_changes(shared_runs: SharedRuns):
    run = read_run(shared_runs({**STREAM, "forget": 1.0}).folder)
    table = forgetting_table(run)
    assert table is not None
    assert [row[1] for row in table.rows] == ["10.0 to 10.0", "10.9 to 10.9", "9.7 to 9.7"]
    assert "effective ones" in table.note
    arrivals = arrivals_table(run)
    assert arrivals is not None
    *_, plain, weighted = zip(*arrivals.rows, strict=True)
    assert arrivals.headings[-1] == "The same, weighted over cycles"
    assert weighted[0] == plain[0] != "n/a"
    assert weighted[-1] == plain[-1] == "n/a"
    (warning,) = statistics_warnings(run)
    assert "more than half of tau=12" in warning


def test_a_run_without_arrivals_says_nothing_of_them(shared_runs: SharedRuns):
    run = read_run(shared_runs().folder)
    assert arrivals_table(run) is None
    assert forgetting_table(run) is None
    assert mix_table(run, None) is None
    assert tasks_table(run) is None
