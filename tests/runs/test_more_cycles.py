"""A run that has ended goes on with more cycles, as if it had had them from the start."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from support.killing import Killed, KillSwitch, Uninterrupted, killed_at, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.config_sources import read_arguments
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError
from ahfal_app.results.progress import Progress
from ahfal_app.server.run import execute, prepare

SHORT = {"target-fraction": 0.1}
NUMBERS = {"initial-labels": 10, "query-labels": 5, "target-labels": 15}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    """A run of three cycles."""
    return uninterrupted(Simulation(tmp_path_factory.mktemp("straight"), data_dir))


def more(folder: Path, switch: KillSwitch | None = None, **said: object) -> Outcome:
    """Go on with a run in a folder."""
    start = prepare({"resume": str(folder), **said})
    handler = (switch or KillSwitch()).handler
    with pytest.MonkeyPatch.context() as patch:
        if switch is not None:
            switch.install(patch)
        with InProcessGrid(handler, start.settings.num_clients) as grid:
            execute(start, grid, Progress(Console(file=io.StringIO())))
    return Outcome(folder, "")


@pytest.mark.parametrize("said", [{"target-fraction": 0.15}, {"cycles": "+1"}, {"cycles": 3}])
def test_it_ends_as_one_that_had_them_from_the_start(
    said: dict[str, object], straight: Uninterrupted, simulation: Simulation
) -> None:
    folder = simulation(SHORT, name="short").folder
    assert len(Outcome(folder, "").metrics.cycles) == 2
    outcome = more(folder, **said)
    assert outcome.result == straight.result
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["extended_from"] == [2]
    assert outcome.summary["complete"]
    # Once more, without a word, changes nothing.
    assert more(folder).result == straight.result


@pytest.mark.parametrize("reset", [True, False])
def test_numbers_of_labels_and_cycles_in_steps(reset: bool, simulation: Simulation) -> None:
    settings = {**NUMBERS, "reset-model": reset}
    expected = simulation(settings, **{"target-labels": 25}, name="straight").result
    folder = simulation(settings, name="short").folder
    more(folder, cycles="+1")
    outcome = more(folder, **{"target-labels": 25})
    assert outcome.result == expected
    assert json.loads((folder / "environment.json").read_text())["extended_from"] == [2, 3]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_kill_while_it_goes_on_changes_nothing(
    share: float, straight: Uninterrupted, simulation: Simulation
) -> None:
    counted = KillSwitch()
    more(simulation(SHORT, name="counted").folder, counted, cycles="+1")
    folder = simulation(SHORT, name="killed").folder
    with pytest.raises(Killed):
        more(folder, KillSwitch(max(1, round(share * counted.events))), cycles="+1")
    outcome = more(folder) if "0.15" in (folder / "config.yaml").read_text() else None
    outcome = outcome or more(folder, cycles="+1")
    assert outcome.result == straight.result


def test_a_run_that_was_interrupted_may_get_more(
    straight: Uninterrupted, simulation: Simulation
) -> None:
    folder = killed_at(20, simulation, **SHORT)
    assert more(folder, **{"target-fraction": 0.15}).result == straight.result


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
def test_what_gives_it_no_more_is_refused(
    said: dict[str, object], why: str, simulation: Simulation
) -> None:
    folder = simulation(SHORT, name="short", rounds=1).folder
    with pytest.raises(ConfigError) as error:
        prepare({"resume": str(folder), **said})
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
