"""Whole runs whose clients test the global model on labels that they hold out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from sklearn.metrics import confusion_matrix, f1_score
from support.killing import killed_at, killed_at_each, uninterrupted
from support.simulation import Outcome, SharedRuns, Simulation
from support.site_images import write_images, write_labels
from support.spoiling import Spoil, of_client

from ahfal_app.client_app import app as client_app
from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError, EvaluationFailed, PrivacyRefused
from ahfal_app.evaluation import evaluation_sums
from ahfal_app.evaluation.sums import vector_size
from ahfal_app.inference import load_model
from ahfal_app.inference.predicting import Predictor
from ahfal_app.labels.store import LabelStore
from ahfal_app.results.records import CycleRecord
from ahfal_app.training.local_updates.core.base import Objective
from ahfal_app.training.local_updates.kcfu import KCFU
from ahfal_app.training.resources import resources

BOTH: dict[str, object] = {"evaluate": "both"}
SECURE: dict[str, object] = {"evaluate": "sites", "privacy": "secure-aggregation"}


def last(outcome: Outcome) -> CycleRecord:
    return outcome.metrics.cycles[-1]


def stores(outcome: Outcome) -> list[LabelStore]:
    folders = sorted((outcome.folder / "clients").iterdir())
    return [LabelStore.open_existing(folder / "labels.sqlite") for folder in folders]


@pytest.mark.slow
def test_figures_from_the_sites_are_those_of_the_pooled_samples(shared_runs: SharedRuns) -> None:
    """The last model's predictions for all held-out digits, by a way of their own."""
    outcome = shared_runs(BOTH)
    held_out = [store.held_out() for store in stores(outcome)]
    samples = np.concatenate([each.samples_N for each in held_out])
    labels = np.concatenate([each.labels_N for each in held_out])
    settings = parse_settings({**shared_runs._simulation.base, "dataset": "digits"})
    train = resources(settings).dataset.train
    assert (train.labels_N[samples] == labels).all()
    predictor = Predictor(load_model(outcome.folder), torch.device("cpu"))
    shares = predictor.probabilities(train.images_NHWC[samples])
    predicted = shares.argmax(axis=1)
    on_server, at_sites = last(outcome).tests
    assert on_server.where == "server"
    assert at_sites.where == "sites"
    assert at_sites.samples == len(samples) == last(outcome).held_out > 0
    assert np.array(at_sites.confusion).tolist() == (
        confusion_matrix(labels, predicted, labels=range(10)).tolist()
    )
    occurs = sorted({*labels.tolist(), *predicted.tolist()})
    assert at_sites.metrics["macro-f1"] == pytest.approx(
        f1_score(labels, predicted, labels=occurs, average="macro", zero_division=0)
    )
    for site, each in zip(last(outcome).sites, held_out, strict=True):
        assert site.test.samples == len(each.samples_N)
    assert last(outcome).accuracy == on_server.metrics["accuracy"]


def test_held_out_labels_are_paid_for_and_never_trained_on(shared_runs: SharedRuns) -> None:
    outcome = shared_runs(BOTH)
    for cycle in outcome.metrics.cycles:
        trained = [r.num_examples for r in outcome.metrics.rounds if r.cycle == cycle.cycle]
        assert set(trained) == {cycle.labels}
    whole = last(outcome)
    assert whole.ledger.spent == whole.labels + whole.held_out
    bought = sum(cycle.bought for cycle in outcome.metrics.cycles)
    first = outcome.metrics.cycles[0]
    assert bought + first.labels + first.held_out == whole.ledger.spent
    for store in stores(outcome):
        labelled, held_out = store.labelled(), store.held_out()
        assert not set(labelled.samples_N.tolist()) & set(held_out.samples_N.tolist())
        assert 0.1 < len(held_out.samples_N) / store.ledger().spent < 0.3


def test_what_is_held_out_is_not_distilled_on(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KCFU trains on images without labels; those of held-out samples are none of them."""
    pools: dict[int, set[int]] = {}
    objective = KCFU.objective

    def noted(self: KCFU, *arguments: Any) -> Objective:
        situation = arguments[-1]
        for pool_N in (situation.pool_N, situation.initial_pool_N):
            pools.setdefault(situation.client, set()).update(pool_N.tolist())
        return objective(self, *arguments)

    monkeypatch.setattr(KCFU, "objective", noted)
    outcome = simulation({**BOTH, "local-update": "kcfu", "client-batching": "never"})
    assert pools
    for client, store in enumerate(stores(outcome)):
        initial = set(store.held_out(through_cycle=0).samples_N.tolist())
        assert initial
        assert pools[client]
        assert not initial & pools[client]


def test_without_it_runs_are_as_they_were(shared_runs: SharedRuns) -> None:
    cycle = last(shared_runs())
    assert [test.where for test in cycle.tests] == ["server"]
    assert (cycle.held_out, cycle.sites, cycle.untested) == (0, (), ())
    assert cycle.labels == cycle.ledger.spent


@pytest.mark.slow
def test_no_server_test_is_made_where_the_sites_test(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ahfal_app.server.run.evaluate", never)
    outcome = simulation({"evaluate": "sites"})
    assert [test.where for test in last(outcome).tests] == ["sites"]
    assert last(outcome).accuracy == last(outcome).tests[0].metrics["accuracy"]


@pytest.mark.slow
def test_a_secure_sum_gives_the_same_figures_and_none_of_single_sites(
    simulation: Simulation,
) -> None:
    plain = simulation({"evaluate": "sites"}, name="plain")
    answers: list[Message] = []

    def heard(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        answers.append(reply)
        return reply

    summed = simulation(SECURE, heard, name="summed")
    assert [c.tests for c in summed.metrics.cycles] == [c.tests for c in plain.metrics.cycles]
    assert all(not cycle.sites for cycle in summed.metrics.cycles)
    assert not [reply for reply in answers if "evaluation" in reply.content.config_records]


@pytest.mark.slow
def test_a_client_refuses_to_tell_alone_what_is_summed(simulation: Simulation) -> None:
    def asks_alone(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.advertise_keys":
            content = message.content
            if content.config_records["secure-aggregation"]["topic"] == "evaluation":
                message.metadata.message_type = "evaluate"
                with pytest.raises(PrivacyRefused, match="a single client are not told"):
                    client_app(message, context)
                message.metadata.message_type = "query.advertise_keys"
        return client_app(message, context)

    simulation(SECURE, asks_alone)


def test_an_answer_holds_sums_and_nothing_else(simulation: Simulation) -> None:
    """Not even an order of samples: sums are the same in whatever order these are."""
    answers: list[RecordDict] = []

    def heard(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "evaluate":
            answers.append(reply.content)
        return reply

    simulation({"evaluate": "sites"}, heard)
    assert len(answers) == 9
    for content in answers:
        assert list(content) == ["evaluation"]
        record = content.config_records["evaluation"]
        assert list(record) == ["sums"]
        assert len(record["sums"]) == 8 * vector_size(10)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [BOTH, SECURE], ids=["plain", "secure"])
def test_a_run_that_was_killed_tests_as_one_that_was_not(
    simulation: Simulation, settings: dict[str, object]
) -> None:
    straight = uninterrupted(simulation, **settings)
    expected = [(c.tests, c.sites, c.held_out) for c in straight.metrics.cycles]
    for share in (0.35, 0.85):
        folder = killed_at(round(share * straight.events), simulation, **settings)
        resumed = simulation.resume(folder)
        assert resumed.result == straight.result
        assert [(c.tests, c.sites, c.held_out) for c in resumed.metrics.cycles] == expected


@pytest.mark.slow
def test_a_run_may_be_killed_at_any_event(simulation: Simulation) -> None:
    straight = uninterrupted(simulation, **SECURE)
    for _, folder in killed_at_each(straight.spread(12), simulation, **SECURE):
        resumed = simulation.resume(folder)
        assert resumed.result == straight.result
        assert [c.tests for c in resumed.metrics.cycles] == [
            c.tests for c in straight.metrics.cycles
        ]


def sums(content: bytes) -> Spoil:
    def spoil(reply: RecordDict) -> None:
        reply.config_records["evaluation"] = ConfigRecord({"sums": content})

    return spoil


def _all_right(samples: int) -> bytes:
    logits = np.full((samples, 10), -20.0)
    logits[:, 0] = 0.0
    whole = evaluation_sums(logits, np.zeros(samples, np.int64))
    return whole.to_vector().astype("<i8").tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "sums: allowed are"),
        (b"\0" * 8, "sums: allowed are"),
        (b"\xff" * 8 * vector_size(10), "sums below 0"),
        (b"\x01" + b"\0" * (8 * vector_size(10) - 1), "sums that contradict each other"),
    ],
)
def test_sums_that_cannot_be_are_refused_by_name(
    simulation: Simulation, content: bytes, told: str
) -> None:
    outcome = simulation({"evaluate": "sites"}, of_client(1, "evaluate", sums(content)))
    for cycle in outcome.metrics.cycles:
        assert [site.client for site in cycle.sites] == [0, 2]
        assert [failure.client for failure in cycle.untested] == [1]
        assert told in cycle.untested[0].reason


@pytest.mark.slow
def test_a_site_within_bounds_moves_no_other_sites_figures(
    shared_runs: SharedRuns, simulation: Simulation
) -> None:
    honest = last(shared_runs({"evaluate": "sites"}))
    lying = last(
        simulation({"evaluate": "sites"}, of_client(1, "evaluate", sums(_all_right(10_000))))
    )
    assert [site for site in lying.sites if site.client != 1] == [
        site for site in honest.sites if site.client != 1
    ]
    assert lying.sites[1].test.metrics["accuracy"] == 1.0


@pytest.mark.slow
def test_too_many_samples_are_refused(simulation: Simulation) -> None:
    outcome = simulation(
        {"evaluate": "sites", "max-client-samples": 1000},
        of_client(1, "evaluate", sums(_all_right(1001))),
    )
    assert "1001 samples tested: allowed is at most 1000" in last(outcome).untested[0].reason


def test_settings_that_contradict_each_other() -> None:
    for values, told in (
        ({"evaluate": "sites", "privacy": "local-dp", "privacy.epsilon": 1.0}, "carry no noise"),
        ({"validation-fraction": 0.3}, "has no effect with evaluate='server'"),
        ({**SECURE, "evaluate-every": 1}, "evaluate-every=1: allowed is 0"),
        ({"evaluate": "client"}, "allowed is `server` | `sites` | `both`"),
        ({"evaluate": "sites", "validation-fraction": 1.0}, "validation-fraction=1.0"),
    ):
        with pytest.raises(ConfigError, match=told.replace("|", r"\|")):
            parse_settings(values)


def test_between_rounds_the_sites_test_too(simulation: Simulation) -> None:
    outcome = simulation({"evaluate": "sites", "evaluate-every": 1})
    tested = [r.test_accuracy for r in outcome.metrics.rounds]
    assert [accuracy is None for accuracy in tested] == [False, True] * 3


def test_a_run_that_nobody_can_test_says_so(simulation: Simulation) -> None:
    one_each = {"initial-labels": 1, "query-labels": 1, "target-labels": 2}
    with pytest.raises(EvaluationFailed, match="no client could be tested"):
        simulation({"evaluate": "sites", **one_each})


class Site:
    """One site of digits among simulated names, with what its node configuration says."""

    def __init__(self, root: Path, number: int, rows: range, **config: object) -> None:
        data = root / f"data-{number}"
        truth = root / f"truth-{number}.csv"
        write_labels(truth, write_images(data, rows, tuple("0123456789")))
        self.config: dict[str, object] = {
            "partition-id": number,
            "num-partitions": 3,
            "data": str(data),
            "state-dir": str(root / f"state-{number}"),
            "truth": str(truth),
            **config,
        }


@pytest.mark.slow
def test_a_site_that_holds_out_too_few_is_no_part_of_a_secure_sum(
    simulation: Simulation, tmp_path: Path
) -> None:
    rules = [{}, {}, {}, {"policy-fewest-tested": 100}]
    sites = [
        Site(tmp_path, number, range(60 * number, 60 * number + 60), **rule)
        for number, rule in enumerate(rules)
    ]
    for site in sites:
        site.config["num-partitions"] = 4

    def handler(message: Message, context: Context) -> Message:
        context.node_config = dict(sites[int(context.node_config["partition-id"])].config)  # type: ignore[arg-type]
        return client_app(message, context)

    outcome = simulation(
        {**SECURE, "partition": "sites", "num-clients": 4, "initial-fraction": 0.5, "cycles": 1},
        handler,
        **{"query-fraction": 0.1, "target-fraction": 0.6},
    )
    # Of each one's 30 labels 6 are held out.
    assert last(outcome).held_out == 24
    assert last(outcome).tests[0].samples == 18


@pytest.mark.slow
def test_a_site_with_few_held_out_images_tells_nothing_of_them(
    simulation: Simulation, tmp_path: Path
) -> None:
    """Of 8 labels 2 are held out: too few by default; a site may say that more are too few."""
    sites = [
        Site(tmp_path, 0, range(0, 200)),
        Site(tmp_path, 1, range(200, 320), **{"policy-fewest-tested": 100}),
        Site(tmp_path, 2, range(320, 360)),
    ]

    def handler(message: Message, context: Context) -> Message:
        context.node_config = dict(sites[int(context.node_config["partition-id"])].config)  # type: ignore[arg-type]
        return client_app(message, context)

    outcome = simulation(
        {
            "partition": "sites",
            "evaluate": "sites",
            "initial-fraction": 0.2,
            "query-fraction": 0.05,
            "target-fraction": 0.25,
        },
        handler,
    )
    for cycle in outcome.metrics.cycles:
        assert [site.client for site in cycle.sites] == [0]
        assert {failure.client: failure.reason for failure in cycle.untested} == dict.fromkeys(
            (1, 2), "it has too few held-out samples to tell sums over them"
        )
        assert cycle.held_out >= 8
