"""Flower's simulation, started so that its exit code tells the truth.

`flwr run` alone makes a new environment for each run, leaves a background SuperLink whose
working directory is that of the first run, and exits with 0 when a run failed. Here every
run has a SuperLink of its own, in a home of its own, that ends with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console

from ahfal_app.code_version import PACKAGE_FOLDER
from ahfal_app.config import DEFAULT_NUM_CLIENTS, MORE, Settings, expanded
from ahfal_app.engine.local import refuse_sites
from ahfal_app.engine.stopping import stopped_by_signals, undisturbed
from ahfal_app.errors import EngineError
from ahfal_app.results.reading import read_run
from ahfal_app.results.run_folder import free_run_name
from ahfal_app.server.extension import saying
from ahfal_app.server.preflight import check_data, check_settings, with_absolute_paths
from ahfal_app.training.choices import resolve_device

_APP_FOLDER = PACKAGE_FOLDER.parent
_START_TIMEOUT_S = 60
_MOST_PROCESSES_ON_GPU = 4
# Less than the ten seconds that `docker stop` leaves before it kills.
_STOP_TIMEOUT_S = 5
_KILL_TIMEOUT_S = 30
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def run_on_flower(values: Mapping[str, object], console: Console) -> Path:
    """Run a simulation on Flower's engine, with one virtual SuperNode for each client.

    Returns
    -------
    Path
        The run's folder.

    Raises
    ------
    ConfigError
        A setting cannot be used; Flower is not started.
    PartitionError
        There is no split of the data as the settings want it.
    EngineError
        Flower cannot be started, or the run failed.
    """
    refuse_sites(values)
    settings = check_settings(values)
    num_clients = settings.num_clients or _clients_before(settings) or DEFAULT_NUM_CLIENTS
    if not settings.resume:
        check_data(settings.model_copy(update={"num_clients": num_clients}))
    if not (_APP_FOLDER / "pyproject.toml").is_file():
        raise EngineError(
            f"{_APP_FOLDER}: no pyproject.toml there; Flower's engine runs from a checkout of the "
            "project, the in-process engine from anywhere"
        )
    with stopped_by_signals(), tempfile.TemporaryDirectory(prefix="ahfal-flower-") as home:
        config = Path(home) / "run-config.toml"
        # Flower's processes have another working directory.
        settings = with_absolute_paths(settings)
        if not settings.resume:
            settings = settings.model_copy(update={"name": free_run_name(settings)})
        said = saying(values, settings) if settings.resume else {}
        config.write_text(_run_config(settings.to_flat(), said))
        _run(Path(home), config, num_clients, settings.device, console)
    return Path(settings.resume or Path(settings.output_dir) / settings.name)


def _clients_before(settings: Settings) -> int:
    """Return the number of clients of the run that is resumed, or 0."""
    if not settings.resume:
        return 0
    return read_run(expanded("resume", settings.resume)).settings.num_clients


def _gpus(device: str) -> str:
    """Return what gives each client a share of a GPU, where training is to run on one."""
    if resolve_device(device).type != "cuda":
        return ""
    share = share_of_gpu(torch.cuda.device_count(), os.cpu_count() or 1)
    return f" client-resources-num-gpus={share:.4f}"


def share_of_gpu(gpus: int, cores: int) -> float:
    """Return a client's share of a GPU, so that as many are served at once as there are cores.

    Each process has the data set and a context of its own on the GPU: at most so many share one.
    It is rounded down, or one client fewer would have room.
    """
    share = max(gpus / cores, 1 / _MOST_PROCESSES_ON_GPU)
    return math.floor(min(1.0, share) * 10_000) / 10_000


def _run(home: Path, config: Path, num_clients: int, device: str, console: Console) -> None:
    port = _free_port()
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        # Flower finds its own programs on the path.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    console.print("starting Flower's simulation", highlight=False)
    with _superlink(home, port, environment):
        federation = f"num-supernodes={num_clients} client-resources-num-cpus=1{_gpus(device)}"
        arguments = ["--stream", "--run-config", str(config), "--federation-config", federation]
        command = [_program("flwr"), "run", str(_APP_FOLDER), *arguments]
        started = subprocess.run(command, cwd=home, env=environment, check=False)
        if started.returncode:
            raise EngineError(f"`flwr run` ended with exit code {started.returncode}")
        _check_outcome(home, environment)


@contextlib.contextmanager
def _superlink(home: Path, port: int, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a SuperLink where `flwr` looks for the local one, and end it with its children."""
    command = [
        _program("flower-superlink"),
        "--insecure",
        "--simulation",
        "--isolation",
        "subprocess",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--database", str(home / "state.db")]
    superlink = None
    try:
        with (home / "superlink.log").open("wb") as log:
            superlink = subprocess.Popen(
                command,
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _wait_until_healthy(superlink, port, home / "superlink.log")
        yield
    finally:
        with undisturbed():
            _end(superlink, home)


def _wait_until_healthy(superlink: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and superlink.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1),
        ):
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise EngineError(f"Flower's SuperLink did not start within {_START_TIMEOUT_S} s:\n{tail}")


def _end(superlink: subprocess.Popen[bytes] | None, home: Path) -> None:
    """Stop the SuperLink, then whatever still runs in this home, Ray included."""
    if superlink is not None:
        superlink.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            superlink.wait(_STOP_TIMEOUT_S)
    # Those that are being started right now show up at the next look.
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (left := _processes_of(home)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if superlink is not None:
            superlink.poll()
        time.sleep(0.05)


def _processes_of(home: Path) -> list[int]:
    """Return the processes whose environment has this home; children inherit it."""
    marker = f"FLWR_HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _check_outcome(home: Path, environment: Mapping[str, str]) -> None:
    """Ask Flower how the run ended, since `flwr run --stream` exits with 0 either way."""
    listing = subprocess.run(
        [_program("flwr"), "list", "--format", "json"],
        cwd=home,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    try:
        (run,) = json.loads(listing.stdout)["runs"]
        status, details = run["status"], run.get("status-details", "")
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"`flwr list` gave no run: {listing.stdout}{listing.stderr}") from error
    if status != "finished:completed":
        raise EngineError(f"the run ended as {status}: {details}")


def _program(name: str) -> str:
    """Return a program of this Python environment."""
    return str(Path(sys.executable).parent / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_config(values: Mapping[str, object], said: Mapping[str, object] | None = None) -> str:
    """Return settings as TOML that Flower takes; JSON writes most scalars the same way.

    Flower refuses keys that the manifest does not list, such as the parameters of another
    package's component: those travel in one that it lists. So does what a person has said to be
    as it is by default, which nobody could tell from what was not said.
    """
    manifest = tomllib.loads((_APP_FOLDER / "pyproject.toml").read_text())
    listed = _flat(manifest["tool"]["flwr"]["app"]["config"])
    own = {key: value for key, value in values.items() if key in listed}
    more = {key: value for key, value in values.items() if key not in listed}
    more |= said or {}
    own[MORE] = shlex.join(f"{key}={_written(value)}" for key, value in more.items())
    return "".join(f"{_written(key)} = {_written(value)}\n" for key, value in own.items())


def _written(value: object) -> str:
    """Return a scalar as TOML and YAML read it: JSON, but for what both want escaped or not."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _flat(table: Mapping[str, object], prefix: str = "") -> set[str]:
    """Return the keys of a TOML table with those of its tables, joined by dots."""
    keys = set[str]()
    for key, value in table.items():
        keys |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return keys
