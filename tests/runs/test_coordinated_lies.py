"""Runs whose clients choose together: who is away, who lies, and what a client refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from support.attacks import Target
from support.coordinated import (
    HERDING,
    ONE_PURCHASE,
    PROB_COVER,
    SECURE,
    SMALL,
    TOGETHER,
    last_step,
    slowly,
)
from support.hearing import Hearing
from support.simulation import Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError
from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.server.preflight import check_settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


def _away_at(step: int) -> Callable[[Message, int], None]:
    def away(message: Message, client: int) -> None:
        record = message.content.config_records.get("coordination")
        is_asked = message.metadata.message_type == "query.coordinate" and client == 1
        if is_asked and record is not None and record["first"] == step:
            raise RuntimeError("power cut")

    return away


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        (TOGETHER, 1),
        *(slowly(TOGETHER, step) for step in (0, 2, 4)),
        *(slowly(PROB_COVER, step) for step in (0, 1, 2, 4)),
        *(slowly(HERDING, step) for step in (1, 2)),
    ],
)
def test_who_misses_a_step_buys_nothing_in_this_cycle_and_holds_up_nobody(
    settings: dict[str, Any], step: int, simulation: Simulation
) -> None:
    outcome = simulation({**settings, "rounds": 1}, handler=Hearing(before=_away_at(step)))
    for cycle in outcome.metrics.cycles[:2]:
        assert [failure.client for failure in cycle.failed] == [1]
    first, second, _ = outcome.metrics.cycles
    assert first.labels_per_client == (8, 8, 8)
    assert second.labels_per_client == (12, 8, 12)
    # Its budget stays its own.
    assert second.ledger.allotted >= 12 + 8 + 12


@pytest.mark.slow
@pytest.mark.parametrize("settings", [TOGETHER, HERDING])
def test_who_hangs_in_a_step_is_not_waited_for_beyond_the_timeout(
    settings: dict[str, Any], simulation: Simulation
) -> None:
    released = threading.Event()

    def hang(message: Message, client: int) -> None:
        record = message.content.config_records.get("coordination")
        if client == 1 and record is not None and record["first"] == 1:
            released.wait()

    class ReleasedAtTheEnd(InProcessGrid):
        def __exit__(self, *error: Any) -> None:
            released.set()
            super().__exit__(*error)

    outcome = simulation(
        {**settings, **ONE_PURCHASE, "round-timeout": 4.0, "quorum": 0.5},
        handler=Hearing(before=hang),
        grid=ReleasedAtTheEnd,
        workers=3,
    )
    (failure,) = outcome.metrics.cycles[0].failed
    assert (failure.client, failure.reason) == (1, "no answer within 4 s (round-timeout)")
    assert outcome.metrics.cycles[1].labels_per_client == (12, 8, 12)


@pytest.mark.slow
def test_who_was_away_once_buys_what_it_missed(simulation: Simulation) -> None:
    away, gone = _away_at(1), []

    def once(message: Message, client: int) -> None:
        if not gone:
            try:
                away(message, client)
            except RuntimeError:
                gone.append(client)
                raise

    outcome = simulation({**TOGETHER, "rounds": 1}, handler=Hearing(before=once))
    assert gone == [1]
    assert outcome.metrics.cycles[-1].labels_per_client == (16, 16, 16)


@pytest.mark.slow
def test_who_drops_out_of_a_masked_sum_is_left_out(runs: Simulation) -> None:
    """Four clients, as a sum over fewer than three is refused."""

    def cut(message: Message, client: int) -> None:
        about = message.content.config_records.get("secure-aggregation", {})
        is_mask = message.metadata.message_type == "query.mask"
        if is_mask and client == 2 and about["topic"] == "coordination" and about["step"] == 3:
            raise RuntimeError("power cut")

    settings = {**TOGETHER, **SECURE, **ONE_PURCHASE, "num-clients": 4}
    outcome = runs(settings, handler=Hearing(before=cut), name="dropped")
    assert [failure.client for failure in outcome.metrics.cycles[0].failed] == [2]
    counts = outcome.metrics.cycles[1].labels_per_client
    assert counts[2] < counts[1]


def _array(name: str, values: Any) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        if name in content.array_records.get("questions", {}):
            content.array_records["questions"][name] = Array(np.asarray(values))

    return spoil


def _without(content: RecordDict) -> None:
    content["questions"] = ArrayRecord()


def _always_lost(content: RecordDict) -> None:
    content["coordination"] = ConfigRecord({"lost": True})


def _opening(**counts: int) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        if "metrics" in content:
            content.metric_records["metrics"].update(counts)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_array("clear.centres", np.zeros((1, 3))), "expected is"),
        (_array("sum.counts", np.full(8, 10**15)), "allowed are integers from 0 to"),
        (_array("clear.distances", np.full((3, 8), np.nan)), "expected is|not finite"),
        (_without, "missing or unknown"),
        (_always_lost, "it has lost what it was told just now"),
        (_opening(budget=10**6), "allowed is at most pool="),
        (_opening(budget=13), "allowed are at most the 12 that are due"),
        (_opening(pool=10**7), "allowed is at most max-client-samples="),
    ],
)
def test_a_lie_is_named_and_left_out(
    spoil: Callable[[RecordDict], None], said: str, simulation: Simulation
) -> None:
    def after(message: Message, client: int, content: RecordDict) -> None:
        if message.metadata.message_type == "query.coordinate" and client == 1:
            spoil(content)

    outcome = simulation({**TOGETHER, **ONE_PURCHASE}, handler=Hearing(after=after))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 1
    assert any(each in failure.reason for each in said.split("|")), failure.reason
    assert outcome.metrics.cycles[1].labels_per_client == (12, 8, 12)


def test_who_has_more_than_sums_can_hold_is_left_out(simulation: Simulation) -> None:
    """Before anything is kept: the run would never get past it."""

    def after(message: Message, client: int, content: RecordDict) -> None:
        if message.metadata.message_type == "query.coordinate" and client == 1:
            _opening(pool=5_000_000)(content)

    outcome = simulation({**HERDING, **ONE_PURCHASE}, handler=Hearing(after=after))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 1
    assert "allowed are at most 4194303 together with strategy=" in failure.reason
    assert outcome.metrics.cycles[1].labels_per_client == (12, 8, 12)


def _asked_otherwise(name: str, change: Callable[[RecordDict], None]) -> Hearing:
    """Ask a step in another way, of client 0 alone."""

    def before(message: Message, client: int) -> None:
        record = message.content.config_records.get("coordination")
        if client == 0 and record is not None and list(record["names"])[-1] == name:  # type: ignore[arg-type]
            # In this process all clients are handed the same records.
            for key in ("coordination", "questions"):
                message.content[key] = message.content[key].copy()
            change(message.content)

    return Hearing(before=before)


def _named(content: RecordDict) -> None:
    content.config_records["coordination"]["names"] = ["DROP TABLE"]


def _skipping(content: RecordDict) -> None:
    content.config_records["coordination"]["first"] = 77


def _beyond(content: RecordDict) -> None:
    content.config_records["coordination"]["first"] = 9_999


def _three_dimensional(content: RecordDict) -> None:
    content.array_records["questions"]["0.centres"] = Array(np.zeros((2, 2, 2)))


def _foreign(content: RecordDict) -> None:
    content.array_records["questions"]["5.centres"] = Array(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_named, "allowed are names"),
        (_beyond, "allowed are at most 200"),
        (_three_dimensional, "allowed are vectors and matrices"),
        (_foreign, "allowed is one of a step of this message"),
        (lambda content: content.pop("statistics"), "statistics"),
    ],
)
def test_steps_that_no_server_asks_are_refused(
    change: Callable[[RecordDict], None], said: str, simulation: Simulation
) -> None:
    watch = _asked_otherwise("distances", change)
    outcome = simulation({**TOGETHER, **ONE_PURCHASE}, handler=watch)
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 0
    assert said in failure.reason


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (None, "allowed is a selection with a decision"),
        ({"first": 0, "names": ["decision"]}, "allowed is one after the opening"),
    ],
)
def test_nobody_chooses_by_what_was_not_coordinated(
    records: dict[str, Any] | None, said: str, simulation: Simulation
) -> None:
    def before(message: Message, client: int) -> None:
        if client == 0 and message.metadata.message_type == "query.select":
            del message.content["coordination"]
            if records is not None:
                message.content["coordination"] = ConfigRecord(records)

    outcome = simulation({**PROB_COVER, **ONE_PURCHASE}, handler=Hearing(before=before))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 0
    assert said in failure.reason
    assert outcome.metrics.cycles[1].labels_per_client == (8, 12, 12)


def test_the_same_step_in_another_way_is_refused(simulation: Simulation) -> None:
    refused: list[str] = []

    def again(message: Message, client: int, content: RecordDict) -> None:
        record = message.content.config_records.get("coordination")
        if client == 0 and record is not None and list(record["names"]) == ["distances"]:  # type: ignore[arg-type]
            other = message.content.copy()
            centres = other.array_records["questions"]["0.centres"].numpy()
            other["questions"] = ArrayRecord(
                {
                    "0.centres": Array(centres + 0.5),
                    "0.ranks": other.array_records["questions"]["0.ranks"],
                }
            )
            message.content["questions"] = other.array_records["questions"]
            try:
                client_app(message, contexts[0])
            except Exception as error:  # noqa: BLE001 (whatever it is, it is looked at below)
                refused.append(str(error))

    contexts: dict[int, Context] = {}

    class Keeping(Hearing):
        def __call__(self, message: Message, context: Context) -> Message:
            contexts[int(context.node_config["partition-id"])] = context
            return super().__call__(message, context)

    for privacy in ({}, SECURE):
        simulation({**TOGETHER, **ONE_PURCHASE, **privacy}, handler=Keeping(after=again))
    assert len(refused) == 2
    assert all("asked before in another way" in each for each in refused)


def test_the_same_steps_under_another_model_are_refused(simulation: Simulation) -> None:
    """Or a server could have the means of one model's embeddings after another's."""
    opening: list[Message] = []
    refused: list[str] = []

    class Keeping(Hearing):
        def __call__(self, message: Message, context: Context) -> Message:
            if int(context.node_config["partition-id"]) == 0:
                if last_step(message) == "opening":
                    opening.append(message)
                if last_step(message) == "count" and not refused:
                    self._again(context)
            return super().__call__(message, context)

        def _again(self, context: Context) -> None:
            other = opening[0].content.copy()
            arrays = other.array_records[ARRAYS_KEY]
            other[ARRAYS_KEY] = ArrayRecord({n: Array(a.numpy() + 1) for n, a in arrays.items()})
            own, opening[0].content = opening[0].content, other
            try:
                client_app(opening[0], context)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is looked at below)
                refused.append(str(error))
            opening[0].content = own

    outcome = simulation({**PROB_COVER, **ONE_PURCHASE, **SECURE}, handler=Keeping())
    assert len(refused) == 1
    assert "step 0 of cycle 0: asked before in another way" in refused[0]
    assert outcome.metrics.cycles[1].labels_per_client == (12, 12, 12)


def test_a_site_reveals_nothing_that_it_has_not_allowed(tmp_path: Path) -> None:
    asked = {"strategy": "coordinated-prob-cover"}
    for allowed, is_refused in (
        (None, True),
        ("centroids, distances", True),
        ("centroids,distances,radius", True),
        ("centroids,distances,radius,sums", False),
    ):
        node = {} if allowed is None else {"policy-reveals": allowed}
        target = Target(tmp_path / str(allowed), **node)
        reply = target.send("query.join", asked)
        assert reply.has_error() is is_refused
        if is_refused:
            assert "policy" in reply.error.reason
        assert not target.leaks()


@pytest.mark.parametrize(
    ("allowed", "asked", "is_refused"),
    [
        ("distances", {"strategy.initial": "public", **SECURE}, False),
        # Of a cluster with one sample, the sum is its embedding.
        ("distances", {"strategy.initial": "public"}, True),
        ("distances,sums", {"strategy.initial": "public"}, False),
        ("centroids,distances", SECURE, False),
        # The mean of one sample is its embedding, too.
        ("centroids,distances", {"strategy.least-region": 4, **SECURE}, True),
        ("centroids,distances,embeddings", {"strategy.least-region": 1, **SECURE}, False),
    ],
)
def test_what_is_told_of_single_samples_has_a_rule_of_its_own(
    allowed: str, asked: dict[str, Any], is_refused: bool, tmp_path: Path
) -> None:
    target = Target(tmp_path, **{"policy-reveals": allowed})
    reply = target.send("query.join", {"strategy": "coordinated-typicality", **asked})
    assert reply.has_error() is is_refused
    assert not is_refused or "policy" in reply.error.reason


def test_a_rule_that_names_nothing_that_is_revealed_is_refused(tmp_path: Path) -> None:
    target = Target(tmp_path, **{"policy-reveals": "centroid"})
    assert "settings" in target.send("query.join").error.reason


@pytest.mark.parametrize("privacy", ["local-dp", "local-dp+secure-aggregation"])
def test_noise_and_coordination_contradict_each_other(privacy: str) -> None:
    with pytest.raises(ConfigError, match="since sums over embeddings have no noise"):
        check_settings({**TOGETHER, "privacy": privacy})


def test_nobody_coordinates_first_labels() -> None:
    with pytest.raises(ConfigError, match="initial-strategy='coordinated-typicality'"):
        check_settings({**TOGETHER, "initial-strategy": "coordinated-typicality"})


def test_a_strategy_that_chooses_alone_answers_no_step(simulation: Simulation) -> None:
    said: list[str] = []

    class Asking(Hearing):
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == "query.select" and not said:
                content = RecordDict(dict(message.content.items()))
                content["coordination"] = ConfigRecord({"first": 0, "names": ["opening"]})
                content["questions"] = ArrayRecord()
                other = Message(content, 1, "query.coordinate")
                other.metadata.__dict__["_message_id"] = "1"
                try:
                    client_app(other, context)
                except Exception as error:  # noqa: BLE001 (whatever it is, it is looked at below)
                    said.append(str(error))
            return super().__call__(message, context)

    simulation({**SMALL, "strategy": "entropy", **ONE_PURCHASE}, handler=Asking())
    assert said == ["strategy='entropy': its clients choose alone, and coordinate nothing"]
