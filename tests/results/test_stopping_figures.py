"""What a run has cost, and where rules would have ended it, in its summary and its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.charts import with_charts
from support.fake_run import make_fake_run

from ahfal_app.config import parse_settings
from ahfal_app.learning_curve import fit_curve
from ahfal_app.ledger import Ledger
from ahfal_app.results import figures
from ahfal_app.results.reading import Run, read_run
from ahfal_app.results.records import CycleRecord
from ahfal_app.results.report import render_report
from ahfal_app.results.stopping import cycle_results, purchase_before, would_have_stopped
from ahfal_app.results.summary import build_summary, summary_text
from ahfal_app.stop_set import Observation

CALM = (0.98, 0.995, 0.99, 0.992)


def recorded(
    folder: Path, kappas: tuple[float, ...], stopped_by: str = "", **settings: object
) -> Run:
    """Return a run of cycles of 100, 200, ... labels of 1,000 that were planned."""
    path = make_fake_run(
        folder,
        cycles_done=0,
        **{"target_labels": 1000, "initial_labels": 100, "query_labels": 100, **settings},
    )
    environment = json.loads((path / "environment.json").read_text())
    environment |= {"labels": {"planned": 1000}}
    environment["data"]["test"] = 1000
    (path / "environment.json").write_text(json.dumps(environment))
    seen = [None, *(Observation(100, 100, 100, 0.5, kappa, 0.2, 0.3, 0.4) for kappa in kappas)]
    lines = [
        CycleRecord(
            cycle=cycle,
            labels=100 * (cycle + 1),
            labels_per_client=(10 * (cycle + 1),) * 10,
            accuracy=0.5 + 0.05 * cycle,
            class_accuracy=(0.5,) * 10,
            loss=1.0,
            tau=12.0,
            stopped_by=stopped_by if cycle == len(kappas) else "",
            stop_set=values,
            ledger=Ledger(1000, 100 * (cycle + 1), 0, 1000 - 100 * (cycle + 1)),
        ).model_dump_json()
        for cycle, values in enumerate(seen)
    ]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return read_run(path)


def test_where_rules_would_have_ended_a_run_by_hand(tmp_path: Path) -> None:
    run = recorded(tmp_path, CALM)
    found = {each.rule: each for each in would_have_stopped(run)}
    assert set(found) == {"kappa", "change", "delta-f", "uncertainty", "gain"}
    kappa = found["kappa"]
    assert (kappa.cycle, kappa.labels, kappa.saved_labels) == (4, 500, 500)
    assert kappa.accuracy == pytest.approx(0.7)
    assert found["change"].cycle is None
    summary = build_summary(run)["stopping"]
    assert summary["series"]["kappa"] == [None, *CALM]
    assert summary["saved_labels"] == 0
    assert {each["rule"] for each in summary["would_have_stopped"]} == set(found)


def test_what_curves_promised_and_what_came_by_hand(tmp_path: Path) -> None:
    """Accuracies that rise by 0.05 for each 100 labels: a curve bends, and promises less."""
    (gain,) = build_summary(recorded(tmp_path, CALM))["stopping"]["promised_gains"]
    assert gain["cycle"] == 3
    assert gain["observed"] == pytest.approx(0.05)
    fitted = fit_curve([100, 200, 300, 400], [0.5, 0.55, 0.6, 0.65])
    assert gain["point"] == pytest.approx(fitted.best(500) - fitted.best(400))
    assert gain["low"] <= gain["point"] <= gain["high"]
    assert gain["point"] < 0.05


def test_a_rule_is_asked_as_it_is_set(tmp_path: Path) -> None:
    run = recorded(
        tmp_path,
        CALM,
        **{"stopping": "target,kappa", "more": "stopping.kappa=0.98 stopping.accuracy=0.55"},
    )
    found = {each.rule: each.cycle for each in would_have_stopped(run)}
    assert found["kappa"] == 3
    # Wilson's lower end of 600 of 1,000 is 0.5693, and of 550 below the target.
    assert found["target"] == 2


def test_rules_see_what_each_purchase_asked_for_and_what_was_late(tmp_path: Path) -> None:
    purchases = ((100, 0), (100, 7), (90, 0), (0, 0))
    cycles = [
        cycle.model_copy(update={"budget": budget, "pending": pending})
        for cycle, (budget, pending) in zip(
            recorded(tmp_path, CALM[:3]).metrics.cycles, purchases, strict=True
        )
    ]
    found = cycle_results(cycles, [1000] * 4, parse_settings({"label-steps": "1,3,4,9"}))
    assert [(each.asked, each.awaited) for each in found] == [
        (None, 0),
        *purchases[:3],
    ]
    assert [each.growth for each in found] == [1.0, 0.5, 5.0, 1.0]
    assert found[1].labels == 200
    assert found[1].accuracy == pytest.approx(0.55)
    # A run's end buys nothing, and older versions have not told.
    assert purchase_before(cycles) == (None, 0)


def test_what_was_not_recorded_is_not_told(tmp_path: Path) -> None:
    run = read_run(make_fake_run(tmp_path))
    assert would_have_stopped(run) == []
    assert build_summary(run)["stopping"]["series"] == {}


def test_labels_saved_and_money_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    run = recorded(tmp_path, CALM, "enough", stopping="kappa", label_cost=0.35, currency="CHF")
    summary = build_summary(run)
    assert summary["stopping"]["planned_labels"] == 1000
    assert summary["stopping"]["saved_labels"] == 500
    assert summary["cost"] == {
        "currency": "CHF",
        "labels": 175.0,
        "rounds": 0.0,
        "reserved": 0.0,
        "total": 175.0,
    }
    page = render_report(run)
    assert "175 CHF for labels, 175 CHF saved by stopping" in page
    assert "enough; 500 labels fewer than planned" in page
    assert "Where rules would have ended the run" in page
    assert "paid: 175 CHF for labels" in summary_text(run.folder)


def test_rounds_have_a_price_and_nothing_else_has_none(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, cycles_done=2, rounds=3, round_cost=0.1)
    cost = build_summary(read_run(folder))["cost"]
    # Six rounds: exactly what a person gets who multiplies.
    assert (cost["rounds"], cost["labels"], cost["total"]) == (0.6, 0.0, 0.6)
    assert build_summary(read_run(make_fake_run(tmp_path, name="free")))["cost"] is None


def test_the_chart_of_predictions(tmp_path: Path) -> None:
    run = recorded(tmp_path, CALM)
    with with_charts((figures,)):
        chart = figures.predictions_chart(run.metrics.cycles)
    assert chart is not None
    assert "At the end kappa is 0.99, and 20.0 % of the predictions changed." in chart.description
    assert "share changed" in chart.svg
    assert figures.predictions_chart(run.metrics.cycles[:1]) is None
    page = render_report(run)
    assert "100 of 100" in page
    assert "0.9920" in page
