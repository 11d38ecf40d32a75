"""Runs whose clients compare the class mixes of two windows of cycles."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from rich.console import Console
from safetensors.numpy import load_file
from scipy.stats import chi2, chi2_contingency
from support.killing import Uninterrupted, killed_at, uninterrupted
from support.simulation import TINY, Outcome, SharedRuns, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.drift import DriftTest, Refusal, Shift, merged_counts, smoothed_divergence
from ahfal_app.errors import ConfigError, MessageRefused
from ahfal_app.labels.records import AUDIT
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.messages.answers import drift_from_metrics, drift_to_metrics
from ahfal_app.results.overview import overview
from ahfal_app.results.overview_text import run_text
from ahfal_app.results.reading import read_run
from ahfal_app.results.records import DriftRecord
from ahfal_app.server.start import prepare
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import resources

#: Two windows of two cycles; most labels are of the audit, so that there is something to test.
AUDITED: dict[str, object] = {
    "partition": "iid",
    "arrivals": "count",
    "arrival-start": 40,
    "arrival-rate": 40,
    "pool-memory": 1,
    "initial-labels": 20,
    "query-labels": 20,
    "target-labels": 80,
    "audit-share": 0.9,
    "drift-test": "chi-square",
    "drift-window": 2,
    "rounds": 1,
    "max-train-samples": 600,
    "max-test-samples": 50,
    "strategy": "random",
}
DRIFTING = {**AUDITED, "arrival-order": "prior-drift", "arrival-order.path": "sudden"}
#: So few come of so many that there is stock for any mix.
PLENTY = {"arrival-order": "prior-drift", "arrival-order.alpha": 1.0, "max-train-samples": 1437}
PLENTY |= {"arrival-start": 20, "arrival-rate": 20}
PREDICTED = {**DRIFTING, "audit-share": 0.0, "drift-test": "predicted", "query-labels": 10}
PREDICTED |= {"initial-labels": 10, "target-labels": 40}


def _drifts(outcome: Outcome) -> list[DriftRecord | None]:
    return [cycle.drift for cycle in outcome.metrics.cycles]


def _audit_counts(folder: Path, client: int) -> np.ndarray:
    """Return the audit's labels by cycle and class, as the client's store has them."""
    store = LabelStore.open_existing(folder / "clients" / str(client) / STORE_FILE)
    rows = store._connection.execute(
        "SELECT q.cycle, s.label FROM samples AS s JOIN requests AS q USING (request_id) "
        "WHERE q.strategy = ?",
        (AUDIT,),
    ).fetchall()
    store.close()
    counts_TC = np.zeros((4, 10), np.int64)
    np.add.at(counts_TC, tuple(np.array(rows).T), 1)
    return counts_TC


def test_a_sudden_change_is_found_and_told(shared_runs: SharedRuns):
    outcome = shared_runs({**AUDITED, **PLENTY, "arrival-order.path": "sudden"})
    *before, drift = _drifts(outcome)
    assert before == [None, None, None]
    assert drift is not None
    _has_what_was_wanted(outcome)
    statistics, dfs = [], []
    for client in range(3):
        counts_TC = _audit_counts(outcome.folder, client)
        assert counts_TC.sum(axis=1).tolist() == [18, 18, 18, 18]
        merged = merged_counts(counts_TC[:2].sum(axis=0), counts_TC[2:].sum(axis=0))
        assert merged is not None
        expected = chi2_contingency(np.array(merged), correction=False)
        site = drift.sites[client]
        assert (site.statistic, site.p) == pytest.approx((expected.statistic, expected.pvalue))
        assert site.df == expected.dof
        statistics.append(expected.statistic)
        dfs.append(expected.dof)
    assert drift.pooled == pytest.approx(chi2.sf(sum(statistics), sum(dfs)))
    assert drift.is_drift
    assert len(drift.drifting) == 3
    assert "the class mix drifts at client" in outcome.log
    page = (outcome.folder / "report.html").read_text()
    assert "Drift of the class mix" in page
    assert "the class mix drifts at client" in _status(outcome)


def _has_what_was_wanted(outcome: Outcome) -> None:
    """Check that what arrived is of the mix that was wanted, but for whole numbers."""
    for cycle in outcome.metrics.cycles:
        assert cycle.arrivals is not None
        assert cycle.arrivals.distance is not None
        assert cycle.arrivals.distance < 0.1


def test_a_mix_that_is_back_where_it_was_has_not_drifted(shared_runs: SharedRuns) -> None:
    """To and fro within each window, so that both have the same mix, of the same stock."""
    back = {"arrival-order.path": "recurring", "arrival-order.period": 2}
    outcome = shared_runs({**AUDITED, **PLENTY, **back})
    _has_what_was_wanted(outcome)
    drift = _drifts(outcome)[-1]
    assert drift is not None
    assert all(site.p is not None and site.p > 0.2 for site in drift.sites)
    assert not drift.is_drift
    assert "drifts" not in outcome.log


def _status(outcome: Outcome) -> str:
    """Return what `ahfal status` says of a run."""
    run = read_run(outcome.folder)
    output = io.StringIO()
    now = dt.datetime.now(dt.UTC)
    Console(file=output, width=400).print(run_text(overview(run, now), now))
    return output.getvalue()


def test_where_nothing_drifts_nothing_is_told_of_it(shared_runs: SharedRuns):
    outcome = shared_runs(AUDITED)
    drift = _drifts(outcome)[-1]
    assert drift is not None
    assert not drift.is_drift
    assert "no drift of the class mix is seen by 2 tests; 1 cannot be made" in _status(outcome)


def test_who_cannot_judge_says_why(simulation: Simulation):
    outcome = simulation(DRIFTING, **{"audit-share": 0.05})
    drift = _drifts(outcome)[-1]
    assert drift is not None
    assert {site.refusal for site in drift.sites} == {Refusal.TOO_FEW.words}
    assert drift.pooled is None
    assert "cannot be judged: too few audit labels" in _status(outcome)
    assert "too few audit labels" in (outcome.folder / "report.html").read_text()


@pytest.mark.slow
def test_few_labels_are_relabelled(simulation: Simulation):
    outcome = simulation(DRIFTING, **{"audit-share": 0.3, "drift-test": "permutation"})
    drift = _drifts(outcome)[-1]
    assert drift is not None
    assert drift.pooled is None
    assert all(site.p is not None and site.p >= 0.001 for site in drift.sites)
    assert [(site.p * 1000) % 1 for site in drift.sites] == pytest.approx([0, 0, 0], abs=1e-6)


def test_predictions_of_one_model_are_compared_without_an_audit(shared_runs: SharedRuns):
    outcome = shared_runs(PREDICTED)
    drift = _drifts(outcome)[-1]
    assert drift is not None
    assert not drift.is_drift
    settings = read_run(outcome.folder).settings
    loaded = resources(settings)
    arrivals = loaded.arrivals(settings)
    assert arrivals is not None
    state = load_file(outcome.folder / "references" / "1.safetensors")
    model = loaded.model_with({name: torch.from_numpy(array) for name, array in state.items()})
    for site, each in zip(drift.sites, arrivals.clients, strict=True):
        windows = []
        for cycles in ((0, 1), (2, 3)):
            rows = torch.from_numpy(each.rows_N[np.isin(each.cycle_N, cycles)])
            found = predict(model, loaded.train_images, rows).logits_NC.argmax(dim=1)
            windows.append(np.bincount(found.numpy(), minlength=10))
        assert site.divergence == pytest.approx(smoothed_divergence(windows[1], windows[0]))
        shares = [counts / counts.sum() for counts in windows]
        assert site.variation == pytest.approx(0.5 * np.abs(shares[0] - shares[1]).sum())
        assert site.p is None
    assert "an indicator, no test" in _status(outcome)
    assert "Drift of predicted classes" in (outcome.folder / "report.html").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    simulation = Simulation(tmp_path_factory.mktemp("straight"), data_dir)
    return uninterrupted(simulation, **PREDICTED)


# Around the end of the first window, and in the last cycle.
@pytest.mark.parametrize(
    "share", [0.97, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.45, 0.5, 0.93))]
)
def test_a_killed_run_compares_the_same(
    share: float, straight: Uninterrupted, simulation: Simulation
):
    folder = killed_at(round(share * straight.events), simulation, **PREDICTED)
    resumed = simulation.resume(folder)
    assert _drifts(resumed) == _drifts(straight)
    assert resumed.result == straight.result


def test_a_client_that_fails_is_missing_and_stops_nothing(simulation: Simulation):
    def handler(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        client = int(context.node_config["partition-id"])
        if message.metadata.message_type == "query.drift" and client == 1:
            reply.content.metric_records["metrics"]["df"] = 10
        return reply

    outcome = simulation(DRIFTING, handler=handler)
    last = outcome.metrics.cycles[-1]
    assert last.drift is not None
    assert [site.client for site in last.drift.sites] == [0, 2]
    assert [(f.client, f.reason) for f in last.failed] == [(1, "df=10: allowed is 1 to 9")]


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("chi-square", DriftTest(9.5, 9.6, 2, float(chi2.sf(9.5, 2)))),
        ("permutation", DriftTest(9.5, 9.6, 2, 0.012)),
        ("predicted", Shift(0.25, 0.5)),
        ("chi-square", Refusal.UNANSWERED),
        ("predicted", Refusal.NO_ARRIVALS),
    ],
)
def test_what_is_found_travels_whole(method: str, found: DriftTest | Shift | Refusal):
    assert drift_from_metrics(drift_to_metrics(found), method, 3) == found


def test_no_client_says_what_chi_square_says():
    told = drift_to_metrics(DriftTest(9.5, 9.6, 2, 0.9))
    assert drift_from_metrics(told, "chi-square", 3) == DriftTest(
        9.5, 9.6, 2, float(chi2.sf(9.5, 2))
    )


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("chi-square", {"statistic": -1.0}),
        ("chi-square", {"statistic": float("nan")}),
        ("chi-square", {"log_ratio": float("inf")}),
        ("chi-square", {"df": 0}),
        ("chi-square", {"df": 3}),
        ("chi-square", {"df": 1.0}),
        ("permutation", {"p": 1.5}),
        ("permutation", {"refusal": 99}),
        ("permutation", {"refusal": -1}),
        ("predicted", {}),
        ("predicted", {"divergence": 0.1, "variation": 1.5}),
    ],
)
def test_what_cannot_be_is_refused(method: str, changes: dict[str, float]):
    told = {"refusal": 0, "statistic": 9.5, "log_ratio": 9.6, "df": 2, "p": 0.01}
    with pytest.raises(ValueError, match="allowed is"):
        drift_from_metrics(MetricRecord({**told, **changes}), method, 3)


_REFUSED = [
    ({"audit-share": 0.0}, "audit-share=0: allowed is above 0 with drift-test='chi-square'"),
    ({"drift-window": 3}, "drift-window=3: allowed is at most 2 with 4 cycles"),
    ({"drift-test": "none"}, "drift-window=2: has no effect with drift-test='none'"),
    (
        {"privacy": "secure-aggregation"},
        "drift-test='chi-square': allowed is 'none' with privacy='secure-aggregation'",
    ),
    (
        {"privacy": "local-dp", "privacy.epsilon": 5.0, "drift-test": "predicted"},
        "drift-test='predicted': allowed is 'none' with privacy='local-dp'",
    ),
    (
        {"arrival-exhausted": "recycle"},
        "drift-test='chi-square': allowed is 'none' with arrival-exhausted='recycle'",
    ),
    (
        {"arrivals": "all", "arrival-start": 0, "arrival-rate": 0, "pool-memory": 0},
        "drift-test='chi-square': allowed is 'none' with arrivals='all'",
    ),
]


@pytest.mark.parametrize(("settings", "reason"), _REFUSED)
def test_what_would_judge_something_else_is_refused(
    settings: dict[str, object], reason: str, simulation: Simulation
):
    with pytest.raises(ConfigError) as refused:
        prepare({**TINY, **simulation.base, **AUDITED, **settings})
    assert reason in str(refused.value)


def test_a_client_is_asked_only_where_windows_end(simulation: Simulation):
    refusals: list[str] = []

    def handler(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.drift":
            config: ConfigRecord = message.content.config_records["config"]
            cycle = config["cycle"]
            config["cycle"] = 2
            try:
                client_app(message, context)
            except MessageRefused as error:
                refusals.append(str(error))
            config["cycle"] = cycle
        return client_app(message, context)

    outcome = simulation(DRIFTING, handler=handler)
    assert len(refusals) == 3
    assert all("no windows are compared" in reason for reason in refusals)
    assert _drifts(outcome)[-1] is not None
