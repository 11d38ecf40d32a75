"""A run that has ended goes on with more cycles, as if it had had them from the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.killing import Killed, KillSwitch, killed_at
from support.simulation import Outcome, SharedRuns, Simulation

from ahfal_app.config_sources import read_arguments
from ahfal_app.errors import ConfigError
from ahfal_app.server.run import prepare

SHORT = {"target-fraction": 0.1}
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


@pytest.mark.parametrize("reset", [True, False])
def test_numbers_of_labels_and_cycles_in_steps(reset: bool, simulation: Simulation) -> None:
    settings = {**NUMBERS, "reset-model": reset}
    expected = simulation(settings, **{"target-labels": 25}, name="straight").result
    folder = simulation(settings, name="short").folder
    more(simulation, folder, cycles="+1")
    outcome = more(simulation, folder, **{"target-labels": 25})
    assert outcome.result == expected
    assert json.loads((folder / "environment.json").read_text())["extended_from"] == [2, 3]


@pytest.fixture(scope="module")
def events(shared_runs: SharedRuns, tmp_path_factory: pytest.TempPathFactory) -> int:
    """At how many events it can be killed while it goes on."""
    folder = tmp_path_factory.mktemp("counted") / "short"
    shutil.copytree(shared_runs(SHORT).folder, folder)
    counted = KillSwitch()
    more(Simulation(folder.parent, folder.parent), folder, counted, cycles="+1")
    return counted.events


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_kill_while_it_goes_on_changes_nothing(
    share: float, events: int, straight: Outcome, short: Path, simulation: Simulation
) -> None:
    with pytest.raises(Killed):
        more(simulation, short, KillSwitch(max(1, round(share * events))), cycles="+1")
    has_begun = "0.15" in (short / "config.yaml").read_text()
    outcome = more(simulation, short, **({} if has_begun else {"cycles": "+1"}))
    assert outcome.result == straight.result


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


def test_more_cycles_need_a_run_whose_sites_were_promised_nothing(simulation: Simulation) -> None:
    with pytest.raises(ConfigError, match=r"cycles='\+2': allowed with resume="):
        prepare({"cycles": "+2"})
    for privacy in ("local-dp", "secure-aggregation"):
        private = {**SHORT, "privacy": privacy, "rounds": 1}
        if privacy == "local-dp":
            private["privacy.epsilon"] = 1.0
        folder = simulation(private, name=privacy).folder
        with pytest.raises(ConfigError, match="are the run's 2 cycles, since its sites were"):
            prepare({"resume": str(folder), "cycles": "+1"})


def test_the_command_line_keeps_the_sign() -> None:
    assert read_arguments(["cycles=+2", "rounds=+2"]) == {"cycles": "+2", "rounds": 2}
