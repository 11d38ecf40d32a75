"""`keep=best`: a run leaves the best model of those that were tested, whatever interrupts it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from safetensors import safe_open
from support.killing import (
    Killed,
    KillSwitch,
    Uninterrupted,
    killed_at,
    killed_at_each,
    uninterrupted,
)
from support.simulation import Outcome, Simulation

from ahfal_app.errors import CheckpointError, ConfigError
from ahfal_app.evaluation import EvaluationSums
from ahfal_app.metrics import measure_all
from ahfal_app.results.records import CycleRecord, Record
from ahfal_app.results.summary import summary_text
from ahfal_app.server import run as run_module
from ahfal_app.server.start import Start
from ahfal_app.training.prediction import Evaluation

SETTINGS: dict[str, object] = {"keep": "best", "metric": "macro-f1", "evaluate-every": 1}

#: What is tested, by the number of records before: cycle by cycle, the first round and the end.
TESTS = {0: (0, 1), 2: (0, 2), 3: (1, 1), 5: (1, 2), 6: (2, 1), 8: (2, 2)}

Seen = dict[tuple[int, int], dict[str, np.ndarray]]


def confusion(cycle: int, round_: int) -> np.ndarray:
    """Return what a test says, whatever the model: the best by F1 is in the middle of a cycle."""
    right = {(0, 1): 6, (0, 2): 9, (1, 1): 12, (1, 2): 7, (2, 1): 12, (2, 2): 11}[cycle, round_]
    return np.ones((10, 10), np.int64) + np.diag(np.full(10, right - 1 + np.arange(10) % 2))


def _test_of(cycle: int, round_: int) -> Evaluation:
    counts_CC = confusion(cycle, round_)
    return Evaluation(replace(EvaluationSums.nothing(10), confusion_CC=counts_CC), 1.0)


def by_position(seen: Seen):
    """Return a stand-in for the test of the global model, which notes the models."""

    def evaluate(start: Start, arrays: ArrayRecord) -> Evaluation:
        metrics = (start.folder / "metrics.jsonl").read_bytes()
        at = TESTS[metrics.count(b"\n")]
        seen[at] = {name: array.numpy().copy() for name, array in arrays.items()}
        return _test_of(*at)

    return evaluate


@pytest.fixture(autouse=True)
def _tests_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_evaluate", by_position({}))


@pytest.fixture(scope="module", name="seen")
def _seen() -> Seen:
    return {}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, seen: Seen) -> Uninterrupted:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_evaluate", by_position(seen))
        return uninterrupted(Simulation(tmp_path_factory.mktemp("straight"), data_dir), **SETTINGS)


def f1_of(folder: Path) -> dict[tuple[int, int], float]:
    """Return what each test said, by cycle and round."""
    found: dict[tuple[int, int], float] = {}
    records: list[Record] = list(Outcome(folder, "").metrics.records)
    for record in records:
        value = record.metrics.get("macro-f1")
        if value is not None:
            round_ = 2 if isinstance(record, CycleRecord) else record.round
            found[record.cycle, round_] = value
    return found


def left(outcome: Outcome) -> tuple[object, ...]:
    return outcome.result, outcome.summary["kept"]


def test_the_model_is_the_one_of_the_best_test(straight: Uninterrupted, seen: Seen) -> None:
    values, best = f1_of(straight.folder), (1, 1)
    assert values == {at: measure_all(confusion(*at))["macro-f1"] for at in TESTS.values()}
    # As high as the last cycle's first round, and earlier.
    assert values[best] == values[2, 1] == max(values.values())
    kept, path = straight.summary["kept"], straight.folder / "model.safetensors"
    assert (kept["cycle"], kept["round"], kept["value"]) == (*best, values[best])
    assert (kept["metric"], kept["compared"]) == ("macro-f1", 6)
    with safe_open(path, "np") as file:
        use = json.loads(file.metadata()["ahfal"])["use"]
        for name, array in seen[best].items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    labels = straight.metrics.cycles[1].labels
    accuracy = _test_of(*best).accuracy
    assert (use["cycle"], use["round"], use["chosen_by"]) == (*best, "macro-f1")
    assert (use["labels"], use["accuracy"]) == (labels, accuracy)
    assert kept["labels"] == labels != straight.summary["labels_per_cycle"][-1]
    assert straight.summary["metrics_per_cycle"]["macro-f1"] == [values[c, 2] for c in range(3)]


def test_card_and_report_say_that_its_figures_are_optimistic(straight: Uninterrupted) -> None:
    card = (straight.folder / "model-card.md").read_text()
    assert "the model of cycle 2, round 1, chosen by its macro-f1 in this test from 6" in card
    assert "its figures are optimistic" in card
    recalls = _test_of(1, 1).class_accuracy_C
    assert all(f"| {name} | {100 * share:.2f} % |" in card for name, share in enumerate(recalls))
    report = (straight.folder / "report.html").read_text()
    assert "Accuracy of the best model" in report
    assert "cycle 2, round 1; macro-f1" in report
    assert "model of cycle 2, round 1: macro-f1" in summary_text(straight.folder)


def test_little_is_kept_of_the_others(straight: Uninterrupted) -> None:
    kept = straight.summary["kept"]
    names = {path.name for path in (straight.folder / "candidates").iterdir()}
    assert f"{kept['cycle']}-{kept['round']}.safetensors" in names
    assert len(names) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.15, 0.55, 0.7, 0.99])
def test_a_kill_changes_nothing(
    share: float, straight: Uninterrupted, simulation: Simulation
) -> None:
    folder = killed_at(round(share * straight.events), simulation, **SETTINGS)
    assert left(simulation.resume(folder)) == left(straight)


@pytest.mark.slow
def test_killed_at_events_of_all_kinds(straight: Uninterrupted, simulation: Simulation) -> None:
    for event, folder in killed_at_each(straight.spread(14), simulation, **SETTINGS):
        assert left(simulation.resume(folder)) == left(straight), f"killed at event {event}"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_damaged_checkpoint_changes_nothing(
    share: float, straight: Uninterrupted, simulation: Simulation
) -> None:
    folder = killed_at(round(share * straight.events), simulation, **SETTINGS)
    newest = max((folder / "checkpoint").glob("[0-9]*"))
    (newest / "model.safetensors").write_bytes(b"damaged")
    assert left(simulation.resume(folder)) == left(straight)


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.3])
def test_more_cycles_end_as_one_that_had_them_from_the_start(
    share: float | None,
    straight: Uninterrupted,
    simulation: Simulation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = {**SETTINGS, "target-fraction": 0.1}
    folder = simulation(short, name="short").folder
    if share is not None:
        switch = KillSwitch(max(1, round(share * straight.events / 3)))
        switch.install(monkeypatch)
        with pytest.raises(Killed):
            simulation.resume(folder, switch.handler, cycles=3)
        switch.fatal = None
    assert left(simulation.resume(folder, cycles=3)) == left(straight)


def test_a_best_model_that_is_gone_is_told_before_anything_is_trained(
    straight: Uninterrupted, simulation: Simulation
) -> None:
    folder = killed_at(round(0.7 * straight.events), simulation, **SETTINGS)
    for path in (folder / "candidates").iterdir():
        path.write_bytes(b"damaged")
    lines = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"candidates/\d-\d.safetensors: the best model"):
        simulation.resume(folder)
    assert len((folder / "metrics.jsonl").read_bytes()) <= len(lines)


def test_a_metric_that_no_test_gives_is_refused(simulation: Simulation) -> None:
    with pytest.raises(ConfigError, match=r"metric='macro_f1': allowed is accuracy \| balanced"):
        simulation(metric="macro_f1")


def test_without_it_the_last_model_is_left(simulation: Simulation) -> None:
    outcome = simulation(cycles=2, **{"evaluate-every": 1})
    assert not (outcome.folder / "candidates").exists()
    kept = outcome.summary["kept"]
    assert (kept["keep"], kept["cycle"], kept["round"]) == ("last", 1, 2)
    assert "optimistic" not in (outcome.folder / "model-card.md").read_text()
