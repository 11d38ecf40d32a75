"""Faults that sites and their hosts have: wrong answers, strangers, network, disk, clock."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support.deployment import wait_until
from support.faults import MESSAGE_S, begin, site_processes
from support.hospitals import SERVER_ADDRESS, Trial
from support.hosts import Clock, full, network, small_disk

from ahfal_app.deployment.certificates import write_certificates

_MISBEHAVIOUR = Path(__file__).parent / "misbehaviour"
_REFUSAL_TIMEOUT_S = 120.0
_DISK_MIB = 16


def site_answers_nan(trial: Trial, draw: random.Random) -> str:
    """A site's weights are not numbers, in each round."""
    begin(trial)
    ended = trial.end()
    _failed_in_each_round(trial, "has values")
    return ended


def site_answers_another_schema(trial: Trial, draw: random.Random) -> str:
    """A site's arrays are of another type, its purchases are answered without metrics."""
    begin(trial)
    ended = trial.end()
    _failed_in_each_round(trial, "float64")
    return ended


def site_answers_late(trial: Trial, draw: random.Random) -> str:
    """A site's first weights come when the server no longer waits for them."""
    begin(trial)
    ended = trial.end()
    assert any("no answer within" in reason for reason in trial.reasons()), trial.reasons()
    return ended


def site_answers_twice(trial: Trial, draw: random.Random) -> str:
    """A site deals with each message twice and sends each answer twice."""
    begin(trial)
    ended = trial.end()
    assert "sent twice" in trial.deployment.log("site-0")
    assert not trial.reasons()
    return ended


def unregistered_site(trial: Trial, draw: random.Random) -> str:
    """A SuperNode with a key that nobody has registered calls while a run goes on."""
    begin(trial)
    _wait_for_a_round(trial, draw)
    _refused(trial.deployment.supernode_command("stranger"), "Failed to activate SuperNode")
    return _without_failures(trial)


def wrong_certificate(trial: Trial, draw: random.Random) -> str:
    """A site does not know the authority of the server's certificate."""
    begin(trial)
    _wait_for_a_round(trial, draw)
    command = trial.deployment.supernode_command("site-0", _foreign(trial))
    _refused(command, "certificate verify failed")
    return _without_failures(trial)


def site_cut_off(trial: Trial, draw: random.Random) -> str:
    """Server and sites are hosts of their own; one's cable is out for one to two minutes."""
    assert trial.network is not None
    begin(trial)
    _wait_for_a_round(trial, draw)
    with trial.network.cut("site-0"):
        time.sleep(draw.uniform(60.0, 120.0))
    return _with_failures(trial)


def disk_full(trial: Trial, draw: random.Random) -> str:
    """The disk of a site fills up at a random moment; people make room after a failure."""
    begin(trial)
    _wait_for_a_round(trial, draw)
    with full(_disk(trial)):
        wait_until(trial.reasons)
    told = [reason for reason in trial.reasons() if "full" in reason or "No space left" in reason]
    assert told, trial.reasons()
    return trial.end()


def wrong_clock(trial: Trial, draw: random.Random) -> str:
    """The clock of a site jumps by a quarter of an hour or an hour, and back a minute later."""
    assert trial.clock is not None
    begin(trial)
    _wait_for_a_round(trial, draw)
    trial.clock.set(draw.choice((-3600, -900, 900, 3600)))
    time.sleep(draw.uniform(45.0, 75.0))
    trial.clock.set(0)
    return _with_failures(trial)


def _misbehaving(how: str) -> Callable[[Trial], None]:
    """Return what makes a site misbehave in one way."""

    def prepare(trial: Trial) -> None:
        path = os.pathsep.join([str(_MISBEHAVIOUR), str(Path(__file__).parents[2])])
        for process in site_processes("site-0"):
            own = {"PYTHONPATH": path, "AHFAL_TEST_MISBEHAVIOUR": how}
            trial.deployment.environments[process] = own

    return prepare


def _hosts_of_their_own(trial: Trial) -> None:
    trial.network = trial.stack.enter_context(network(SERVER_ADDRESS, trial.sites))
    trial.deployment.address = SERVER_ADDRESS
    for process in ("superlink", "server-superexec", "proxy", "flwr"):
        trial.deployment.within[process] = trial.network.within("server")
    for site in trial.sites:
        for process in site_processes(site):
            trial.deployment.within[process] = trial.network.within(site)


def _small_disk(trial: Trial) -> None:
    trial.stack.enter_context(small_disk(_disk(trial), _DISK_MIB))


def _disk(trial: Trial) -> Path:
    return trial.folder / "sites" / "site-0"


def _clock_of_its_own(trial: Trial) -> None:
    trial.clock = Clock(trial.folder)
    for process in site_processes("site-0"):
        trial.deployment.environments[process] = trial.clock.environment


def _telling(trial: Trial) -> None:
    trial.reveals = "centroids,distances,sums"


def _foreign_authority(trial: Trial) -> None:
    write_certificates(_foreign(trial), [], ["site-0"])


def _foreign(trial: Trial) -> Path:
    return trial.folder / "foreign"


def _failed_in_each_round(trial: Trial, why: str) -> None:
    for record in trial.records("round"):
        (failure,) = record["failed"]
        assert failure["client"] == 0
        assert why in failure["reason"], failure


def _with_failures(trial: Trial) -> str:
    """Return how the run ended, in which the fault must have been felt."""
    ended = trial.end()
    assert trial.reasons(), "the run did not notice the fault"
    return ended


def _without_failures(trial: Trial) -> str:
    ended = trial.end()
    assert not trial.reasons()
    return ended


def _wait_for_a_round(trial: Trial, draw: random.Random) -> None:
    """Wait for a random moment of the rest of the first cycle, or of the next one's start."""
    wait_until(lambda: trial.records("round"))
    time.sleep(draw.uniform(0.0, 4 * MESSAGE_S))


def _refused(command: list[str], why: str) -> None:
    """Start a SuperNode, which must be told why it may not join."""
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        printed, _ = process.communicate(timeout=_REFUSAL_TIMEOUT_S)
        assert process.returncode != 0, printed
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    assert "SuperNode ID" not in printed
    assert why.lower() in printed.lower(), printed


#: All of them, by name.
FAULTS = {
    function.__name__: function
    for function in (
        site_answers_nan,
        site_answers_another_schema,
        site_answers_late,
        site_answers_twice,
        unregistered_site,
        wrong_certificate,
        site_cut_off,
        disk_full,
        wrong_clock,
    )
}

#: What has to be done before the server and the sites are started, by the fault's name.
PREPARATIONS = {
    "site_killed_while_coordinating": _telling,
    "serverapp_killed_while_coordinating": _telling,
    "site_answers_nan": _misbehaving("nan"),
    "site_answers_another_schema": _misbehaving("schema"),
    "site_answers_late": _misbehaving("late"),
    "site_answers_twice": _misbehaving("twice"),
    "wrong_certificate": _foreign_authority,
    "site_cut_off": _hosts_of_their_own,
    "disk_full": _small_disk,
    "wrong_clock": _clock_of_its_own,
}
