"""Runs whose clients choose together: what travels, who is away, who is killed, who may not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from support.attacks import Target
from support.hearing import Hearing
from support.killing import Killed, killed_at, killed_at_each, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.client import coordination
from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import CheckpointError, ConfigError, QuorumNotReached
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.server.preflight import check_settings

SMALL: dict[str, Any] = {
    "max-train-samples": 150,
    "max-test-samples": 40,
    "initial-labels": 8,
    "query-labels": 4,
    "target-labels": 16,
}
TOGETHER: dict[str, Any] = {
    **SMALL,
    "strategy": "coordinated-typicality",
    "strategy.max-clusters": 8,
    "strategy.least-region": 3,
}
PROB_COVER: dict[str, Any] = {
    **SMALL,
    "strategy": "coordinated-prob-cover",
    "strategy.radius": 0.5,
    "strategy.least-region": 2,
}
HERDING: dict[str, Any] = {**PROB_COVER, "strategy": "coordinated-max-herding"}
FAIRFAL: dict[str, Any] = {**SMALL, "strategy": "coordinated-fairfal", "strategy.epochs": 2}
SECURE = {"privacy": "secure-aggregation"}
ONE_PURCHASE = {"cycles": 2, "rounds": 1}


def slowly(*values: Any) -> Any:
    """Return values of a test's parameters that take a second or more."""
    return pytest.param(*values, marks=pytest.mark.slow)


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


def bought(outcome: Outcome) -> list[tuple[Any, Any, Any]]:
    return [(row["cycle"], row["client"], row["sample"]) for row in outcome.selections]


# --- what travels ------------------------------------------------------------------------------


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


# --- processes that come and go ----------------------------------------------------------------


def _forget(_message: Message, _client: int) -> None:
    """As if each message were answered by a process of its own."""
    coordination._under_way.clear()


@pytest.mark.parametrize("settings", [TOGETHER, slowly(PROB_COVER), slowly(HERDING)])
def test_every_message_may_be_answered_by_a_process_of_its_own(
    settings: dict[str, Any], simulation: Simulation, runs: Simulation
) -> None:
    straight = runs({**settings, **ONE_PURCHASE}, name=f"straight-{settings['strategy']}")
    outcome = simulation({**settings, **ONE_PURCHASE}, handler=Hearing(before=_forget))
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


def _last_step(message: Message) -> str:
    """Return which step of a coordination a message wants to be answered, or its kind."""
    if message.metadata.message_type != "query.coordinate":
        return message.metadata.message_type
    names = message.content.config_records["coordination"]["names"]
    return str(list(names)[-1])  # type: ignore[arg-type]


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
        if client == 1 and is_step and _last_step(message) == step:
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
        if client == 2 and _last_step(message) == "assign":
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
        first_away = {"opening": 2, "initial": 1}.get(_last_step(message))
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


# --- beside other settings ---------------------------------------------------------------------


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
        values, handler=Hearing(before=_forget, after=look), name="forgetful-arriving"
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


# --- who is away, and who lies -----------------------------------------------------------------


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


# --- what a client refuses ---------------------------------------------------------------------


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
                if _last_step(message) == "opening":
                    opening.append(message)
                if _last_step(message) == "count" and not refused:
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
