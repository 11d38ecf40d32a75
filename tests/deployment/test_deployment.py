"""A server and two sites on loopback, as the compose files start them: a whole run.

TLS, registered keys, process isolation, and nginx in front where it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.deployment import Deployment, deployment, processes_of
from support.simulation import TINY, Outcome, Simulation

from ahfal_app.code_version import __version__
from ahfal_app.deployment.certificates import write_certificates
from ahfal_app.results.status import State, read_status

pytestmark = pytest.mark.slow

_SITES = ("site-1", "site-2")
# Convolutions give the same bits, too.
_SETTINGS = {**TINY, "model": "small-cnn", "num-clients": len(_SITES), "rounds": 1, "cycles": 2}
_RUN_TIMEOUT_S = 600


def test_a_run_equals_this_process_and_strangers_are_refused(
    tmp_path: Path, data_dir: Path, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "deployment"
    folder.mkdir()
    # The third site has a key that nobody registers.
    write_certificates(folder / "certificates", [], [*_SITES, "stranger"])
    write_certificates(folder / "foreign", [], [_SITES[0]])
    monkeypatch.setenv("AHFAL_TEST", str(folder))
    with deployment(folder, folder / "certificates") as running:
        status, run = _run(running, data_dir)
        assert status == "finished:completed", running.logs()
        outcome = Outcome(run, "")
        assert outcome.summary["complete"]
        assert outcome.result == simulation(_SETTINGS).result
        _labels_are_on_the_sites_disk(folder / "labels", run)
        _sites_are_told_of(run)
        _refused(running.supernode_command("stranger"), "Failed to activate SuperNode")
        distrusting = running.supernode_command(_SITES[0], folder / "foreign")
        _refused(distrusting, "certificate verify failed")
    assert not processes_of(str(folder))


def _run(running: Deployment, data_dir: Path) -> tuple[str, Path]:
    """Start everything and a run; return how it ended and its folder."""
    folder = running.folder
    running.start_server()
    for number, site in enumerate(_SITES):
        key = running.certificates / "server" / "sites" / f"{site}.pub"
        assert "registered" in running.flwr("supernode", "register", str(key), "deployment")
        own = f'state-dir="{folder / "labels" / site}" data-dir="{data_dir}"'
        running.start_site(site, f"partition-id={number} num-partitions={len(_SITES)} {own}")
    values = {**_SETTINGS, "output-dir": str(folder / "runs"), "data-dir": str(data_dir)}
    config = folder / "run.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    printed = running.flwr(
        "run", ".", "deployment", "--run-config", str(config), "--format", "json"
    )
    status = running.wait_for_end(str(json.loads(printed)["run-id"]), _RUN_TIMEOUT_S)
    (run,) = (folder / "runs").iterdir()
    return status, run


def _labels_are_on_the_sites_disk(labels: Path, run: Path) -> None:
    stores = sorted(labels.rglob("labels.sqlite"))
    assert [store.relative_to(labels).parts[0] for store in stores] == list(_SITES)
    assert not list(run.rglob("labels.sqlite"))


def _sites_are_told_of(run: Path) -> None:
    status = read_status(run)
    assert status is not None
    assert status.state is State.FINISHED
    assert len(status.sites) == len(_SITES)
    for site in status.sites:
        assert site.version == __version__
        assert site.given == site.wanted > 0
        assert site.last_seen is not None


def _refused(command: list[str], why: str) -> None:
    printed = _started_supernode(command)
    assert "SuperNode ID" not in printed
    assert why.lower() in printed.lower(), printed


def _started_supernode(command: list[str]) -> str:
    """Return what a SuperNode that is refused prints before it ends, or is ended."""
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=90
        )
    except subprocess.TimeoutExpired as expired:
        return f"{_text(expired.stdout)}{_text(expired.stderr)}"
    assert done.returncode != 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _text(output: bytes | str | None) -> str:
    return output.decode() if isinstance(output, bytes) else output or ""
