"""What a report says of arrivals and of forgetting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.simulation import SharedRuns

from ahfal_app.config import parse_settings
from ahfal_app.drift import smoothed_divergence
from ahfal_app.ledger import ArrivalFigures, Ledger
from ahfal_app.results.arrivals import (
    accuracies_by_task,
    arrivals_table,
    average_forgetting,
    first_cycles,
    forgetful_accuracy,
    forgetting_table,
    mix_table,
    statistics_warnings,
    task_accuracies,
    tasks_table,
)
from ahfal_app.results.reading import Metrics, Run, read_run
from ahfal_app.results.records import (
    ArrivalsRecord,
    ArrivalTests,
    CycleRecord,
    Forgetting,
    TestRecord,
)
from ahfal_app.results.report import write_report
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


def cycle(number: int, **more: object) -> CycleRecord:
    """Return what a cycle with three classes may have recorded."""
    values: dict[str, object] = {
        "cycle": number,
        "labels": 9,
        "labels_per_client": (9,),
        "accuracy": 0.5,
        "class_accuracy": (0.5, 0.5, 0.5),
        "loss": 1.0,
        "tau": 12,
        "ledger": Ledger(9, 9, 0, 0),
        **more,
    }
    return CycleRecord.model_validate(values)


def came(*classes: int, distance: float | None = None) -> ArrivalsRecord:
    """Return that so many samples of each class came, so far from what was wanted."""
    figures = ArrivalFigures(sum(classes), sum(classes), 0, 0, 0)
    return ArrivalsRecord(figures=figures, classes=classes, distance=distance)


def confusion(*rows: tuple[int, ...]) -> TestRecord:
    size = sum(map(sum, rows))
    return TestRecord(where="server", samples=size, metrics={}, confusion=rows)


def a_run(cycles: Sequence[CycleRecord], tasks: Sequence[int] = (), **more: object) -> Run:
    """Return a run of these cycles, which were all."""
    settings = parse_settings(
        {
            **STREAM,
            "cycles": len(cycles),
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
    )
    partition = {"arrivals": {"tasks": list(tasks)}} if tasks else {}
    return Run(Path(), settings, Metrics((), tuple(cycles)), {}, partition, {})


def test_what_came_against_what_was_bought_by_hand() -> None:
    # 5, 3 and 2 samples of the test set, whatever the model makes of them.
    tests = (confusion((0, 5, 0), (3, 0, 0), (0, 0, 2)),)
    run = a_run(
        [
            cycle(0, arrivals=came(9, 9, 9)),
            cycle(1, arrivals=came(4, 4, 2)),
            cycle(2, arrivals=came(0, 3, 1)),
            cycle(3, arrivals=came(1, 1, 0), tests=tests),
        ]
    )
    bought = np.array([[1, 0, 3], [0, 0, 2], [0, 0, 0]])
    table = mix_table(run, bought)
    assert table is not None
    test = (5.5 / 11.5, 3.5 / 11.5, 2.5 / 11.5)

    def divergence(*counts: float) -> str:
        shares = [(count + 0.5) / (sum(counts) + 1.5) for count in counts]
        return f"{sum(p * math.log(p / q) for p, q in zip(shares, test, strict=True)):.3f}"

    assert divergence(1, 0, 3) != divergence(0, 0, 2)
    # (.4, .4, .2) and (.25, 0, .75); (0, .75, .25) and (0, 0, 1). Where none is bought, none is
    # compared.
    assert table.rows == [
        ("2", "10", "4", "55.00 %", divergence(1, 0, 3)),
        ("3", "4", "2", "75.00 %", divergence(0, 0, 2)),
    ]


def test_how_far_stock_has_bent_the_path_by_hand() -> None:
    """Weighted by what came: (30 · .1 + 10 · .5) / 40."""
    run = a_run(
        [
            cycle(0, arrivals=came(10, 10, 10, distance=0.1)),
            cycle(1, arrivals=came(0, 0, 0)),
            cycle(2, arrivals=came(5, 5, 0, distance=0.5)),
        ]
    )
    table = arrivals_table(run)
    assert table is not None
    assert "in the mean 20.00 % of what came for a client was of another class" in table.note
    straight = arrivals_table(a_run([cycle(0, arrivals=came(1, 1, 1)), cycle(1), cycle(2)]))
    assert straight is not None
    assert "Stock" not in straight.note


def test_accuracy_by_task_by_hand() -> None:
    """Classes 0 and 2 are the first task; of class 2 there is no test sample at first."""
    accuracies = [(0.1, 0.1, 0.1), (0.8, 0.1, None), (0.3, 0.3, 0.3), (0.6, 0.9, 0.5)]
    cycles = [cycle(number, class_accuracy=each) for number, each in enumerate(accuracies)]
    found = task_accuracies(cycles, np.array([0, 1, 0]), 4)
    assert found == pytest.approx(np.array([[0.8, 0.1], [0.55, 0.9]]))
    by_cycle = accuracies_by_task(cycles, np.array([0, 1, 0]))
    assert by_cycle == pytest.approx(np.array([[0.1, 0.1], [0.8, 0.1], [0.3, 0.3], [0.55, 0.9]]))
    untested = [cycle(0, class_accuracy=(None, 0.5, None))]
    assert np.isnan(accuracies_by_task(untested, np.array([0, 1, 0]))).tolist() == [[True, False]]
    # The second task has not come to its end.
    assert task_accuracies(cycles[:3], np.array([0, 1, 0]), 4) is None
    tests = {"tests": (confusion((1, 0, 0), (0, 1, 0), (0, 0, 1)),)}
    run = a_run([each.model_copy(update=tests) for each in cycles], tasks=(0, 1, 0))
    table = tasks_table(run)
    assert table is not None
    assert table.rows == [("1", "80.00 %", ""), ("2", "55.00 %", "90.00 %")]
    assert "Average forgetting: 25.0 points" in table.note


@pytest.mark.parametrize(("tasks", "cycles"), [(2, 4), (5, 41), (3, 10), (1, 3), (4, 4)])
def test_a_task_begins_where_its_first_cycle_is(tasks: int, cycles: int) -> None:
    """Cycle t of T belongs to task ⌊t G / T⌋."""
    task_T = [cycle * tasks // cycles for cycle in range(cycles)]
    assert first_cycles(tasks, cycles) == [task_T.index(task) for task in range(tasks)]


def test_classes_that_forgetting_puts_on_another_side_are_counted() -> None:
    def statistics(low: tuple[bool, ...], plain: tuple[bool, ...]) -> dict[str, object]:
        forgetting = Forgetting(deviation=(0.1, 0.1, 0.1), low=plain, effective=(7.3, 9.7))
        mean = (0.5, 0.3, 0.2)
        return {"mean": mean, "deviation": (0.2, 0.05, 0.2), "low": low, "forgetting": forgetting}

    yes, no = True, False
    run = a_run(
        [
            cycle(0, **statistics((no, yes, no), (yes, yes, yes))),
            cycle(1, **statistics((no, yes, no), (no, yes, no))),
            cycle(2, **statistics((no, yes, no), (yes, no, yes))),
            cycle(3),
        ],
        forget=2.0,
    )
    table = forgetting_table(run)
    assert table is not None
    assert table.rows == [
        (f"{number}", "7.3 to 9.7", "15.00", "10.00", changed)
        for number, changed in ((1, "2"), (2, "0"), (3, "3"))
    ]


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
    page = write_report(run.folder).read_text()
    assert "Accuracy by task, from cycle to cycle" in page
    assert "Test accuracy of each task" in page


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
