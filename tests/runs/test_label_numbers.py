"""Budgets in numbers of labels: of each client, or of all of them together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict
from support.attacks import IMAGES, Spoil, Target
from support.killing import Uninterrupted, killed_at, killed_at_each, uninterrupted
from support.patients import write_patients
from support.simulation import Outcome, SharedRuns, Simulation
from support.spoiling import about, of_client
from support.strategy_cases import NEEDED

from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.query import strategy_names
from ahfal_app.results.grants import grants_table
from ahfal_app.results.reading import read_run

#: Ten labels at each of three clients, then five more.
FEW: dict[str, object] = {
    "initial-labels": 10,
    "query-labels": 5,
    "target-labels": 15,
    "rounds": 1,
    "max-train-samples": 200,
    "max-test-samples": 50,
}

#: One label less than there are clients, then two more: some have none for a while.
SHARED: dict[str, object] = {
    "budget": "global",
    "initial-labels": 4,
    "query-labels": 2,
    "target-labels": 8,
    "num-clients": 5,
    "rounds": 1,
    "max-train-samples": 200,
    "max-test-samples": 50,
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("data") / "patients.parquet", slice(0, 200))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", strategy_names())
def test_every_strategy_chooses_where_clients_have_one_label_or_none(
    strategy: str, patients: Path, simulation: Simulation
):
    outcome = simulation(
        SHARED, dataset=str(patients), strategy=strategy, cycles=2, **NEEDED.get(strategy, {})
    )
    _check_choice(outcome, [4, 6])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["badge", "feal", "logo"])
def test_a_network_on_images_is_trained_on_one_label_or_none(strategy: str, simulation: Simulation):
    _check_choice(simulation(SHARED, strategy=strategy), [4, 6, 8])


def _check_choice(outcome: Outcome, labels: list[int]) -> None:
    assert [cycle.labels for cycle in outcome.metrics.cycles] == labels
    last = outcome.metrics.cycles[-1]
    assert (last.ledger.allotted, last.ledger.spent) == (labels[-1], labels[-1])
    assert last.ledger.free == 0


@pytest.mark.slow
def test_a_pool_smaller_than_the_numbers_is_labelled_whole(shared_runs: SharedRuns):
    settings = FEW | {"alpha": 0.1, "target-labels": 150, "query-labels": 70}
    outcome = shared_runs(settings, partition="dirichlet", strategy="badge")
    sizes = [sum(counts) for counts in read_run(outcome.folder).partition["counts"]]
    for cycle, due in zip(outcome.metrics.cycles, (10, 80, 150), strict=True):
        assert cycle.labels_per_client == tuple(np.minimum(sizes, due))
    assert min(sizes) < 150
    assert "target-labels=150: " in outcome.log


@pytest.mark.parametrize("split", ["share", "equal", "missing", "threshold"])
def test_labels_at_each_training_are_the_steps(split: str, simulation: Simulation):
    of_all = {"budget": "global", "budget-split": split, "rounds": 1, "num-clients": 5}
    chosen = {"strategy": "entropy", "strategy.model": "global", "label-steps": "4,6,17,50"}
    outcome = simulation(of_all | chosen)
    _check_choice(outcome, [4, 6, 17, 50])
    _check_stores(outcome.folder, 50)


def test_even_steps_are_the_three_numbers(simulation: Simulation, shared_runs: SharedRuns):
    small = {key: FEW[key] for key in ("rounds", "max-train-samples", "max-test-samples")}
    steps = simulation(small, **{"label-steps": "10,15"})
    assert steps.result == simulation(FEW, name="numbers").result
    whole = simulation(small, **{"label-steps": "10,15,150"}, name="whole")
    assert "label-steps=10,15,150: " in whole.log


def test_the_largest_step_is_held_against_a_sites_policy(tmp_path: Path):
    target = Target(tmp_path, **{"policy-labels-per-cycle": 8})
    assert not target.send("query.join", {"label-steps": "3,11,12"}).has_error()
    strict = Target(tmp_path / "strict", **{"policy-labels-per-cycle": 7})
    strict.refused("query.join", "policy", {"label-steps": "3,11,12"})
    # What is beyond the cycles that there are is never bought.
    assert not strict.send("query.join", {"label-steps": "3,9,12,99", "cycles": 3}).has_error()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    return uninterrupted(Simulation(tmp_path_factory.mktemp("straight"), data_dir), **SHARED)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.12, 0.18, 0.25, 0.5, 0.75])
def test_a_shared_budget_is_granted_once_whatever_happens(
    share: float, straight: Uninterrupted, simulation: Simulation
):
    folder = killed_at(max(3, round(share * straight.events)), simulation, **SHARED)
    assert simulation.resume(folder).result == straight.result
    _check_stores(folder, 8)


@pytest.mark.slow
def test_a_shared_budget_killed_at_events_of_all_kinds(
    straight: Uninterrupted, simulation: Simulation
):
    for event, folder in killed_at_each(straight.spread(18), simulation, **SHARED):
        assert simulation.resume(folder).result == straight.result, f"at event {event}"
        _check_stores(folder, 8)


def _check_stores(folder: Path, labels: int) -> None:
    """Hold every client's store to its ledger, and all of them to the budget."""
    spent = 0
    for path in sorted((folder / "clients").glob(f"*/{STORE_FILE}")):
        store = LabelStore.open_existing(path)
        store.verify()
        spent += store.ledger().spent
        store.close()
    assert spent == labels


@pytest.mark.slow
def test_a_client_that_comes_later_has_its_share_of_what_is_bought_from_then_on(
    simulation: Simulation,
):
    late = of_client(2, "query.join", about("num-clients", 0), times=1)
    few = {"num-clients": 3, "initial-labels": 6, "query-labels": 9, "target-labels": 24}
    outcome = simulation(SHARED | few, handler=late, **{"start-timeout": 0.5})
    labels = np.array([cycle.labels_per_client for cycle in outcome.metrics.cycles])
    assert labels.sum(axis=1).tolist() == [6, 15, 24]
    # It lacks most of its share of all, and of what is bought gets that first.
    assert labels[:, 2].tolist() == [0, 0, 8]
    _check_stores(outcome.folder, 24)


#: Three clients of about the same size; sites of very different size: `test_site_runs`.
CLIENTS: dict[str, object] = {
    **SHARED,
    "num-clients": 3,
    "partition": "dirichlet",
    "alpha": 1.0,
    "initial-labels": 9,
    "query-labels": 9,
    "target-labels": 27,
}


def test_the_report_says_who_got_what_and_why(simulation: Simulation):
    outcome = simulation(CLIENTS, **{"budget-split": "equal"})
    assert [cycle.labels_per_client for cycle in outcome.metrics.cycles] == [
        (3, 3, 3),
        (6, 6, 6),
        (9, 9, 9),
    ]
    table = grants_table(read_run(outcome.folder))
    assert table is not None
    assert "budget-split=equal" in table.title
    assert table.headings == ("Client", "First", "After cycle 1", "After cycle 2", "In all")
    assert table.rows == [(f"client {c}", "3", "3 (1)", "3 (1)", "9") for c in range(3)]
    assert table.title in (outcome.folder / "report.html").read_text()
    assert outcome.metrics.cycles[-1].grants is None


_TOGETHER = {"budget": "global", "initial-labels": 40, "query-labels": 1, "target-labels": 41}


def _grant(labels: int) -> Spoil:
    def spoil(content: RecordDict) -> None:
        content["budget"] = MetricRecord({"labels": labels})

    return spoil


def test_a_site_holds_a_grant_against_its_policy(tmp_path: Path):
    target = Target(tmp_path, **{"policy-labels-per-run": 29})
    assert not target.send("query.join", _TOGETHER).has_error()
    target.refused("query.begin", "policy", _TOGETHER, _grant(30))
    for nonsense in (10**12 + 1, -1):
        target.refused("query.begin", "message", _TOGETHER, _grant(nonsense))
    for _ in range(2):  # Whatever is repeated changes nothing.
        assert not target.send("query.begin", _TOGETHER, _grant(29)).has_error()
        (ledger,) = target.ledgers().values()
        assert (ledger.allotted, ledger.spent) == (29, 29)


def test_a_site_is_granted_no_more_than_it_has_images(tmp_path: Path):
    target = Target(tmp_path)
    assert not target.send("query.begin", _TOGETHER, _grant(10**9)).has_error()
    (ledger,) = target.ledgers().values()
    assert ledger.allotted == ledger.spent == IMAGES


def test_without_a_grant_nothing_is_bought_of_a_shared_budget(tmp_path: Path):
    target = Target(tmp_path)
    assert not target.send("query.join", _TOGETHER).has_error()
    target.refused("query.begin", "message", _TOGETHER)
    (ledger,) = target.ledgers().values()
    assert ledger.allotted == 0
