"""What became of each sample that arrived, as `arrivals.parquet` has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.simulation import Outcome, SharedRuns, Simulation

from ahfal_app.config import parse_settings
from ahfal_app.results.arrival_rows import merge_arrivals, write_asked, write_came
from ahfal_app.results.reading import read_run
from ahfal_app.training.resources import resources

STREAM: dict[str, object] = {
    "arrivals": "count",
    "arrival-start": 10,
    "arrival-rate": 10,
    "pool-memory": 2,
    "initial-labels": 10,
    "query-labels": 4,
    "target-labels": 22,
    "audit-share": 0.3,
    "rounds": 1,
    "max-train-samples": 200,
    "max-test-samples": 50,
    "covariate-drift": "noise",
}


def _rows(outcome: Outcome) -> list[dict[str, object]]:
    return pq.read_table(outcome.folder / "arrivals.parquet").to_pylist()


def test_each_sample_that_came_has_its_row(shared_runs: SharedRuns):
    outcome = shared_runs(STREAM)
    run, rows = read_run(outcome.folder), _rows(outcome)
    loaded = resources(run.settings)
    arrivals = loaded.arrivals(run.settings)
    assert arrivals is not None
    expected = [
        (int(cycle), client, int(row))
        for client, each in enumerate(arrivals.clients)
        for row, cycle in zip(each.rows_N, each.cycle_N, strict=True)
        if cycle >= 0
    ]
    assert [(r["cycle"], r["client"], r["sample"]) for r in rows] == sorted(expected)
    labels_N = loaded.dataset.train.labels_N
    assert all(r["class"] == labels_N[r["sample"]] for r in rows)
    assert {r["cycle"]: r["severity"] for r in rows} == pytest.approx(
        {0: 0, 1: 5 / 3, 2: 10 / 3, 3: 5}
    )
    for cycle in run.metrics.cycles[:-1]:
        told = cycle.arrivals.tests
        right = [r["right_before"] for r in rows if r["cycle"] == cycle.cycle + 1]
        assert (sum(right), len(right)) == (told.next_right, told.next_count)
    assert {r["right_before"] for r in rows if r["cycle"] == 0} == {None}


def test_what_was_bought_and_what_expired(shared_runs: SharedRuns):
    outcome = shared_runs(STREAM)
    rows = _rows(outcome)
    bought = [r for r in rows if r["bought"] is not None]
    assert np.bincount([r["bought"] for r in bought]).tolist() == [30, 12, 12, 12]
    assert np.bincount([r["bought"] for r in bought if r["audit"]]).tolist() == [9, 6, 3, 3]
    assert all(0 <= r["bought"] - r["cycle"] < 2 for r in bought)
    chosen = {(s["cycle"] + 1, s["client"], s["sample"]) for s in outcome.selections}
    assert chosen == {
        (r["bought"], r["client"], r["sample"]) for r in bought if r["bought"] and not r["audit"]
    }
    for r in rows:
        is_gone = r["bought"] is None and r["cycle"] + 2 <= 3
        assert r["expired"] == (r["cycle"] + 2 if is_gone else None)
        assert (r["audit"] is None) == (r["bought"] is None)
    last = outcome.metrics.cycles[-1].arrivals.figures
    assert sum(r["expired"] is not None for r in rows) == last.expired


def test_a_run_without_arrivals_has_none(shared_runs: SharedRuns):
    folder = shared_runs().folder
    assert not (folder / "arrivals.parquet").exists()
    assert not (folder / "arrivals").exists()


def test_cycles_that_were_interrupted_are_left_out(tmp_path: Path):
    settings = parse_settings({"arrivals": "count", "arrival-start": 2, "arrival-rate": 1})
    one = np.array([0])
    for cycle in range(3):
        write_came(tmp_path, cycle, one, one + cycle, one, 0.0, None)
        write_asked(tmp_path, cycle, 0, one + cycle, one[:0])
    path = merge_arrivals(tmp_path, settings, num_cycles=2)
    assert path is not None
    assert pq.read_table(path)["sample"].to_pylist() == [0, 1]
    assert merge_arrivals(tmp_path / "nothing", settings, 2) is None


def test_where_nothing_was_asked_for_all_is_null(tmp_path: Path):
    settings = parse_settings({"arrivals": "count", "arrival-start": 2, "arrival-rate": 1})
    write_came(tmp_path, 0, np.array([0, 1]), np.array([4, 3]), np.array([1, 0]), 0.5, None)
    path = merge_arrivals(tmp_path, settings, num_cycles=1)
    assert path is not None
    assert pq.read_table(path).to_pylist() == [
        {
            "cycle": 0,
            "client": client,
            "sample": sample,
            "class": kind,
            "severity": 0.5,
            "right_before": None,
            "bought": None,
            "audit": None,
            "expired": None,
        }
        for client, sample, kind in ((0, 4, 1), (1, 3, 0))
    ]


@pytest.mark.slow
def test_a_resumed_run_has_all_rows(simulation: Simulation, shared_runs: SharedRuns):
    short = simulation(STREAM, cycles=2, **{"covariate-drift": "none"})
    longer = simulation.resume(short.folder, cycles=4)
    whole = shared_runs({**STREAM, "covariate-drift": "none"})
    assert _rows(longer) == _rows(whole)
