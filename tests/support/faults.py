"""Faults on real processes: each waits for its moment, strikes, and says how the run ended."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from support.deployment import processes_of, wait_until
from support.hospitals import SETTINGS, Trial

Fault = Callable[[Trial, random.Random], str]

_ROUNDS = int(str(SETTINGS["rounds"]))
# A message takes some seconds at a site: most of it is the start of a process.
MESSAGE_S = 5.0

#: How a run ends that went as far as it should.
COMPLETED = "finished:completed"


def site_processes(name: str) -> tuple[str, str]:
    """Return the processes of a site: all of them die when its machine does."""
    return name, f"{name}-superexec"


def begin(trial: Trial, **settings: object) -> None:
    """Start a run, and the server and the sites before the first."""
    if not trial.deployment.started:
        trial.start()
    trial.run(**settings)


def no_fault(trial: Trial, draw: random.Random) -> str:
    """Nothing happens: what the others are compared with."""
    begin(trial)
    return trial.end()


def site_killed_while_training(trial: Trial, draw: random.Random) -> str:
    """A site's machine dies at a random moment of a round's message."""
    begin(trial)
    wait_until(lambda: len(trial.records("round")) >= 1 and trial.at_work("site-0"))
    time.sleep(draw.uniform(0.0, MESSAGE_S))
    trial.deployment.kill(*site_processes("site-0"))
    return trial.end()


def supernode_killed_while_training(trial: Trial, draw: random.Random) -> str:
    """The SuperNode alone dies; its ClientApp finds nobody to tell."""
    begin(trial)
    wait_until(lambda: len(trial.records("round")) >= 1 and trial.at_work("site-0"))
    time.sleep(draw.uniform(0.0, MESSAGE_S))
    trial.deployment.kill("site-0")
    return trial.end()


def site_killed_while_selecting(trial: Trial, draw: random.Random) -> str:
    """A site's machine dies between the last round of a cycle and the request that follows."""
    begin(trial)
    wait_until(lambda: len(trial.records("round")) >= _ROUNDS and trial.at_work("site-0"))
    time.sleep(draw.uniform(0.0, 2 * MESSAGE_S))
    trial.deployment.kill(*site_processes("site-0"))
    return trial.end()


def site_killed_after_the_answer(trial: Trial, draw: random.Random) -> str:
    """A site's machine dies when people have answered, and before the server knows of it.

    Mostly before the store knows of it, too; at the latest when it just does. Which answer it is
    is drawn: that to the initial request, or to a purchase.
    """
    cycle = draw.choice((0, 1))
    # It is about labels, so that one round a cycle will do.
    return killed_after_the_answer(trial, draw, cycle, rounds=1)


def killed_after_the_answer(
    trial: Trial, draw: random.Random, cycle: int, **settings: object
) -> str:
    """Start a run, kill a site when a cycle's labels are answered, and return how the run ended."""
    struck: list[str] = []

    def strike(site: str, request: Path) -> None:
        if site == "site-0" and request.name.startswith(f"cycle-{cycle:03d}") and not struck:
            deadline = time.monotonic() + draw.uniform(0.0, 3 * MESSAGE_S)
            answered = set(dict(trial.labeller.answers[site]))
            while time.monotonic() < deadline and answered - set(trial.labels(site)):
                time.sleep(0.1)
            trial.deployment.kill(*site_processes(site))
            struck.append(request.name)

    trial.labeller.answered = strike
    begin(trial, **settings)
    ended = trial.end()
    assert struck, f"nothing was answered in cycle {cycle}"
    return ended


def site_killed_while_coordinating(trial: Trial, draw: random.Random) -> str:
    """A site's machine dies at a random moment of the steps in which clients choose together."""
    _begin_to_coordinate(trial)
    time.sleep(draw.uniform(0.0, 3 * MESSAGE_S))
    trial.deployment.kill(*site_processes("site-0"))
    return trial.end()


def serverapp_killed_while_coordinating(trial: Trial, draw: random.Random) -> str:
    """The ServerApp dies in such a step; the run is resumed by hand."""
    _begin_to_coordinate(trial)
    time.sleep(draw.uniform(0.0, 3 * MESSAGE_S))
    return _kill_serverapp(trial)


def _begin_to_coordinate(trial: Trial) -> None:
    """Start a run whose clients choose together, and wait until they have begun to."""
    # A step takes as long as a message: enough of them to be hit, and the rest by each alone.
    more = "strategy.radius=0.5 strategy.steps=8"
    begin(trial, rounds=1, strategy="coordinated-prob-cover", more=more)
    wait_until(lambda: list((trial.folder / "runs").glob("*/coordination/cycle-0/step-*")))


def superlink_killed(trial: Trial, draw: random.Random) -> str:
    """The SuperLink dies while sites train, and comes back on its database.

    Where the ServerApp has given up meanwhile, the run is resumed by hand.
    """
    begin(trial)
    wait_until(lambda: len(trial.records("round")) >= 1 and trial.at_work("site-0"))
    time.sleep(draw.uniform(0.0, MESSAGE_S))
    trial.deployment.kill("superlink")
    ended = trial.end(must_complete=False)
    return ended if ended == COMPLETED else resume(trial)


def serverapp_killed(trial: Trial, draw: random.Random) -> str:
    """The ServerApp dies at a random moment; the run is resumed by hand."""
    begin(trial)
    wait_until(lambda: len(trial.records("round")) >= 1)
    time.sleep(draw.uniform(0.0, 4 * MESSAGE_S))
    return _kill_serverapp(trial)


def _kill_serverapp(trial: Trial) -> str:
    for process, command in processes_of(str(trial.folder), "server-superexec").items():
        if "flwr-serverapp" in command:
            trial.deployment.signal(process, signal.SIGKILL)
    wait_until(lambda: trial.status().startswith("finished"))
    assert trial.status() != COMPLETED
    return resume(trial)


def resume(trial: Trial) -> str:
    """Resume the run, as people would; return how it ended."""
    trial.run(**{**trial.said, "resume": str(trial.run_folder)})
    return f"resumed, {trial.end()}"


#: All faults, by name.
FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        no_fault,
        site_killed_while_training,
        supernode_killed_while_training,
        site_killed_while_selecting,
        site_killed_after_the_answer,
        site_killed_while_coordinating,
        superlink_killed,
        serverapp_killed,
        serverapp_killed_while_coordinating,
    )
}
