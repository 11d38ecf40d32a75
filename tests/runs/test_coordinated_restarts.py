"""Runs whose clients choose together, and whose processes come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from support.coordinated import (
    FAIRFAL,
    HERDING,
    ONE_PURCHASE,
    PROB_COVER,
    SECURE,
    TOGETHER,
    bought,
    forget,
    last_step,
    slowly,
)
from support.hearing import Hearing
from support.killing import Killed, killed_at, killed_at_each, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.client import coordination
from ahfal_app.errors import CheckpointError, QuorumNotReached
from ahfal_app.labels.store import STORE_FILE, LabelStore


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


@pytest.fixture(scope="module")
def covering(runs: Simulation) -> Outcome:
    return runs({**PROB_COVER, **ONE_PURCHASE}, name="covering")


@pytest.mark.parametrize("settings", [TOGETHER, slowly(PROB_COVER), slowly(HERDING)])
def test_every_message_may_be_answered_by_a_process_of_its_own(
    settings: dict[str, Any], simulation: Simulation, runs: Simulation
) -> None:
    straight = runs({**settings, **ONE_PURCHASE}, name=f"straight-{settings['strategy']}")
    outcome = simulation({**settings, **ONE_PURCHASE}, handler=Hearing(before=forget))
    assert outcome.result == straight.result


@pytest.mark.slow
def test_processes_may_take_turns_and_none_goes_by_what_it_knew_once(
    simulation: Simulation, covering: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Flower's simulation has it, whose processes each answer some of a client's messages."""
    processes: list[dict[Any, Any]] = [{}, {}, {}]
    answered = []

    def another(message: Message, _client: int) -> None:
        answered.append(message.metadata.message_type)
        monkeypatch.setattr(coordination, "_under_way", processes[len(answered) * 2 // 3 % 3])

    settings = {**PROB_COVER, **ONE_PURCHASE, **SECURE}
    watch = Hearing(before=another)
    outcome = simulation(settings, handler=watch)
    assert bought(outcome) == bought(covering)
    # What is on disk is enough: nobody asks for anything a second time.
    assert not any("coordination" in answer.config_records for *_, answer in watch.heard)


@pytest.mark.slow
def test_who_loses_its_memory_is_told_all_steps_anew(
    simulation: Simulation, covering: Outcome
) -> None:
    def lose(message: Message, client: int) -> None:
        if client == 1:
            coordination._under_way.clear()
            for path in simulation_folder().glob("clients/1/coordination-*"):
                path.unlink()

    def simulation_folder() -> Path:
        return Path(str(simulation.base["output-dir"])) / "forgetful"

    watch = Hearing(before=lose)
    outcome = simulation({**PROB_COVER, **ONE_PURCHASE}, handler=watch, name="forgetful")
    assert outcome.result == covering.result
    lost = [
        (kind, client)
        for kind, client, _, answer in watch.heard
        if "coordination" in answer.config_records
    ]
    assert {client for _, client in lost} == {1}
    assert {kind for kind, _ in lost} == {"query.coordinate", "query.select"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_damaged_memory_is_lost_memory(
    damage: bytes, simulation: Simulation, covering: Outcome
) -> None:
    def spoil(message: Message, client: int) -> None:
        coordination._under_way.clear()
        folder = Path(str(simulation.base["output-dir"])) / "spoilt"
        for path in folder.glob("clients/2/coordination-0*"):
            path.write_bytes(damage)

    settings = {**PROB_COVER, **ONE_PURCHASE}
    outcome = simulation(settings, handler=Hearing(before=spoil), name="spoilt")
    assert outcome.result == covering.result


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        (TOGETHER, "assign"),
        *(slowly(TOGETHER, step) for step in ("opening", "initial", "distances")),
        *(slowly({**PROB_COVER, **SECURE}, step) for step in ("propose", "count", "query.mask")),
        *(slowly({**PROB_COVER, **SECURE}, step) for step in ("query.unmask", "query.select")),
        *(slowly({**HERDING, **SECURE}, step) for step in ("propose", "count", "query.mask")),
        slowly({**PROB_COVER, "strategy.radius": 0}, "radius"),
        slowly({**TOGETHER, "strategy.initial": "public"}, "moments"),
        *(slowly({**FAIRFAL, **SECURE}, step) for step in ("imbalance", "query.unmask")),
    ],
)
def test_who_is_killed_in_a_message_chooses_the_same(
    settings: dict[str, Any], step: str, simulation: Simulation, runs: Simulation
) -> None:
    """Server and clients at once, after the second client has answered."""
    values = {**settings, **ONE_PURCHASE}
    name = "straight-" + "-".join(str(value) for value in settings.values())
    folder = Path(str(runs.base["output-dir"])) / name
    straight = Outcome(folder, "") if folder.exists() else runs(values, name=name)

    def cut(message: Message, client: int, _content: RecordDict) -> None:
        about = message.content.config_records.get("secure-aggregation", {})
        is_step = about.get("topic", "coordination") == "coordination"
        if client == 1 and is_step and last_step(message) == step:
            raise Killed

    with pytest.raises(Killed):
        simulation(values, handler=Hearing(after=cut), name="killed")
    coordination._under_way.clear()
    resumed = simulation.resume(Path(str(simulation.base["output-dir"])) / "killed")
    assert resumed.result == straight.result


@pytest.mark.slow
def test_no_sum_is_kept_twice(runs: Simulation) -> None:
    outcome = runs({**PROB_COVER, **ONE_PURCHASE, **SECURE}, name="sums")
    assert [path.name for path in outcome.folder.glob("secure-aggregation/*")] == ["cycle-0.json"]
    assert len(list(outcome.folder.glob("coordination/cycle-0/step-*.safetensors"))) > 2


def test_who_is_there_only_after_the_server_has_started_again_is_named(
    simulation: Simulation,
) -> None:
    """Its first answer was no use, and what was begun without it goes on without it."""

    def cut(message: Message, client: int, _content: RecordDict) -> None:
        if client == 1 and message.metadata.message_type == "query.histogram":
            raise RuntimeError("power cut")
        if client == 2 and last_step(message) == "assign":
            raise Killed

    with pytest.raises(Killed):
        simulation({**TOGETHER, **ONE_PURCHASE}, handler=Hearing(after=cut), name="without")
    resumed = simulation.resume(Path(str(simulation.base["output-dir"])) / "without")
    (failure,) = resumed.metrics.cycles[0].failed
    assert (failure.client, "begun to be coordinated without it" in failure.reason) == (1, True)
    assert resumed.metrics.cycles[1].labels_per_client == (12, 8, 12)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({**TOGETHER, "strategy.max-clusters": 500}, 1),
        slowly({**TOGETHER, "strategy.max-clusters": 500}, 2),
        slowly({**TOGETHER, "strategy.max-clusters": 500}, 3),
        slowly(PROB_COVER, 2),
        slowly(HERDING, 2),
    ],
)
def test_who_is_away_when_the_server_starts_again_holds_up_nobody(
    settings: dict[str, Any], steps: int, simulation: Simulation
) -> None:
    """Some steps are kept that all three have answered; the third client has gone since."""

    def cut(message: Message, _client: int) -> None:
        record = message.content.config_records.get("coordination")
        if record is not None and record["first"] == steps:
            raise Killed

    def away(_message: Message, client: int) -> None:
        if client == 2:
            raise RuntimeError("power cut")

    with pytest.raises(Killed):
        simulation(
            {**settings, **ONE_PURCHASE, "quorum": 0.5}, handler=Hearing(before=cut), name="gone"
        )
    folder = Path(str(simulation.base["output-dir"])) / "gone"
    assert len(list(folder.glob("coordination/cycle-0/*"))) == steps
    coordination._under_way.clear()
    resumed = simulation.resume(folder, handler=Hearing(before=away))
    assert resumed.metrics.cycles[1].labels_per_client == (12, 12, 0)


def test_a_failure_of_old_of_who_is_away_now_holds_up_nobody(simulation: Simulation) -> None:
    """What the third client may have bought unheard is bounded by what was due."""
    values = {**PROB_COVER, **ONE_PURCHASE, "quorum": 0.5, "budget": "global"}
    values |= {"initial-labels": 24, "query-labels": 12, "target-labels": 36}

    def cut(message: Message, client: int) -> None:
        record = message.content.config_records.get("coordination")
        if record is not None and record["first"] == 2:
            raise Killed
        if record is not None and record["first"] == 1 and client == 2:
            raise RuntimeError("power cut")

    def away(_message: Message, client: int) -> None:
        if client == 2:
            raise RuntimeError("power cut")

    with pytest.raises(Killed):
        simulation(values, handler=Hearing(before=cut), name="unheard")
    coordination._under_way.clear()
    folder = Path(str(simulation.base["output-dir"])) / "unheard"
    resumed = simulation.resume(folder, handler=Hearing(before=away))
    assert resumed.metrics.cycles[1].labels_per_client == (12, 12, 0)


def test_what_was_labelled_meanwhile_is_not_chosen_again(simulation: Simulation) -> None:
    """In this process as in one for each message: the steps are gone through again."""
    sample = next(
        row["sample"]
        for row in simulation({**TOGETHER, **ONE_PURCHASE}, name="first").selections
        if (row["cycle"], row["client"]) == (0, 0)
    )
    folder = Path(str(simulation.base["output-dir"])) / "meanwhile"
    given: list[int] = []

    def give(message: Message, client: int) -> None:
        if message.metadata.message_type == "query.select" and client == 0 and not given:
            (path,) = (folder / "clients" / "0").rglob(STORE_FILE)
            store = LabelStore.open_existing(path)
            store.give({sample: 0}, "a colleague")
            given.append(sample)
            store.close()

    outcome = simulation(
        {**TOGETHER, **ONE_PURCHASE}, handler=Hearing(before=give), name="meanwhile"
    )
    assert outcome.metrics.cycles[0].failed == ()
    assert outcome.metrics.cycles[1].labels_per_client == (13, 12, 12)


def test_a_quorum_is_one_of_all_that_began(simulation: Simulation) -> None:
    """Two of three stay at each step, of the two one: a third of all, and no half of each."""

    def away(message: Message, client: int) -> None:
        first_away = {"opening": 2, "initial": 1}.get(last_step(message))
        if client == first_away:
            raise RuntimeError("power cut")

    with pytest.raises(QuorumNotReached, match="coordination: 1 of 3 clients"):
        simulation({**TOGETHER, **ONE_PURCHASE, "quorum": 0.5}, handler=Hearing(before=away))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        TOGETHER,
        PROB_COVER,
        {**PROB_COVER, **SECURE},
        {**HERDING, **SECURE},
        {**FAIRFAL, **SECURE, "cycles": 3},
    ],
)
def test_a_run_that_is_killed_chooses_the_same(
    settings: dict[str, Any], simulation: Simulation
) -> None:
    values = {**ONE_PURCHASE, **settings}
    straight = uninterrupted(simulation, **values)
    # Each kind of step is killed by itself above.
    for event, folder in killed_at_each(straight.spread(8), simulation, **values):
        assert simulation.resume(folder).result == straight.result, f"killed at event {event}"


def imbalances(watch: Hearing) -> list[tuple[int, float]]:
    """Return the cycles that a mean was asked for in, and what one client was told to choose by."""
    asked, decided = set(), {}
    for kind, client, question, _ in watch.heard:
        names = question.config_records.get("coordination", {}).get("names", [])
        cycle = int(question.config_records["config"]["cycle"])  # type: ignore[arg-type]
        if kind == "query.coordinate" and "imbalance" in list(names):  # type: ignore[arg-type]
            asked.add(cycle)
        if kind == "query.select" and client == 0 and names:
            arrays = question.array_records["questions"]
            (key,) = [key for key in arrays if key.endswith("imbalance")]
            decided[cycle] = float(arrays[key].numpy()[0])
    return [(cycle in asked, mean) for cycle, mean in sorted(decided.items())]


def test_what_is_asked_for_a_run_is_asked_once(runs: Simulation) -> None:
    more = {**FAIRFAL, "rounds": 1, "cycles": 3}
    first, every, secure = Hearing(), Hearing(), Hearing()
    once = runs(more, handler=first, name="once")
    runs({**more, "strategy.imbalance": "every"}, handler=every, name="every")
    masked = runs({**more, **SECURE}, handler=secure, name="masked")
    (asked, mean), (asked_again, kept) = imbalances(first)
    assert (asked, asked_again) == (True, False)
    assert kept == mean
    anew = imbalances(every)
    assert [asked for asked, _ in anew] == [True, True]
    assert anew[0][1] == mean != anew[1][1]
    assert bought(masked) == bought(once)
    assert imbalances(secure) == imbalances(first)


@pytest.mark.slow
def test_what_was_asked_for_a_run_and_is_damaged_is_named(simulation: Simulation) -> None:
    more = {**FAIRFAL, "rounds": 1, "cycles": 3}
    straight = uninterrupted(simulation, **more)
    folder = killed_at(round(0.6 * straight.events), simulation, **more)
    kept = folder / "coordination" / "run-imbalance.safetensors"
    sound = kept.read_bytes()
    kept.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"run-imbalance.safetensors is damaged"):
        simulation.resume(folder)
    kept.write_bytes(sound)
    assert simulation.resume(folder).result == straight.result


@pytest.mark.slow
def test_a_damaged_step_is_named(simulation: Simulation) -> None:
    straight = uninterrupted(simulation, **{**PROB_COVER, **ONE_PURCHASE})
    folder = killed_at(round(0.66 * straight.events), simulation, **{**PROB_COVER, **ONE_PURCHASE})
    (folder / "coordination" / "cycle-0" / "step-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"step-1.safetensors is damaged"):
        simulation.resume(folder)
