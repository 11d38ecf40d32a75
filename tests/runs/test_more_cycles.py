"""A run that has ended goes on with more cycles, as if it had had them from the start."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from support.killing import Killed, KillSwitch, killed_at
from support.simulation import Outcome, SharedRuns, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.config_sources import read_arguments
from ahfal_app.errors import ConfigError
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.results.reading import read_run
from ahfal_app.results.report import render_report
from ahfal_app.results.run_folder import Recorder
from ahfal_app.server import run as run_module
from ahfal_app.server.checkpoint import read_checkpoint, write_checkpoint
from ahfal_app.server.start import prepare

SHORT = {"target-fraction": 0.1}
WATCHED: dict[str, Any] = {"stop-set": "always", "stop-set-size": 300}
NUMBERS = {"initial-labels": 10, "query-labels": 5, "target-labels": 15}


@pytest.fixture(scope="module")
def straight(shared_runs: SharedRuns) -> Outcome:
    """A run of three cycles."""
    return shared_runs()


@pytest.fixture
def short(shared_runs: SharedRuns, tmp_path: Path) -> Path:
    """The folder of a run that has ended after two of them."""
    return Path(shutil.copytree(shared_runs(SHORT).folder, tmp_path / "short"))


def more(
    simulation: Simulation, folder: Path, switch: KillSwitch | None = None, **said: object
) -> Outcome:
    """Go on with a run in a folder."""
    if switch is None:
        return simulation.resume(folder, **said)
    with pytest.MonkeyPatch.context() as patch:
        switch.install(patch)
        return simulation.resume(folder, switch.handler, **said)


@pytest.mark.slow
@pytest.mark.parametrize("said", [{"target-fraction": 0.15}, {"cycles": "+1"}, {"cycles": 3}])
def test_it_ends_as_one_that_had_them_from_the_start(
    said: dict[str, object], straight: Outcome, short: Path, simulation: Simulation
) -> None:
    assert len(Outcome(short, "").metrics.cycles) == 2
    outcome = more(simulation, short, **said)
    assert outcome.result == straight.result
    environment = json.loads((short / "environment.json").read_text())
    assert environment["extended_from"] == [2]
    assert outcome.summary["complete"]
    # Once more, without a word, changes nothing.
    assert more(simulation, short).result == straight.result


@pytest.mark.slow
@pytest.mark.parametrize("reset", [True, False])
def test_numbers_of_labels_and_cycles_in_steps(reset: bool, simulation: Simulation) -> None:
    settings = {**NUMBERS, "reset-model": reset}
    expected = simulation(settings, **{"target-labels": 25}, name="straight").result
    folder = simulation(settings, name="short").folder
    more(simulation, folder, cycles="+1")
    outcome = more(simulation, folder, **{"target-labels": 25})
    assert outcome.result == expected
    assert json.loads((folder / "environment.json").read_text())["extended_from"] == [2, 3]


@pytest.mark.parametrize(
    ("short", "said"),
    [
        ({"label-steps": "3,5"}, {"label-steps": "3, 5, 12"}),
        ({"label-steps": "3,5,12", "cycles": 2}, {"cycles": "+1"}),
        ({"label-steps": "3,5", "cycles": 1}, {"label-steps": "3,5,12"}),
    ],
)
def test_a_run_of_label_steps_gets_more_of_them(
    short: dict[str, object], said: dict[str, object], simulation: Simulation
) -> None:
    straight = simulation(name="straight", rounds=1, **{"label-steps": "3,5,12"})
    folder = simulation(short, rounds=1, name="short").folder
    outcome = more(simulation, folder, **said)
    assert outcome.result == straight.result
    assert [c.labels_per_client for c in outcome.metrics.cycles] == [(3,) * 3, (5,) * 3, (12,) * 3]
    assert "cut off" not in outcome.log


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            {"label-steps": "3,6,12"},
            "label-steps='3,6,12': allowed on resume of this run are '3,5'",
        ),
        ({"label-steps": "3"}, "label-steps='3': allowed are at least two numbers"),
        ({"label-steps": "03,5"}, "label-steps='03,5': the run has 2 cycles"),
        ({"cycles": "+1"}, "cycles=3: allowed are at most 2 with label-steps='3,5'"),
        ({"cycles": 4, "label-steps": "3,5,12"}, "cycles=4: allowed are at most 3 with "),
        ({"target-labels": 12}, "target-labels=12: allowed is 0 with label-steps='3,5'"),
        ({"target-fraction": 0.5}, "target-fraction=0.5: allowed on resume of this run is label-"),
    ],
)
def test_label_steps_that_do_not_go_on_are_refused(
    said: dict[str, object], why: str, simulation: Simulation
) -> None:
    folder = simulation(name="short", rounds=1, **{"label-steps": "3,5"}).folder
    with pytest.raises(ConfigError) as error:
        prepare({"resume": str(folder), **said})
    assert why in str(error.value)


def test_more_cycles_leave_a_target_that_allows_them(simulation: Simulation) -> None:
    settings = {"initial-labels": 10, "query-labels": 10, "target-labels": 12, "rounds": 1}
    straight = simulation(settings, name="straight", cycles=2)
    folder = simulation(settings, name="short", cycles=1).folder
    outcome = more(simulation, folder, cycles="+1")
    assert outcome.result == straight.result
    assert [c.labels_per_client for c in outcome.metrics.cycles] == [(10,) * 3, (12,) * 3]
    assert read_run(folder).settings.target_labels == 12


@pytest.mark.parametrize("said", [{"target-labels": 40}, {"cycles": "+1"}])
def test_a_purchase_that_was_cut_off_is_made_up_for_with_a_warning(
    said: dict[str, object], simulation: Simulation
) -> None:
    settings = {"initial-labels": 10, "query-labels": 10, "target-labels": 25, "rounds": 1}
    folder = simulation(settings, name="short").folder
    outcome = more(simulation, folder, **said)
    labels = [c.labels_per_client[0] for c in outcome.metrics.cycles]
    assert labels == [10, 20, 25, 40]
    assert (
        "warning: target-labels=25 has cut off the run's last purchase, which the next one makes "
        "up for, with 15 in place of query-labels=10" in outcome.log
    )


def test_a_purchase_that_is_still_to_come_is_not_cut_off(simulation: Simulation) -> None:
    settings = {"initial-labels": 10, "query-labels": 10, "rounds": 1}
    straight = simulation(settings, name="straight", **{"target-labels": 40})
    folder = killed_at(20, simulation, **settings, **{"target-labels": 25})
    outcome = more(simulation, folder, **{"target-labels": 40})
    assert outcome.result == straight.result
    assert "cut off" not in outcome.log


@pytest.fixture(scope="module")
def events(shared_runs: SharedRuns, tmp_path_factory: pytest.TempPathFactory) -> int:
    """At how many events it can be killed while it goes on."""
    folder = tmp_path_factory.mktemp("counted") / "short"
    shutil.copytree(shared_runs(SHORT).folder, folder)
    counted = KillSwitch()
    more(Simulation(folder.parent, folder.parent), folder, counted, cycles="+1")
    return counted.events


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_kill_while_it_goes_on_changes_nothing(
    share: float, events: int, straight: Outcome, short: Path, simulation: Simulation
) -> None:
    with pytest.raises(Killed):
        more(simulation, short, KillSwitch(max(1, round(share * events))), cycles="+1")
    has_begun = "0.15" in (short / "config.yaml").read_text()
    outcome = more(simulation, short, **({} if has_begun else {"cycles": "+1"}))
    assert outcome.result == straight.result


def killed_while_it_closes_its_last_cycle_again(
    moment: str, folder: Path, simulation: Simulation, **said: object
) -> None:
    """Go on, and be killed around the record and the checkpoint of the cycle that was the last."""
    with pytest.MonkeyPatch.context() as patch:

        def kill(owner: Any, name: str, first: bool) -> None:
            real = getattr(owner, name)

            def killing(*arguments: Any) -> None:
                if not first:
                    real(*arguments)
                raise Killed

            patch.setattr(owner, name, killing)

        if moment == "no record":
            kill(Recorder, "truncate_after", first=False)
        elif moment == "record":
            kill(Recorder, "record", first=False)
        else:
            kill(run_module, "write_checkpoint", first=False)
        with pytest.raises(Killed):
            more(simulation, folder, **said)
    if moment == "damaged checkpoint":
        newest = max((folder / "checkpoint").glob("[0-9]*"))
        (newest / "model.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("moment", ["no record", "record", "checkpoint", "damaged checkpoint"])
def test_a_kill_while_the_last_cycle_is_closed_again_changes_nothing(
    moment: str, straight: Outcome, short: Path, simulation: Simulation
) -> None:
    killed_while_it_closes_its_last_cycle_again(moment, short, simulation, cycles="+1")
    said = {"cycles": "+1"} if moment == "no record" else {}
    assert more(simulation, short, **said).result == straight.result


@pytest.mark.parametrize("has_record", [True, False])
def test_a_run_of_an_earlier_version_goes_on_by_its_records(
    has_record: bool, straight: Outcome, short: Path, simulation: Simulation
) -> None:
    checkpoint = replace(read_checkpoint(short / "checkpoint"), is_end=None)
    for _ in range(2):
        write_checkpoint(short / "checkpoint", checkpoint)
    if not has_record:
        killed_while_it_closes_its_last_cycle_again("no record", short, simulation, cycles="+1")
    assert more(simulation, short, cycles="+1").result == straight.result


def test_a_kill_before_it_goes_on_takes_nothing_away(
    shared_runs: SharedRuns, short: Path, simulation: Simulation
) -> None:
    killed_while_it_closes_its_last_cycle_again("no record", short, simulation, cycles="+1")
    outcome = more(simulation, short)
    assert outcome.result == shared_runs(SHORT).result
    assert outcome.summary["complete"]


def test_a_run_that_was_interrupted_may_get_more(straight: Outcome, simulation: Simulation) -> None:
    folder = killed_at(20, simulation, **SHORT)
    assert more(simulation, folder, **{"target-fraction": 0.15}).result == straight.result


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"cycles": 1}, "cycles=1: the run has 2 cycles"),
        ({"cycles": 2}, "cycles=2: the run has 2 cycles"),
        ({"target-fraction": 0.07}, "target-fraction=0.07: the run has 2 cycles"),
        (
            {"target-labels": 40},
            "initial-labels=0: allowed is at least 1 with target-labels=40",
        ),
        ({"seed": 3}, "seed=3: the run was started with 0"),
    ],
)
def test_what_gives_it_no_more_is_refused(said: dict[str, object], why: str, short: Path) -> None:
    with pytest.raises(ConfigError) as error:
        prepare({"resume": str(short), **said})
    assert why in str(error.value)


def test_a_number_of_more_cycles_needs_a_run() -> None:
    with pytest.raises(ConfigError, match=r"cycles='\+2': allowed with resume="):
        prepare({"cycles": "+2"})


def test_what_epsilon_was_promised_for_is_not_extended(simulation: Simulation) -> None:
    private = {**SHORT, "privacy": "local-dp", "privacy.epsilon": 1.0, "rounds": 1}
    folder = simulation(private, name="noisy").folder
    with pytest.raises(ConfigError) as error:
        prepare({"resume": str(folder), "cycles": "+1"})
    assert "promised privacy.epsilon=1.0 for all 1 histograms together" in str(error.value)


@pytest.mark.slow
def test_sums_alone_may_be_told_of_more_cycles(simulation: Simulation) -> None:
    """Also of the stop set, whose sums are of each cycle, the last one included."""
    private = {"privacy": "secure-aggregation", "rounds": 1, **WATCHED}
    straight = simulation(private, name="straight")
    folder = simulation({**private, **SHORT}, name="short").folder
    counted = KillSwitch()
    outcome = more(simulation, folder, counted, cycles="+1")
    assert outcome.result == straight.result
    assert _observed(outcome) == _observed(straight)
    for share in (0.3, 0.7):
        folder = simulation({**private, **SHORT}, name=f"killed-{share}").folder
        with pytest.raises(Killed):
            more(simulation, folder, KillSwitch(round(share * counted.events)), cycles="+1")
        outcome = more(simulation, folder)
        assert outcome.result == straight.result
        assert _observed(outcome) == _observed(straight)


def _observed(outcome: Outcome) -> list[object]:
    return [cycle.stop_set for cycle in outcome.metrics.cycles]


def _coming_and_going(message: Message, context: Context) -> Message:
    """Client 2 is there from the third cycle on, and client 0 until the fourth."""
    cycle = int(str(message.content.config_records["config"]["cycle"]))
    client = context.node_config["partition-id"]
    if (client == 2 and cycle < 2) or (client == 0 and cycle > 3):
        raise RuntimeError("power cut")
    return client_app(message, context)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["client", "global"])
def test_sites_come_and_go_in_a_run_that_goes_on(budget: str, simulation: Simulation) -> None:
    settings = {"rounds": 1, "budget": budget, **WATCHED}
    longer = {"target-fraction": 0.25}
    straight = simulation({**settings, **longer}, handler=_coming_and_going, name="straight")
    folder = simulation({**settings, **SHORT}, handler=_coming_and_going, name="short").folder
    outcome = simulation.resume(folder, _coming_and_going, cycles="+3")
    assert outcome.result == straight.result
    assert _observed(outcome) == _observed(straight)
    cycles = outcome.metrics.cycles
    assert len(cycles) == 5
    for run in (outcome, straight):
        assert re.search(r"client 2 joins, with \d+ samples, in cycle 3", run.log)
        assert "client 0: error" in run.log
    # Who was away, and why, is in each record; who is there has labels, and keeps them.
    away = [sorted({f.client for f in cycle.failed}) for cycle in cycles]
    assert away == [[2], [2], [], [], [0]]
    came = [[(j.client, j.is_back) for j in cycle.joined] for cycle in cycles]
    assert came == [[], [], [(2, False)], [], []]
    report = render_report(read_run(outcome.folder))
    assert "Clients that came between cycles" in report
    has_labels = [cycle.labels_per_client[2] > 0 for cycle in cycles]
    # A budget that all share was split before it came, so that it gets its part with the next one.
    assert has_labels == [False, False, budget == "client", True, True]
    assert cycles[-1].labels_per_client[0] >= cycles[-2].labels_per_client[0] > 0
    stores = [
        LabelStore.open_existing(folder / "clients" / str(client) / STORE_FILE)
        for client in range(3)
    ]
    for store in stores:
        with closing(store):
            ledger = store.ledger()
            assert ledger.spent == len({entry.sample for entry in store.entries()})
            assert ledger.reserved == 0
    # Once more, without a word, buys nothing.
    assert simulation.resume(folder, _coming_and_going).result == straight.result


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("ending", ["by a rule", "at its target"])
def test_a_card_that_people_have_filled_in_stays_until_the_run_goes_on(
    ending: str, keep: str, simulation: Simulation
) -> None:
    rule = {"stopping": "target", "stopping.after": 1, "stopping.accuracy": 0.01}
    settings = {"rounds": 1, "keep": keep, **(rule if ending == "by a rule" else {"cycles": 1})}
    folder = simulation(settings, name="ended").folder
    card = folder / "model-card.md"
    card.write_text(f"{card.read_text()}\nOurs.\n")
    outcome = more(simulation, folder)
    assert len(outcome.metrics.cycles) == 1
    assert "model-card.md stays as it is: neither cycle nor model is new" in outcome.log
    assert card.read_text().endswith("\nOurs.\n")
    # Killed after the model of its new end is written, and before the card is.
    said = {"stopping": "none"} if ending == "by a rule" else {"cycles": "+1"}
    with pytest.MonkeyPatch.context() as patch:

        def kill(_: Path) -> None:
            raise Killed

        patch.setattr(run_module, "write_model_card", kill)
        with pytest.raises(Killed):
            more(simulation, folder, **said)
    assert card.read_text().endswith("\nOurs.\n")
    outcome = more(simulation, folder)
    assert len(outcome.metrics.cycles) > 1
    assert "Ours." not in card.read_text()


def test_the_command_line_keeps_the_sign() -> None:
    assert read_arguments(["cycles=+2", "rounds=+2"]) == {"cycles": "+2", "rounds": 2}
