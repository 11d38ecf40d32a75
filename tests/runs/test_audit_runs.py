"""Runs in which a share of the labels is drawn at random."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.killing import Uninterrupted, killed_at, killed_at_each, uninterrupted
from support.simulation import Outcome, SharedRuns, Simulation

from ahfal_app.labels.records import AUDIT
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.ledger import AuditFigures
from ahfal_app.results.arrival_rows import ARRIVALS

#: Each sample may be asked for once: ten come, four are bought, one or two of them at random.
AUDITED: dict[str, object] = {
    "arrivals": "count",
    "arrival-start": 10,
    "arrival-rate": 10,
    "pool-memory": 1,
    "initial-labels": 10,
    "query-labels": 4,
    "target-labels": 22,
    "audit-share": 0.3,
    "rounds": 1,
    "max-train-samples": 200,
    "max-test-samples": 50,
    "strategy": "entropy",
}


def _asked(outcome: Outcome) -> dict[tuple[str, int, bool], set[int]]:
    """Return what each client asked for before each cycle, of the audit and besides."""
    found = {}
    for path in sorted((outcome.folder / "clients").glob(f"*/{STORE_FILE}")):
        store = LabelStore.open_existing(path)
        store.verify()
        rows = store._connection.execute(
            "SELECT q.cycle, q.strategy, s.sample FROM samples AS s JOIN requests AS q "
            "USING (request_id)"
        ).fetchall()
        for cycle, strategy, sample in rows:
            key = (path.parent.name, cycle, strategy == AUDIT)
            found.setdefault(key, set()).add(sample)
        store.close()
    return found


def test_a_share_of_each_purchase_is_drawn_and_all_of_it_is_paid_for(shared_runs: SharedRuns):
    outcome = shared_runs(AUDITED)
    asked = _asked(outcome)
    for client in ("0", "1", "2"):
        # Of 10, 14, 18 and 22 labels 3, 4.2, 5.4 and 6.6, rounded up.
        assert [len(asked[client, cycle, True]) for cycle in range(4)] == [3, 2, 1, 1]
        assert [len(asked[client, cycle, False]) for cycle in range(4)] == [7, 2, 3, 3]
    every = [(client, sample) for (client, *_), some in asked.items() for sample in some]
    assert len(set(every)) == len(every) == 66
    cycles = outcome.metrics.cycles
    assert [c.labels_per_client for c in cycles] == [(n,) * 3 for n in (10, 14, 18, 22)]
    assert [(c.budget, c.bought) for c in cycles] == [(12, 12)] * 3 + [(0, 0)]
    assert (cycles[-1].ledger.allotted, cycles[-1].ledger.spent) == (66, 66)


def test_the_model_is_judged_by_what_is_drawn_before_it_is_labelled(shared_runs: SharedRuns):
    """As `arrivals.parquet` has it, for which the server asks each cycle's model by itself."""
    outcome = shared_runs(AUDITED)
    told = [record.audit for record in outcome.metrics.cycles]
    rows = pq.read_table(outcome.folder / ARRIVALS).to_pylist()
    for cycle, audit in enumerate(told[:-1]):
        of_audit = [row for row in rows if row["audit"] and row["bought"] == cycle + 1]
        right = sum(row["right_before"] for row in of_audit)
        assert audit == AuditFigures(len(of_audit), len(of_audit), right)
    assert [audit.asked for audit in told[:-1] if audit] == [6, 3, 3]
    # A chance of one in ten would give about one.
    assert sum(audit.right for audit in told[:-1] if audit) > 0
    assert told[-1] is None
    report = (outcome.folder / "report.html").read_text()
    assert "The model on audit labels" in report


def test_with_any_privacy_nothing_is_told_of_the_audit(simulation: Simulation):
    outcome = simulation(AUDITED, privacy="secure-aggregation", **{"target-labels": 14})
    assert [record.audit for record in outcome.metrics.cycles] == [None, None]
    assert any(key[2] for key in _asked(outcome))


def test_no_strategy_has_a_say_in_what_is_drawn(shared_runs: SharedRuns):
    one, other = (_asked(shared_runs({**AUDITED, "strategy": s})) for s in ("entropy", "ahfal"))
    assert {k: v for k, v in one.items() if k[2]} == {k: v for k, v in other.items() if k[2]}
    assert one != other


@pytest.mark.slow
def test_what_a_strategy_watches_is_of_the_pool_without_the_audit(simulation: Simulation):
    more = {"strategy": "temporal", "pool-memory": 0, "cycles": 2, "rounds": 2}
    outcome = simulation(AUDITED, **more)
    assert [c.labels_per_client for c in outcome.metrics.cycles] == [(10,) * 3, (14,) * 3]


def test_one_budget_for_all_clients_has_its_audit_too(simulation: Simulation):
    more = {"budget": "global", "initial-labels": 30, "query-labels": 12, "target-labels": 42}
    outcome = simulation(AUDITED, **more)
    asked = _asked(outcome)
    assert sum(len(some) for key, some in asked.items() if key[2]) == 3 * 5
    assert outcome.metrics.cycles[-1].ledger.spent == 42


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    simulation = Simulation(tmp_path_factory.mktemp("straight"), data_dir)
    return uninterrupted(simulation, **AUDITED)


# Each is within another step of a purchase.
@pytest.mark.parametrize(
    "share", [0.37, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.06, 0.31, 0.41, 0.62))]
)
def test_a_killed_run_draws_and_pays_for_the_same(
    share: float, straight: Uninterrupted, simulation: Simulation
):
    folder = killed_at(max(3, round(share * straight.events)), simulation, **AUDITED)
    resumed = simulation.resume(folder)
    assert resumed.result == straight.result
    assert _asked(resumed) == _asked(straight)


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_event(straight: Uninterrupted, simulation: Simulation):
    for _, folder in killed_at_each(straight.spread(24), simulation, **AUDITED):
        assert _asked(simulation.resume(folder)) == _asked(straight)


def test_clients_that_choose_together_draw_their_audits_before(simulation: Simulation):
    outcome = simulation(
        {
            "max-train-samples": 150,
            "max-test-samples": 40,
            "initial-labels": 8,
            "query-labels": 4,
            "target-labels": 12,
            "audit-share": 0.3,
            "rounds": 1,
            "strategy": "coordinated-typicality",
            "strategy.max-clusters": 8,
            "strategy.least-region": 3,
        }
    )
    asked = _asked(outcome)
    for client in ("0", "1", "2"):
        # Of 8 and 12 labels 2.4 and 3.6, rounded up.
        sizes = [len(asked[client, cycle, audit]) for cycle in (0, 1) for audit in (True, False)]
        assert sizes == [3, 5, 1, 3]
    assert outcome.metrics.cycles[-1].ledger.spent == 36


def test_the_model_is_judged_where_clients_choose_together_too(simulation: Simulation):
    """Half of the labels, so that some are right; which is known by the run of each client alone.

    The first cycle's model is the same, and so is what is drawn at random.
    """
    values = {
        "max-train-samples": 150,
        "max-test-samples": 40,
        "initial-labels": 20,
        "query-labels": 10,
        "target-labels": 30,
        "audit-share": 0.5,
        "strategy.max-clusters": 8,
        "strategy": "coordinated-typicality",
    }
    together = simulation({**values, "strategy.least-region": 3}).metrics.cycles
    alone = simulation({**values, "strategy": "typicality"}).metrics.cycles
    audits = [cycles[0].audit for cycles in (together, alone)]
    assert audits[0] == audits[1]
    assert audits[0] is not None
    assert audits[0].asked == audits[0].labelled == 15
    assert audits[0].right > 0
