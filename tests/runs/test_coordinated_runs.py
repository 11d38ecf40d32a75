"""Runs whose clients choose together: what travels, and what else is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from support.coordinated import (
    FAIRFAL,
    HERDING,
    ONE_PURCHASE,
    PROB_COVER,
    SECURE,
    TOGETHER,
    bought,
    forget,
)
from support.hearing import Hearing
from support.simulation import Outcome, Simulation

STEPS = ("query.advertise_keys", "query.share_keys", "query.mask", "query.unmask")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


@pytest.fixture(scope="module")
def heard(runs: Simulation) -> tuple[Outcome, Hearing]:
    watch = Hearing()
    return runs({**TOGETHER, **ONE_PURCHASE}, handler=watch, name="heard"), watch


@pytest.fixture(scope="module")
def covering(runs: Simulation) -> Outcome:
    return runs({**PROB_COVER, **ONE_PURCHASE}, name="covering")


def test_clients_buy_what_was_decided(heard: tuple[Outcome, Hearing]) -> None:
    outcome, watch = heard
    assert [cycle.failed for cycle in outcome.metrics.cycles] == [(), ()]
    assert [cycle.labels for cycle in outcome.metrics.cycles] == [24, 36]
    assert "coordinate" in outcome.metrics.cycles[0].seconds
    asked = [content for kind, _, content, _ in watch.heard if kind == "query.coordinate"]
    steps = [content.config_records["coordination"] for content in asked]
    names = [list(step["names"])[-1] for step in steps]  # type: ignore[arg-type]
    assert {"opening", "initial", "assign", "distances"} == set(names)
    # The model is sent once, and each step alone after it.
    assert [("arrays" in content) for content in asked] == [name == "opening" for name in names]
    assert all(len(list(step["names"])) == 1 for step in steps)  # type: ignore[arg-type]


#: What a step's answer may hold; an opening's are numbers of samples.
DECLARED = {
    "initial": {"clear.centres", "clear.sizes"},
    "assign": {"sum.totals", "sum.counts"},
    "distances": {"clear.distances", "sum.sizes", "sum.labelled"},
    "moments": {"sum.totals", "sum.squares", "sum.number"},
    "radius": {"clear.radius"},
    "propose": {"clear.proposes", "clear.point"},
    "count": {"sum.gains", "clear.distances"},
    "imbalance": {"sum.imbalance", "sum.voters"},
}


def told_by_step(watch: Hearing) -> dict[str, set[str]]:
    """Return what clients have told in each step of a coordination; what else they say fails."""
    told: dict[str, set[str]] = {}
    for kind, _, question, answer in watch.heard:
        if kind == "query.coordinate":
            names = question.config_records["coordination"]["names"]
            step = str(list(names)[-1])  # type: ignore[arg-type]
            if step == "opening":
                assert set(answer) == {"metrics"}
                assert set(answer.metric_records["metrics"]) == {"budget", "labelled", "pool"}
                continue
            assert set(answer) == {"questions"}
            told.setdefault(step, set()).update(answer.array_records["questions"])
    return told


def test_nothing_leaves_a_client_that_is_not_declared(heard: tuple[Outcome, Hearing]) -> None:
    steps = ("initial", "assign", "distances")
    assert told_by_step(heard[1]) == {step: DECLARED[step] for step in steps}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({**TOGETHER, "strategy.initial": "public"}, {"moments", "assign", "distances"}),
        (PROB_COVER, {"propose", "count"}),
        ({**PROB_COVER, "strategy.radius": 0}, {"radius", "propose", "count"}),
        (HERDING, {"propose", "count"}),
        (FAIRFAL, {"imbalance"}),
    ],
)
def test_secure_sums_choose_the_same_and_nothing_else_leaves_a_client(
    settings: dict[str, Any], steps: set[str], simulation: Simulation
) -> None:
    clear, masked = Hearing(), Hearing()
    values = {**settings, **ONE_PURCHASE}
    outcome = simulation(values, handler=clear, name="clear")
    assert told_by_step(clear) == {step: DECLARED[step] for step in steps}
    secure = simulation({**values, **SECURE}, handler=masked, name="secure")
    assert bought(secure) == bought(outcome)
    alone = {s: {n for n in DECLARED[s] if n.startswith("clear.")} for s in steps}
    told = told_by_step(masked)
    assert {step: told.get(step, set()) for step in steps} == alone


def test_secure_sums_choose_the_same_and_tell_no_clients_own(
    runs: Simulation, heard: tuple[Outcome, Hearing]
) -> None:
    watch = Hearing()
    outcome = runs({**TOGETHER, **ONE_PURCHASE, **SECURE}, handler=watch, name="secure")
    assert bought(outcome) == bought(heard[0])
    own = [
        array.numpy().astype("<i8").tobytes()
        for kind, _, _, answer in heard[1].heard
        if kind == "query.coordinate"
        for name, array in answer.array_records.get("questions", ArrayRecord()).items()
        if name == "sum.totals"
    ]
    assert own
    for kind, _, _, answer in watch.heard:
        if kind == "query.coordinate":
            told = answer.array_records.get("questions", ArrayRecord())
            assert not any(name.startswith("sum.") for name in told)
        if kind in STEPS:
            masked = answer.config_records["secure-aggregation"].get("masked", b"")
            assert isinstance(masked, bytes)
            assert not any(each in masked for each in own)


def test_public_centres_tell_distances_alone(runs: Simulation) -> None:
    watch = Hearing()
    settings = {**TOGETHER, **ONE_PURCHASE, "strategy.initial": "public"}
    runs(settings, handler=watch, name="public")
    told = {
        name
        for kind, _, _, answer in watch.heard
        if kind == "query.coordinate"
        for name in answer.array_records.get("questions", ArrayRecord())
        if name.startswith("clear.")
    }
    assert told == {"clear.distances"}


@pytest.mark.slow
def test_all_engines_of_this_process_choose_the_same(
    simulation: Simulation, covering: Outcome
) -> None:
    two = simulation({**PROB_COVER, **ONE_PURCHASE}, workers=2)
    assert two.result == covering.result
    memory = simulation({**PROB_COVER, **ONE_PURCHASE, "client-state": "memory"})
    assert bought(memory) == bought(covering)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [TOGETHER, PROB_COVER])
def test_what_has_not_come_or_is_gone_is_coordinated_by_nobody(
    settings: dict[str, Any], simulation: Simulation
) -> None:
    """Also where each message has a process of its own, to which the pool is a file."""
    values = {
        **settings,
        "arrivals": "count",
        "arrival-start": 20,
        "arrival-rate": 8,
        "pool-memory": 1,
        "rounds": 1,
    }
    straight = simulation(values, name="arriving")
    assert not any(cycle.failed for cycle in straight.metrics.cycles)
    assert [cycle.labels for cycle in straight.metrics.cycles] == [24, 36, 48]
    pools = []

    def look(message: Message, client: int, content: RecordDict) -> None:
        if message.metadata.message_type == "query.coordinate" and "metrics" in content:
            pools.append(content.metric_records["metrics"]["pool"])

    again = simulation(
        values, handler=Hearing(before=forget, after=look), name="forgetful-arriving"
    )
    assert again.result == straight.result
    # Of 20, 8 and 8 samples those of the cycle before are gone, unless they are labelled.
    assert pools
    assert max(pools) <= 20


@pytest.mark.slow
def test_a_budget_of_all_is_coordinated_as_it_is_granted(simulation: Simulation) -> None:
    values = {
        **TOGETHER,
        "budget": "global",
        "initial-labels": 24,
        "query-labels": 12,
        "target-labels": 36,
        "rounds": 1,
    }
    outcome = simulation(values)
    assert not any(cycle.failed for cycle in outcome.metrics.cycles)
    assert [cycle.labels for cycle in outcome.metrics.cycles] == [24, 36]
