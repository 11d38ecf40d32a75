"""Runs whose samples arrive over time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.killing import Uninterrupted, killed_at, uninterrupted
from support.simulation import TINY, Outcome, SharedRuns, Simulation

from ahfal_app.class_statistics import class_proportions
from ahfal_app.config import Settings, parse_settings
from ahfal_app.errors import ConfigError
from ahfal_app.labels.records import LabelReceipt, LabelRequest
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.oracle.simulated import SimulatedOracle
from ahfal_app.query import Aligned, ScoringStrategy
from ahfal_app.results.reading import read_run
from ahfal_app.server.start import prepare
from ahfal_app.training.resources import resources

#: Each sample may be asked for once: ten come, two are bought.
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


def _bought(outcome: Outcome) -> list[tuple[int, int, int]]:
    """Return who bought what after which cycle."""
    return [(each["client"], each["cycle"], each["sample"]) for each in outcome.selections]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"strategy": "entropy", "arrival-replacement": True},
        {"strategy": "random", "arrivals": "share", "arrival-start": 0.2, "arrival-rate": 0.2},
        {"arrival-order": "class-incremental", "arrival-order.groups": 2, "strategy": "badge"},
        {"arrival-order": "prior-drift", "pool-memory": 2, "strategy": "core-set"},
        {"covariate-drift": "rotation", "local-update": "kcfu", "rounds": 2},
    ],
)
def test_nothing_is_asked_for_before_it_arrives_or_after_it_is_gone(
    more: dict[str, object], shared_runs: SharedRuns
):
    outcome = shared_runs({**STREAM, **more})
    run = read_run(outcome.folder)
    arrivals = resources(run.settings).arrivals(run.settings)
    assert arrivals is not None
    assert run.partition["arrivals"]["fingerprint"] == arrivals.fingerprint
    bought = _bought(outcome)
    assert bought
    for client, cycle, sample in bought:
        each = arrivals.clients[client]
        (place,) = np.flatnonzero(each.rows_N == sample)
        assert cycle + 1 - run.settings.pool_memory < each.cycle_N[place] <= cycle + 1
    assert len({(client, sample) for client, _, sample in bought}) == len(bought)
    _check_records(outcome)


def _check_records(outcome: Outcome) -> None:
    run = read_run(outcome.folder)
    arrivals = resources(run.settings).arrivals(run.settings)
    assert arrivals is not None
    for record in outcome.metrics.cycles:
        told = record.arrivals
        assert told is not None
        assert told.clients == tuple(each.arrived(record.cycle) for each in arrivals.clients)
        ledger = record.ledger
        asked = sum(told.clients) - told.figures.open - told.figures.expired
        assert told.figures.arrived == sum(told.clients)
        if record is outcome.metrics.cycles[-1]:
            assert ledger.spent == asked
        assert told.tests is not None
        if record.cycle + 1 < run.settings.num_cycles:
            new = sum(len(each.new(record.cycle + 1)) for each in arrivals.clients)
            assert told.tests.next_count == new
        assert sum(told.classes) == told.figures.new
    for path in (outcome.folder / "clients").glob(f"*/{STORE_FILE}"):
        store = LabelStore.open_existing(path)
        store.verify()
        store.close()


@pytest.mark.slow
def test_images_look_as_they_did_when_they_arrived(shared_runs: SharedRuns):
    more = {"covariate-drift": "rotation", "local-update": "kcfu", "rounds": 2}
    outcome = shared_runs({**STREAM, **more})
    settings = read_run(outcome.folder).settings
    loaded = resources(settings)
    arrivals = loaded.arrivals(settings)
    assert arrivals is not None
    clean, looked = loaded.dataset.train.images_NHWC, loaded.train.images_NHWC
    for each in arrivals.clients:
        same = (clean[each.rows_N] == looked[each.rows_N]).all(axis=(1, 2, 3))
        assert (same == (each.cycle_N <= 0)).all()
    levels = [cycle.arrivals.tests.level for cycle in outcome.metrics.cycles]
    assert levels == pytest.approx([0, 5 / 3, 10 / 3, 5])
    # In the first cycle nothing has changed, and the two tests are one.
    first = outcome.metrics.cycles[0]
    assert first.arrivals.tests.accuracy == first.accuracy


def test_the_strategy_changes_nothing_of_what_arrives(shared_runs: SharedRuns):
    one = shared_runs(STREAM)
    other = shared_runs({**STREAM, "strategy": "entropy", "arrival-exhausted": "less"})
    assert _bought(one) != _bought(other)
    told = [[c.arrivals.classes for c in run.metrics.cycles] for run in (one, other)]
    assert told[0] == told[1]


def test_labels_are_aligned_to_what_has_arrived_and_not_to_what_will(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the classes come alone at first, and a target with others would tell of the rest."""
    seen: list[list[float]] = []
    original = Aligned.__init__

    def record(
        self: Aligned, strategy: ScoringStrategy, target: list[float], classes: object = None
    ) -> None:
        seen.append(np.asarray(target).tolist())
        original(self, strategy, target, classes)  # type: ignore[arg-type]

    monkeypatch.setattr(Aligned, "__init__", record)
    tasks = {"arrival-order": "class-incremental", "arrival-order.groups": 2}
    outcome = simulation({**STREAM, **tasks, "strategy": "entropy", "align": "true-global"})
    told = [cycle.arrivals for cycle in outcome.metrics.cycles]
    new = np.array([each.classes for each in told if each is not None])
    assert len(new) == 4
    assert (new.sum(axis=1) > 0).all()
    # Asked after each cycle but the last, of what has come by the next one.
    expected = class_proportions(np.cumsum(new, axis=0)[1:])
    assert len(seen) == 3 * len(expected)
    found = class_proportions(seen).reshape(len(expected), 3, -1)
    for client in range(3):
        assert found[:, client] == pytest.approx(expected)
    assert [int(np.count_nonzero(shares)) for shares in expected] == [5, 10, 10]


@pytest.mark.parametrize(
    ("settings", "arrived", "due"),
    [
        # Shares of what has arrived, rounded up: 22.5 is 23.
        ({"initial-fraction": 0.1, "query-fraction": 0.05}, [100, 150, 200], [10, 23, 40]),
        (
            {"initial-labels": 10, "query-labels": 2, "target-labels": 99},
            [10, 11, 12],
            [10, 11, 12],
        ),
        (
            {"initial-labels": 10, "query-labels": 1, "target-labels": 12},
            [10, 20, 30],
            [10, 11, 12],
        ),
    ],
)
def test_budgets_of_a_pool_that_grows(settings, arrived: list[int], due: list[int]):
    parsed = parse_settings(settings)
    assert [parsed.labels_due(t, count) for t, count in enumerate(arrived)] == due


def test_few_arrivals_are_bought_whole_and_the_rest_of_the_budget_stays_free(
    simulation: Simulation,
):
    # Wanted are 10, 12, 14 labels of 10, 11, 12 samples.
    few = {"arrival-rate": 1, "target-labels": 14}
    outcome = simulation(STREAM, **few)
    assert [c.labels_per_client for c in outcome.metrics.cycles] == [(n,) * 3 for n in (10, 11, 12)]
    ledger = outcome.metrics.cycles[-1].ledger
    assert (ledger.allotted, ledger.spent, ledger.free) == (36, 36, 0)


def test_what_cannot_be_spent_is_carried_over(simulation: Simulation):
    # All ten are bought at first; of what comes, a share of all that has arrived is due.
    settings = {
        **{key: STREAM[key] for key in ("rounds", "max-train-samples", "max-test-samples")},
        "arrivals": "count",
        "arrival-start": 10,
        "arrival-rate": 1,
        "pool-memory": 1,
        "initial-fraction": 0.1,
        "query-fraction": 0.3,
        "target-fraction": 0.7,
    }
    outcome = simulation(settings)
    # Due are 1, 5 and 9 of 10, 11 and 12 samples, of which one is open each time.
    assert [c.labels_per_client[0] for c in outcome.metrics.cycles] == [1, 2, 3]
    ledger = outcome.metrics.cycles[-1].ledger
    assert (ledger.allotted, ledger.spent, ledger.free) == (3 * 9, 3 * 3, 3 * 6)


def test_a_skipped_label_buys_one_of_the_next_cycle(tmp_path: Path):
    """The ledger gives a skipped label back; with single access it buys what comes next."""
    path, samples = tmp_path / STORE_FILE, np.arange(30)
    store = LabelStore.open_file(path, samples, 2)
    store.allot(10)
    store.reserve(LabelRequest("0", 0, "random", tuple(range(10))))
    store.commit([LabelReceipt("0", sample, 0, "a") for sample in range(10)])
    store.allot(11)
    store.open_only(np.arange(10, 20))
    store.reserve(LabelRequest("1", 1, "random", (12,)))
    store.commit([LabelReceipt("1", 12, None, "a")])
    assert (store.skipped(0), store.skipped(1)) == (0, 1)
    store.allot(12)
    store.open_only(np.arange(20, 30))
    assert store.ledger().free == 2
    # What has expired is not asked for any more, whatever somebody says.
    assert store.unlabelled().tolist() == list(range(20, 30))
    store.reserve(LabelRequest("2", 2, "random", (20, 21)))
    assert store.ledger().free == 0
    # Its label may still come, and waits until one is free.
    store.commit([LabelReceipt("1", 12, 1, "b")])
    assert store.ledger().spent == 10
    store.verify()
    store.close()


def test_and_so_it_does_in_a_run(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten labels and one a cycle: what people skip in the second cycle, the third one buys."""
    original = SimulatedOracle.collect

    def collect(self: SimulatedOracle, request_id: str) -> list[LabelReceipt]:
        receipts, request = original(self, request_id), self._requests.get(request_id)
        if request is None or request.cycle != 1:
            return receipts
        return [replace(receipt, label=None) for receipt in receipts]

    monkeypatch.setattr(SimulatedOracle, "collect", collect)
    outcome = simulation({**STREAM, "query-labels": 1, "target-labels": 13})
    cycles = outcome.metrics.cycles
    assert [cycle.labels_per_client for cycle in cycles] == [(n,) * 3 for n in (10, 10, 12, 13)]
    figures = [cycle.arrivals.figures.skipped for cycle in cycles if cycle.arrivals is not None]
    assert figures == [0, 3, 3, 3]
    ledger = cycles[-1].ledger
    assert (ledger.allotted, ledger.spent, ledger.free) == (39, 39, 0)


@pytest.mark.slow
@given(st.data())
def test_the_ledger_adds_up_whatever_comes_and_goes(data: st.DataObject):
    store, asked = LabelStore.from_bytes(b"", np.arange(40), 2), []
    for cycle in range(4):
        store.allot(5 * (cycle + 1))
        store.open_only(np.arange(10 * cycle, 10 * (cycle + 1)))
        pool = store.unlabelled().tolist()
        most = min(store.ledger().free, len(pool))
        chosen = tuple(pool[: data.draw(st.integers(0, most))])
        store.reserve(LabelRequest(str(cycle), cycle, "random", chosen))
        asked += [(str(cycle), sample) for sample in chosen]
        answers = data.draw(st.lists(st.sampled_from(asked), unique=True)) if asked else []
        labels = [data.draw(st.sampled_from([None, 0, 1])) for _ in answers]
        store.commit(
            LabelReceipt(request, sample, label, "a")
            for (request, sample), label in zip(answers, labels, strict=True)
        )
        store.verify()
    assert len({sample for _, sample in asked}) == len(asked)
    store.close()


RECYCLE = {**STREAM, "arrival-rate": 30, "arrival-exhausted": "recycle", "strategy": "random"}


def test_what_nobody_asked_for_comes_again_and_is_never_bought_twice(simulation: Simulation):
    outcome = simulation(RECYCLE)
    bought = _bought(outcome)
    assert len({(client, sample) for client, _, sample in bought}) == len(bought)
    # 66 or 67 samples are gone by the third cycle, which brings as many all the same.
    assert [c.arrivals.figures.new for c in outcome.metrics.cycles] == [30, 90, 90, 90]
    assert outcome.metrics.cycles[-1].arrivals.figures.arrived == 200


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    simulation = Simulation(tmp_path_factory.mktemp("straight"), data_dir)
    return uninterrupted(simulation, **RECYCLE)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.08, 0.3, 0.45, 0.6, 0.85])
def test_a_killed_run_sees_the_same_arrivals(
    share: float, straight: Uninterrupted, simulation: Simulation
):
    folder = killed_at(max(3, round(share * straight.events)), simulation, **RECYCLE)
    resumed = simulation.resume(folder)
    assert resumed.result == straight.result
    told = [[c.arrivals for c in run.metrics.cycles] for run in (resumed, straight)]
    assert told[0] == told[1]


def test_more_cycles_than_a_path_had_are_refused(simulation: Simulation):
    outcome = simulation(STREAM, **{"arrival-order": "prior-drift", "cycles": 2})
    with pytest.raises(ConfigError, match="depends on their number"):
        prepare({"resume": str(outcome.folder), "cycles": 3})


@pytest.mark.slow
def test_a_stream_of_longer_life_goes_on_as_if_it_had_been_that_long(
    simulation: Simulation, shared_runs: SharedRuns
):
    short = simulation(STREAM, cycles=2)
    longer = simulation.resume(short.folder, cycles=4)
    assert longer.result == shared_runs(STREAM).result


_REFUSED = [
    ({"arrival-start": 10}, "arrival-start=10.0: has no effect with arrivals='all'"),
    ({"pool-memory": 1}, "pool-memory=1: allowed is 0 with arrivals='all'"),
    ({"covariate-drift": "blur"}, "covariate-drift='blur': has no effect with arrivals='all'"),
    ({**STREAM, "arrival-start": 1.5}, "arrival-start=1.5: allowed is a whole number"),
    ({**STREAM, "arrival-rate": 0}, "arrival-rate=0: allowed is a whole number of at least 1"),
    ({**STREAM, "arrivals": "share"}, "arrival-start=10.0: allowed is at most 1"),
    (
        {**STREAM, "arrivals": "share", "arrival-start": 0.5, "arrival-rate": 0},
        "arrival-rate=0: allowed is above 0",
    ),
    ({**STREAM, "partition": "sites"}, "arrivals='count': allowed is 'all' with partition='sites'"),
    ({**STREAM, "arrival-order": "randon"}, "did you mean 'random'"),
    ({**STREAM, "arrival-order.groups": 2}, "'random' has no such parameter"),
    ({**STREAM, "arrival-rate": 30}, "100 samples arrive in 4 cycles"),
    ({**STREAM, "initial-labels": 11}, "initial-labels=11: allowed is at most arrival-start=10"),
    ({**RECYCLE, "pool-memory": 0}, "pool-memory=0: allowed is at least 1"),
    ({**RECYCLE, "covariate-drift": "noise"}, "covariate-drift='noise': allowed is 'none'"),
    (
        {**RECYCLE, "arrival-order": "prior-drift"},
        "arrival-exhausted='recycle': allowed is refuse | less",
    ),
    (
        {**STREAM, "arrival-order": "class-incremental", "arrival-order.groups": 5},
        "arrival-order.groups=5: allowed is at most 4 with 10 classes and 4 cycles",
    ),
    (
        {**STREAM, "arrivals": "share", "arrival-order": "class-incremental"}
        | {"arrival-start": 0.1, "arrival-rate": 0.1, "arrival-order.groups": 2},
        "arrival-start=0.1: allowed is 0 with arrival-order='class-incremental'",
    ),
    ({**STREAM, "strategy": "temporal"}, "pool-memory=1: allowed is 0 or at least 2"),
    (
        {**STREAM, "local-update": "kcfu", "local-update.pool": "initial"},
        "local-update.pool='initial': allowed is 'current'",
    ),
    ({**STREAM, "stopping": "kappa"}, "stopping='kappa': allowed with arrivals='count'"),
    ({**STREAM, "severity": 2}, "severity=2.0: has no effect with covariate-drift='none'"),
    (
        {**STREAM, "covariate-drift": "blur", "severity-period": 3},
        "severity-period=3: allowed with severity-path='recurring' alone",
    ),
    (
        {**STREAM, "covariate-drift": "shear"},
        "covariate-drift='shear': allowed is `none` | `noise` | `blur`",
    ),
]


@pytest.mark.parametrize(("settings", "reason"), _REFUSED)
def test_what_makes_no_sense_is_refused(
    settings: dict[str, object], reason: str, simulation: Simulation
):
    with pytest.raises(ConfigError) as refused:
        prepare({**TINY, **simulation.base, **settings})
    assert reason in str(refused.value)


def test_all_is_the_default_and_tells_nothing(shared_runs: SharedRuns):
    assert Settings().arrivals == "all"
    outcome = shared_runs()
    assert all(cycle.arrivals is None for cycle in outcome.metrics.cycles)
    assert "arrivals" not in read_run(outcome.folder).partition


def test_what_is_there_from_the_start_is_what_has_come_at_once(simulation: Simulation):
    """The pool of a stream whose samples all come before the first cycle is everybody's pool."""
    settings = {**TINY, "strategy": "badge"}
    whole = {"arrivals": "share", "arrival-start": 1.0, "arrival-rate": 0.1}
    at_once = simulation(settings, **whole)
    assert at_once.result == simulation(settings).result


def test_every_order_is_tried_here():
    from ahfal_app.plugins import ARRIVAL_ORDERS

    tried = {
        str(settings.get("arrival-order", "random"))
        for settings in itertools.chain((each for each, _ in _REFUSED), [STREAM])
    }
    assert set(ARRIVAL_ORDERS.own_names()) <= tried
