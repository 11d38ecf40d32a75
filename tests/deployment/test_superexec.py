"""What a site starts: its own code, ClientApps alone, one at a time."""

from __future__ import annotations

import argparse
import inspect
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.constant import FLWR_TASK_TOKEN_LENGTH, RUNTIME_DEPENDENCY_INSTALL
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.types import LaunchResultStatus
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flwr_clientapp import _parse_args_run_flwr_clientapp
from flwr.supernode.runtime import run_clientapp
from support.execution import execution_spec
from typer.testing import CliRunner

from ahfal_app import cli
from ahfal_app.client_app import app as installed
from ahfal_app.deployment import clientapp, superexec, supernode
from ahfal_app.deployment.doctor.finding import Verdict
from ahfal_app.deployment.doctor.processes import check_processes
from ahfal_app.deployment.superexec import SiteExecutor

_PULL = "pull_and_inflate_object_from_tree"


class _Started:
    """Stands for `ForkServer` and `subprocess.Popen`: what runs until it is told to end."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.running = 0
        self.has_ended = False
        self.servers = 0

    def __call__(self, command: list[str] | None = None, **_: object) -> _Started:
        if command is None:
            self.servers += 1
            self.has_ended = False
        else:
            self.start(command)
        return self

    def start(self, command: list[str]) -> None:
        if self.has_ended:
            raise BrokenPipeError
        self.commands.append(command)
        self.running += 1

    def is_busy(self) -> bool:
        return bool(self.running)

    def poll(self) -> int | None:
        return None if self.running else 0

    def close(self) -> None:
        self.servers -= 1


@pytest.fixture(params=["forked", "new processes"])
def started(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> _Started:
    started = _Started()
    monkeypatch.setattr(superexec.fork_server, "IS_POSSIBLE", request.param == "forked")
    monkeypatch.setattr(superexec, "ForkServer", started)
    monkeypatch.setattr(superexec.subprocess, "Popen", started)
    return started


def test_nothing_is_taken_while_a_client_app_runs(started: _Started):
    """However long it takes: Flower offers its task again, and nobody takes it."""
    executor = SiteExecutor()
    everything = set(TaskType)
    assert executor.get_eligible_capacity(everything) == ({TaskType.CLIENT_APP}, set())
    assert executor.launch(execution_spec()).status is LaunchResultStatus.ACCEPTED
    for _ in range(18):
        assert executor.get_eligible_capacity(everything) == (set(), set())
    assert len(started.commands) == 1
    started.running = 0
    assert executor.get_eligible_capacity(everything) == ({TaskType.CLIENT_APP}, set())


@pytest.mark.parametrize("kind", sorted(set(TaskType) - {TaskType.CLIENT_APP}))
def test_nothing_but_client_apps_is_started(started: _Started, kind: TaskType):
    assert SiteExecutor().get_eligible_capacity({kind}) == (set(), set())
    assert SiteExecutor().launch(execution_spec(kind)).status is LaunchResultStatus.FAILED
    assert not started.commands


def test_what_is_started_is_the_installed_code_and_installs_nothing(started: _Started):
    SiteExecutor().launch(execution_spec())
    SiteExecutor().launch(execution_spec(insecure=False, root_certificates_path="/ca.crt"))
    for command in started.commands:
        if not started.servers:
            own = [sys.executable, "-P", "-m", "ahfal_app.deployment.clientapp"]
            assert command[: len(own)] == own
        assert "--allow-runtime-dependency-installation" not in command
        assert command[command.index("--parent-pid") + 1] == "7"
    assert "--insecure" in started.commands[0]
    assert started.commands[1][-4:-2] == ["--root-certificates", "/ca.crt"]


def test_what_client_apps_are_forked_from_is_started_once_and_ends_when_idle(
    monkeypatch: pytest.MonkeyPatch,
):
    started, clock = _Started(), 1000.0
    monkeypatch.setattr(superexec.fork_server, "IS_POSSIBLE", True)
    monkeypatch.setattr(superexec, "ForkServer", started)
    monkeypatch.setattr(superexec.time, "monotonic", lambda: clock)
    executor = SiteExecutor()
    for _ in range(2):
        executor.launch(execution_spec())
        clock += 10 * superexec.KEPT_FOR_S  # A message that takes long is no idle time.
        executor.get_eligible_capacity(set(TaskType))
        started.running = 0
        executor.get_eligible_capacity(set(TaskType))
        assert started.servers == 1
    clock += superexec.KEPT_FOR_S / 2
    executor.get_eligible_capacity(set(TaskType))
    assert started.servers == 1
    clock += superexec.KEPT_FOR_S
    executor.get_eligible_capacity(set(TaskType))
    assert started.servers == 0
    executor.launch(execution_spec())
    assert (started.servers, len(started.commands)) == (1, 3)


def test_what_client_apps_are_forked_from_is_started_again_where_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
):
    started = _Started()
    monkeypatch.setattr(superexec.fork_server, "IS_POSSIBLE", True)
    monkeypatch.setattr(superexec, "ForkServer", started)
    executor = SiteExecutor()
    executor.launch(execution_spec())
    started.running, started.has_ended = 0, True
    assert executor.launch(execution_spec()).status is LaunchResultStatus.ACCEPTED
    assert (started.servers, len(started.commands)) == (1, 2)


def test_what_a_server_sends_is_neither_unpacked_nor_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """By the names that Flower's own process goes by."""
    seen: list[object] = []

    def flowers_process(**arguments: object) -> None:
        run_clientapp.install_from_fab(b"no archive at all", skip_prompt=True)
        load = run_clientapp.get_load_client_app_fn(
            default_app_ref="", app_path=None, multi_app=True
        )
        seen.append(load("evil/app", "1.0.0", "0" * 64))
        seen.append(arguments)

    for name in ("install_from_fab", "get_load_client_app_fn", _PULL):
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(run_clientapp, "run_clientapp", flowers_process)
    token = "0" * FLWR_TASK_TOKEN_LENGTH
    told = ["--runtime-api-address", "127.0.0.1:1", "--token", token, "--insecure"]
    monkeypatch.setattr(sys, "argv", ["clientapp", *told, "--parent-pid", "7"])
    clientapp.main()
    assert seen == [
        installed,
        {
            "runtime_api_address": "127.0.0.1:1",
            "token": token,
            "insecure": True,
            "certificates": None,
            "parent_pid": 7,
            "runtime_dependency_install": RUNTIME_DEPENDENCY_INSTALL,
        },
    ]
    assert not list(tmp_path.iterdir())


def test_what_a_supernode_has_not_yet_is_asked_for_again_soon(monkeypatch: pytest.MonkeyPatch):
    """By Flower's own function, of which everything else stays as it is."""
    waited: list[float] = []

    class _Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None:
                waited.append(timeout)
            return False

    for name in ("install_from_fab", "get_load_client_app_fn", _PULL):
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    monkeypatch.setattr(run_clientapp, "run_clientapp", lambda **_: None)
    clientapp.main(["--token", "0" * FLWR_TASK_TOKEN_LENGTH, "--insecure"])
    monkeypatch.setattr(inflatable_utils.threading, "Event", _Event)
    message = Array(np.arange(3.0))
    contents = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
    missing = Counter(dict.fromkeys(contents, 3))

    def pull(name: str) -> bytes:
        missing[name] -= 1
        if missing[name] >= 0:
            raise ObjectUnavailableError(name)
        return contents[name]

    confirmed: list[str] = []
    pulled = getattr(run_clientapp, _PULL)(
        get_object_tree(message), pull, confirmed.append, return_type=Array
    )
    np.testing.assert_array_equal(pulled.numpy(), np.arange(3.0))
    assert confirmed == [message.object_id]
    assert len(waited) == 3 * len(contents)
    assert sorted(waited)[-1] < 0.5


def test_a_client_app_takes_the_arguments_of_flowers_own():
    """All of them, with the same defaults: what another Flower adds fails here."""

    def taken(parser: argparse.ArgumentParser) -> dict[str, object]:
        return {
            " ".join(action.option_strings): (action.dest, action.default, action.type)
            for action in parser._actions
        }

    ours, flowers = taken(clientapp.parser()), taken(_parse_args_run_flwr_clientapp())
    del (
        ours["--runtime-api-address"],
        flowers["--runtime-api-address"],
    )  # Of which the type is said.
    assert ours == flowers
    address = clientapp.parser().get_default("runtime_api_address")
    assert address == _parse_args_run_flwr_clientapp().get_default("runtime_api_address")
    # And hands them on as Flower's own does.
    names = set(inspect.signature(run_clientapp.run_clientapp).parameters)
    assert names == {
        *("runtime_api_address", "token", "insecure", "certificates", "parent_pid"),
        "runtime_dependency_install",
    }


def test_a_client_apps_process_imports_nothing_of_a_supernode():
    """Each message has such a process: what it imports is most of what a message costs."""
    program = (
        "import sys, ahfal_app.deployment.clientapp, ahfal_app.client_app\n"
        "print([m for m in ('flwr.supernode.cli', 'sqlalchemy', 'sklearn', 'timm', 'torchvision',"
        " 'matplotlib', 'pandas', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_why_the_installed_code_cannot_be_loaded_stays_at_the_site(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(name: str) -> None:
        raise ImportError("/home/erika.mustermann/venv/lib/torch.so: wrong architecture")

    monkeypatch.setattr(clientapp.importlib, "import_module", fail)
    # Flower has a fixed text for errors of this kind, and tells others as they are.
    with pytest.raises(LoadClientAppError):
        clientapp.installed_app()()
    assert "wrong architecture" in caplog.text


def test_the_commands_hand_their_arguments_on(monkeypatch: pytest.MonkeyPatch):
    """To Flower's programs, with AHFAL's parts in them."""
    seen: list[tuple[list[str], object]] = []
    monkeypatch.setattr(run_superexec, "get_executor", run_superexec.get_executor)  # type: ignore[attr-defined]
    monkeypatch.setattr(
        superexec,
        "flower_superexec",
        lambda: seen.append((sys.argv, run_superexec.get_executor("subprocess"))),  # type: ignore[attr-defined]
    )
    monkeypatch.setattr(start_client_internal, "subprocess", subprocess)
    monkeypatch.setattr(
        supernode,
        "flower_supernode",
        lambda: seen.append((sys.argv, start_client_internal.subprocess)),  # type: ignore[attr-defined]
    )
    monkeypatch.setattr(sys, "argv", [])
    run = CliRunner().invoke
    assert run(cli.app, ["superexec", "--insecure", "--help"]).exit_code == 0
    assert run(cli.app, ["supernode", "--node-config", "partition-id=0 a=1"]).exit_code == 0
    assert [argv for argv, _ in seen] == [
        ["flower-superexec", "--insecure", "--help"],
        ["flower-supernode", "--node-config", "partition-id=0 a=1"],
    ]
    assert isinstance(seen[0][1], SiteExecutor)
    assert seen[1][1] is supernode._Processes


def test_a_supernode_starts_ahfals_superexec_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    started = _Started()
    monkeypatch.setattr(supernode.subprocess, "Popen", started)
    supernode._Processes.Popen(["flower-superexec", "--parent-pid", "5"])
    assert started.commands == [
        [sys.executable, "-P", "-m", "ahfal_app.deployment.superexec", "--parent-pid", "5"]
    ]
    with pytest.raises(RuntimeError, match="'sh': expected is 'flower-superexec'"):
        supernode._Processes.Popen(["sh", "-c", "true"])


# --- doctor ------------------------------------------------------------------------------------


@contextmanager
def _client_apps(count: int, *words: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes whose command lines are those of ClientApps."""
    command = [sys.executable, "-c", "import time; time.sleep(600)", *words]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no processes in files")
@pytest.mark.parametrize(
    "words", [("/venv/bin/flwr-clientapp",), ("-m", "ahfal_app.deployment.clientapp")]
)
def test_doctor_notices_client_apps_that_pile_up(words: tuple[str, ...]):
    with _client_apps(1, *words) as processes:
        _wait_until_listed(processes, words)
        before = check_processes()
    with _client_apps(3, *words) as processes:
        _wait_until_listed(processes, words)
        found = check_processes()
    assert before.verdict is Verdict.GOOD
    assert found.verdict is Verdict.WARNING
    assert "3 ClientApps of process" in found.text
    assert "`ahfal supernode`" in found.text


def _wait_until_listed(processes: list[subprocess.Popen[bytes]], words: tuple[str, ...]) -> None:
    """Wait until each has become the program that it is told to be."""
    for process in processes:
        path = Path(f"/proc/{process.pid}/cmdline")
        while words[-1].encode() not in path.read_bytes():
            time.sleep(0.01)


def test_where_processes_are_not_in_files_nothing_is_found(tmp_path: Path):
    assert check_processes(tmp_path).verdict is Verdict.GOOD
