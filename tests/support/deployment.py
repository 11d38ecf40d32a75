"""A server and its sites on loopback: the processes of the compose files, without containers.

Commands, environments and health checks are those of `docker/`; only paths and addresses,
which containers and networks would keep apart, are replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import compose_files
from support.compose_files import DOCKER

ROOT = DOCKER.parent
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

_PROGRAMS = Path(sys.executable).parent
_ENTRY_POINTS = {
    "superlink": "flower-superlink",
    "superexec": "flower-superexec",
    "supernode": "flower-supernode",
}
_START_TIMEOUT_S = 600
_STOP_TIMEOUT_S = 60
_RESTART_PAUSE_S = 2.0
#: As Docker leaves one alone for longer that ends at once: for a minute Flower takes a node that
#: was killed for connected, and refuses it.
_CRASH_PAUSE_S = 12.0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def processes_of(marker: str, part: str = "") -> dict[int, str]:
    """Return the processes that inherited a test's mark, with their command lines.

    With `part`, only those that one of the deployment's processes has started, and it itself.
    """
    marks = [f"AHFAL_TEST={marker}\0".encode()]
    marks += [f"AHFAL_TEST_PART={part}\0".encode()] if part else []
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes()
            if all(mark in environment for mark in marks):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if int(folder.name) != os.getpid() and command:
                    found[int(folder.name)] = command
    return found


def wait_until(condition: Callable[[], object], timeout_s: float = 600.0) -> None:
    """Wait for something to become true; it is asked often, so that a short moment is met."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s")
        time.sleep(0.1)


@dataclass(frozen=True)
class _Recipe:
    """How a process is started."""

    command: list[str]
    folder: str
    environment: dict[str, str]

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@dataclass
class Deployment:
    """Processes of one deployment, all of which end with it.

    Attributes
    ----------
    folder : Path
        Where logs, homes and states go.
    certificates : Path
        What `ahfal certs` has written.
    superlink, proxy : int
        Ports; sites call the proxy where there is one.
    address : str
        Where sites find the server.
    within : dict[str, list[str]]
        What goes before the command of a process, by its name: a host of its own.
    environments : dict[str, dict[str, str]]
        What a process, by its name, finds in its environment besides.
    left_behind : dict[int, str]
        Processes that did not end with those that had started them, once all is over.
    """

    folder: Path
    certificates: Path
    superlink: int
    proxy: int
    address: str = "127.0.0.1"
    within: dict[str, list[str]] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    left_behind: dict[int, str] = field(default_factory=dict)
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _recipes: dict[str, _Recipe] = field(default_factory=dict)
    _supervisor: threading.Thread | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    @property
    def door(self) -> str:
        """The address that sites call."""
        return f"{self.address}:{self.proxy if NGINX else self.superlink}"

    def start_server(self) -> None:
        """Start SuperLink, SuperExec and, where nginx is installed, the proxy."""
        (health,) = free_ports(1)
        replaced = {
            "/run/secrets": str(self.certificates / "server"),
            "/state": str(self._home("server")),
            "superlink:8000": f"127.0.0.1:{self.superlink}",
            "localhost:8000": f"localhost:{self.superlink}",
            "--port=8000": f"--port={self.superlink}",
            "0.0.0.0": "127.0.0.1",
            "127.0.0.1:9095": f"127.0.0.1:{health}",
            "localhost:8443": f"localhost:{self.proxy}",
            "8443": str(self.proxy),
        }
        self._start("superlink", "compose.server.yaml", "superlink", replaced)
        self._start("server-superexec", "compose.server.yaml", "superexec", replaced)
        if NGINX:
            self._start("proxy", "compose.server.yaml", "proxy", replaced)

    def start_site(self, name: str, node_config: str) -> None:
        """Start a site's SuperNode and SuperExec."""
        port, health = free_ports(2)
        replaced = {
            "/run/secrets": str(self.certificates / "sites" / name),
            "/state": str(self._home(name)),
            "/tmp": str(self._home(f"{name}-supernode")),
            "supernode:9094": f"127.0.0.1:{port}",
            "127.0.0.1:9094": f"127.0.0.1:{port}",
            "--port=9094": f"--port={port}",
            "0.0.0.0": "127.0.0.1",
            "127.0.0.1:9095": f"127.0.0.1:{health}",
        }
        variables = {"AHFAL_SUPERLINK": self.door, "AHFAL_NODE_CONFIG": node_config}
        file = "compose.site.yaml"
        self._start(name, file, "supernode", replaced, variables)
        self._start(f"{name}-superexec", file, "superexec", replaced, variables)

    def supernode_command(self, site: str, certificates: Path | None = None) -> list[str]:
        """Return the command of a site's SuperNode that gives up after one attempt."""
        (port,) = free_ports(1)
        variables = {"AHFAL_SUPERLINK": self.door, "AHFAL_NODE_CONFIG": "partition-id=0"}
        replaced = {
            "/run/secrets": str((certificates or self.certificates) / "sites" / site),
            "--port=9094": f"--port={port}",
            "0.0.0.0": "127.0.0.1",
        }
        services = compose_files.load("compose.site.yaml", variables, replaced)["services"]
        return [*_command("supernode", services["supernode"]), "--max-retries=1"]

    def flwr(self, *arguments: str, address: str | None = None) -> str:
        """Run `flwr` as the service of that name does; return what it printed."""
        home = self._home("flwr")
        text = (DOCKER / "flwr.toml").read_text()
        text = text.replace("superlink:8000", address or f"127.0.0.1:{self.superlink}")
        text = text.replace("/run/secrets", str(self.certificates / "server"))
        (home / "config.toml").write_text(text)
        done = subprocess.run(
            [*self.within.get("flwr", []), str(_PROGRAMS / "flwr"), *arguments],
            cwd=ROOT,
            env={**self._environment({}), "FLWR_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def wait_for_end(self, run: str, timeout_s: float) -> str:
        """Return how a run ended, or its status at the deadline."""
        self._wait_for_server_app(running=True, timeout_s=_START_TIMEOUT_S)
        self._wait_for_server_app(running=False, timeout_s=timeout_s)
        return self.status(run)

    def status(self, run: str) -> str:
        """Return a run's status."""
        arguments = ("list", "deployment", "--run-id", run, "--format", "json")
        # A SuperLink that was killed may not be back yet.
        listing = ""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while '"runs"' not in listing and time.monotonic() < deadline:
            listing = self.flwr(*arguments)
        (found,) = json.loads(listing[listing.index("{") :])["runs"]
        return str(found["status"])

    def _wait_for_server_app(self, *, running: bool, timeout_s: float) -> None:
        """Look at the process: asking Flower each second would take what training needs."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            commands = processes_of(self._marker).values()
            if any("flwr-serverapp" in command for command in commands) == running:
                return
            time.sleep(0.2)

    def supervise(self) -> None:
        """Start each process again that ends, as `restart: unless-stopped` does."""
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def _supervise(self) -> None:
        again: dict[str, float] = {}
        while not self._ending.wait(_RESTART_PAUSE_S):
            now = time.monotonic()
            for name, process in list(self.started.items()):
                if process.poll() is None or now < again.get(name, now):
                    continue
                again[name] = now + _CRASH_PAUSE_S
                self.started[name] = self._recipes[name].start(self.folder / f"{name}.log")

    def kill(self, *names: str) -> None:
        """Kill processes with all that they have started, at once."""
        for name in names:
            for process_id in [self.started[name].pid, *processes_of(self._marker, name)]:
                self.signal(process_id, signal.SIGKILL)

    def signal(self, process_id: int, number: signal.Signals) -> None:
        """Send a signal to a process, which may have ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, number)

    @property
    def _marker(self) -> str:
        return os.environ["AHFAL_TEST"]

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """Return the ends of all logs, for a test's failure."""
        return "\n".join(f"== {name}\n{self.log(name)[-3000:]}" for name in self.started)

    def end(self) -> None:
        """Stop all processes, newest first; note those that what has started them leaves behind."""
        self._ending.set()
        if self._supervisor is not None:
            self._supervisor.join()
        for process in reversed(self.started.values()):
            process.terminate()
        for process in self.started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not processes_of(self._marker), _STOP_TIMEOUT_S)
        self.left_behind = processes_of(self._marker)
        while left := processes_of(self._marker):
            for process_id in left:
                self.signal(process_id, signal.SIGKILL)
            time.sleep(0.1)
        for process in self.started.values():
            process.wait()

    def _home(self, name: str) -> Path:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(_PROGRAMS), os.environ.get("PATH", "")])
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        # The tree that the tests are part of, whatever is installed.
        return {**os.environ, **quiet, **more, "PATH": path, "PYTHONPATH": str(ROOT)}

    def _start(
        self,
        name: str,
        file: str,
        service_name: str,
        replaced: Mapping[str, str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        service = compose_files.load(file, variables, replaced)["services"][service_name]
        # Tools of the tests' machine are found from its own home.
        environment = {k: v for k, v in service["environment"].items() if k != "HOME"}
        if service_name == "proxy":
            command = self._nginx_command(environment)
        else:
            command = _command(service_name, service)
        environment = self._environment({**environment, "AHFAL_TEST_PART": name})
        environment |= self.environments.get(name, {})
        command = [*self.within.get(name, []), *command]
        recipe = _Recipe(command, service.get("working_dir", "/"), environment)
        self._recipes[name] = recipe
        self.started[name] = recipe.start(self.folder / f"{name}.log")
        self._wait_until_healthy(name, service)

    def _nginx_command(self, environment: Mapping[str, str]) -> list[str]:
        """Fill in the template as nginx's image does, below a minimal main file."""
        home = self._home("proxy")
        template = string.Template((DOCKER / "nginx.conf").read_text())
        (home / "default.conf").write_text(template.safe_substitute(environment))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in kinds)
        (home / "nginx.conf").write_text(
            f"daemon off;\npid {home}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}include {home}/default.conf;\n}}\n"
        )
        return [str(NGINX), "-p", str(home), "-c", str(home / "nginx.conf"), "-e", "stderr"]

    def _wait_until_healthy(self, name: str, service: Mapping[str, Any]) -> None:
        check = [*self.within.get(name, []), *_health_command(service)]
        process = self.started[name]
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if subprocess.run(check, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(1.0)
        raise AssertionError(f"{name} is not healthy ({check}):\n{self.log(name)[-3000:]}")


@contextlib.contextmanager
def deployment(folder: Path, certificates: Path) -> Iterator[Deployment]:
    """Run a deployment for as long as the block."""
    superlink, proxy = free_ports(2)
    running = Deployment(folder, certificates, superlink, proxy)
    try:
        yield running
    finally:
        running.end()


def _command(service_name: str, service: Mapping[str, Any]) -> list[str]:
    program, *arguments = service.get("entrypoint", [_ENTRY_POINTS[service_name]])
    return [str(_PROGRAMS / program), *arguments, *service["command"]]


def _health_command(service: Mapping[str, Any]) -> list[str]:
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    own = {"python": sys.executable, "/opt/healthcheck.py": str(DOCKER / "healthcheck.py")}
    return [own.get(word, word) for word in words]
