"""The app on Flower's own engine, over TLS, with SuperNodes that must be registered."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulation import TINY, Outcome, Simulation

from ahfal_app.certificates import write_certificates

pytestmark = pytest.mark.slow

_PROGRAMS = Path(sys.executable).parent
_APP = Path(__file__).parent.parent
_WAIT_S = 240


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Deployment:
    """Processes of a server and its sites, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.keys = folder / "keys"
        self.address = f"127.0.0.1:{_free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []
        write_certificates(self.keys, [], ["a", "b", "stranger", "misled"])
        write_certificates(folder / "foreign", [], [])
        home = folder / "cli"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink.deployment]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.keys}/server/ca.crt"\n'
        )

    def environment(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            "FLWR_HOME": str(self.folder / name),
            # By it every process is known that these start.
            "AHFAL_TEST": str(self.folder),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, name: str, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(_PROGRAMS / program), *map(str, arguments)],
                cwd=self.folder / name,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start_server(self) -> None:
        host, port = self.address.split(":")
        server = self.keys / "server"
        secret = ("--superexec-auth-secret-file", server / "superexec.secret")
        tls = ("--ssl-ca-certfile", server / "ca.crt", "--ssl-certfile", server / "server.crt")
        tls += ("--ssl-keyfile", server / "server.key")
        links = ("--host", host, "--port", port, "--database", self.folder / "state.db")
        rules = ("--enable-supernode-auth", "--isolation", "process")
        self.start("superlink", "flower-superlink", *tls, *links, *rules, *secret)
        self._wait_until_healthy()
        runtime = ("--root-certificates", server / "ca.crt", "--runtime-api-address", self.address)
        self.start("serverapps", "flower-superexec", *runtime, *secret)

    def _wait_until_healthy(self) -> None:
        trust = ssl.create_default_context(cafile=self.keys / "server/ca.crt")
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"https://{self.address}/health", timeout=5, context=trust),
            ):
                return
            time.sleep(0.2)
        pytest.fail(self.log("superlink"))

    def start_supernode(
        self, site: str, ca: Path, partition: int, *more: object
    ) -> tuple[subprocess.Popen[bytes], str]:
        runtime = f"127.0.0.1:{_free_port()}"
        host, port = runtime.split(":")
        key = self.keys / f"sites/{site}/supernode.key"
        links = ("--superlink", self.address, "--host", host, "--port", port)
        trust = ("--root-certificates", ca, "--auth-supernode-private-key", key)
        config = f'partition-id={partition} num-partitions=2 state-dir="{self.folder}/state-{site}"'
        rules = ("--isolation", "process", "--node-config", config, *more)
        secret = self.keys / f"sites/{site}/superexec.secret"
        rules += ("--superexec-auth-secret-file", secret)
        return self.start(site, "flower-supernode", *links, *trust, *rules), runtime

    def start_site(self, site: str, partition: int) -> None:
        _, runtime = self.start_supernode(site, self.keys / f"sites/{site}/ca.crt", partition)
        secret = self.keys / f"sites/{site}/superexec.secret"
        links = ("--insecure", "--runtime-api-address", runtime)
        name = f"clientapps-{site}"
        self.start(name, "flower-superexec", *links, "--superexec-auth-secret-file", secret)

    def flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [_PROGRAMS / "flwr", *arguments],
            env=self.environment("cli"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def running(self) -> list[int]:
        """Return the ids of all processes that belong to this deployment."""
        mark = f"AHFAL_TEST={self.folder}\0".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + 20
        while self.running() and time.monotonic() < deadline:
            for process in self.processes:
                process.poll()
            time.sleep(0.2)
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "deployment-of-flower")
    try:
        yield deployment
    finally:
        deployment.stop()


def _wait_for_end(deployment: Deployment) -> str:
    deadline = time.monotonic() + _WAIT_S
    status = ""
    while time.monotonic() < deadline and not status.startswith("finished"):
        time.sleep(1)
        listing = json.loads(deployment.flwr("list", "deployment", "--format", "json"))
        status = listing["runs"][0]["status"]
    return status


def test_two_sites_give_the_same_result_as_this_process_and_others_are_refused(
    simulation: Simulation, deployment: Deployment, tmp_path: Path, data_dir: Path
):
    settings = {**TINY, "num-clients": 2, "rounds": 1, "cycles": 2}
    deployment.start_server()
    for site in ("a", "b"):
        key = deployment.keys / f"server/sites/{site}.pub"
        deployment.flwr("supernode", "register", str(key), "deployment", "--name", site)
    for partition, site in enumerate(("a", "b")):
        deployment.start_site(site, partition)
    ours = deployment.keys / "server/ca.crt"
    foreign = deployment.folder / "foreign/server/ca.crt"
    unregistered, _ = deployment.start_supernode("stranger", ours, 0, "--max-retries", 1)
    distrusting, _ = deployment.start_supernode("misled", foreign, 0, "--max-retries", 1)
    folders = {"output-dir": str(tmp_path / "deployed"), "data-dir": str(data_dir)}
    overrides = tmp_path / "run.toml"
    overrides.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**settings, **folders}.items())
    )
    deployment.flwr("run", str(_APP), "deployment", "--run-config", str(overrides))
    assert _wait_for_end(deployment) == "finished:completed", deployment.log("serverapps")
    (folder,) = (tmp_path / "deployed").iterdir()
    assert Outcome(folder, "").result == simulation(**settings).result

    assert unregistered.wait(_WAIT_S) != 0
    assert "Failed to activate SuperNode" in deployment.log("stranger")
    assert distrusting.wait(_WAIT_S) != 0
    assert "CERTIFICATE_VERIFY_FAILED" in deployment.log("misled")
    assert len(deployment.running()) >= 6
    deployment.stop()
    assert not deployment.running()
