"""A server and two sites on loopback, as the compose files start them: a whole run.

TLS, registered keys, process isolation, and nginx in front where it is installed.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployment import NGINX, Deployment, deployment, processes_of
from simulation import TINY, Outcome, Simulation

from ahfal_app.certificates import write_certificates

# Its tests share the processes of one deployment.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deployment")]

_SITES = ("site-1", "site-2")
_SETTINGS = {**TINY, "num-clients": len(_SITES), "rounds": 1, "target-fraction": 0.1}
_RUN_TIMEOUT_S = 600
_PROTOBUF = "application/protobuf"

needs_nginx = pytest.mark.skipif(not NGINX, reason="nginx is not installed")


@dataclass
class _Run:
    """A deployment in which a run has ended."""

    deployment: Deployment
    status: str
    folder: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[_Run]:
    folder = tmp_path_factory.mktemp("deployment")
    certificates = folder / "certificates"
    # The third site has a key that nobody registers.
    write_certificates(certificates, [], [*_SITES, "stranger"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHFAL_TEST", str(folder))
        with deployment(folder, certificates) as running:
            yield _run(running, folder, data_dir)
        assert not processes_of(str(folder))


def _run(running: Deployment, folder: Path, data_dir: Path) -> _Run:
    running.start_server()
    for number, site in enumerate(_SITES):
        key = running.certificates / "server" / "sites" / f"{site}.pub"
        assert "registered" in running.flwr("supernode", "register", str(key), "deployment")
        own = f'state-dir="{folder / "labels" / site}"'
        running.start_site(site, f"partition-id={number} num-partitions={len(_SITES)} {own}")
    values = {**_SETTINGS, "output-dir": str(folder / "runs"), "data-dir": str(data_dir)}
    config = folder / "run.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    printed = running.flwr(
        "run", ".", "deployment", "--run-config", str(config), "--format", "json"
    )
    status = running.wait_for_end(str(json.loads(printed)["run-id"]), _RUN_TIMEOUT_S)
    (run,) = (folder / "runs").iterdir()
    return _Run(running, status, run)


def test_a_deployment_gives_the_same_result_as_this_process(finished: _Run, simulation: Simulation):
    assert finished.status == "finished:completed", finished.deployment.logs()
    outcome = Outcome(finished.folder, "")
    assert outcome.summary["complete"]
    assert outcome.result == simulation(_SETTINGS).result


def test_labels_are_on_the_sites_disk(finished: _Run):
    labels = finished.deployment.folder / "labels"
    stores = sorted(labels.rglob("labels.sqlite"))
    assert [store.relative_to(labels).parts[0] for store in stores] == list(_SITES)
    assert not list(finished.folder.rglob("labels.sqlite"))


def test_an_unregistered_key_is_refused(finished: _Run):
    printed = _started_supernode(finished.deployment.supernode_command("stranger"))
    assert "SuperNode ID" not in printed
    # What Flower says of a key that it does not know.
    assert "Failed to activate SuperNode" in printed


def test_a_server_of_another_authority_is_refused(finished: _Run, tmp_path: Path):
    write_certificates(tmp_path, [], ["site-1"])
    printed = _started_supernode(finished.deployment.supernode_command("site-1", tmp_path))
    assert "SuperNode ID" not in printed
    assert "certificate verify failed" in printed.lower(), printed


@needs_nginx
@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/docs",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1//control/list-runs",
        "/V1/control/list-runs",
    ],
)
def test_the_proxy_lets_nothing_but_the_fleet_api_through(finished: _Run, path: str):
    assert _status(finished.deployment, finished.deployment.proxy, path) == 403


@needs_nginx
def test_a_path_that_only_looks_like_the_fleet_api_reaches_no_other(finished: _Run):
    """The SuperLink gets the path that the proxy compared, without dots and escapes."""
    path = "/v1/control/list-runs/../../fleet/list-runs"
    assert _status(finished.deployment, finished.deployment.proxy, path) == 404


def test_the_control_api_needs_the_proxy_in_front(finished: _Run):
    """Without a proxy it answers whoever asks: what the tests of the proxy rest on."""
    assert (
        _status(finished.deployment, finished.deployment.superlink, "/v1/control/list-runs") == 200
    )


@needs_nginx
def test_flwr_gets_nowhere_through_the_proxy(finished: _Run):
    printed = finished.deployment.flwr("list", "deployment", address=finished.deployment.door)
    assert finished.folder.name not in printed
    assert "403" in printed or "denied" in printed.lower() or "forbidden" in printed.lower(), (
        printed
    )


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


def _status(running: Deployment, port: int, path: str) -> int:
    context = ssl.create_default_context(cafile=str(running.certificates / "server" / "ca.crt"))
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}{path}",
        data=b"",
        method="POST",
        headers={"Content-Type": _PROTOBUF},
    )
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)
