"""ClientApps that are forked: each alone, none left over, of the code that is installed now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ahfal_app.deployment import fork_server
from ahfal_app.deployment.doctor.processes import check_processes
from ahfal_app.deployment.fork_server import ForkServer

pytestmark = pytest.mark.skipif(not fork_server.IS_POSSIBLE, reason="nothing is forked here")

#: Long enough for a machine that is busy with other tests.
_PATIENCE_S = 120.0


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in place of a ClientApp: it writes who it is, and waits where it is told to."""
    path = tmp_path / "code" / "told.py"
    path.parent.mkdir()
    _write(path, "first")
    # What is imported in place of the ClientApp's, by a program with the fork server in it.
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """\
            import sys

            from ahfal_app.deployment import fork_server

            fork_server._MODULES = ("told",)
            fork_server._COMMAND = (sys.executable, __file__)
            fork_server.main()
            """
        ),
        encoding="utf-8",
    )
    folders = [str(path.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    monkeypatch.setattr(fork_server, "_COMMAND", (sys.executable, str(program)))
    return path


def _write(path: Path, version: str) -> None:
    path.write_text(
        textwrap.dedent(
            f"""\
            import os
            import sys
            import time
            from pathlib import Path


            def main(arguments):
                folder, name, *waits = arguments
                text = f"{version} {{os.getpid()}} {{os.getppid()}}"
                (Path(folder) / "part").write_text(text)
                os.replace(Path(folder) / "part", Path(folder) / name)
                while waits and not (Path(folder) / waits[0]).exists():
                    time.sleep(0.01)
                sys.exit(3)
            """
        ),
        encoding="utf-8",
    )


@pytest.fixture
def server(module: Path) -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()
    _until(lambda: server._process.poll() is not None)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def _told(path: Path) -> tuple[str, int, int]:
    """Wait for what a ClientApp has written: the code's version, its process, that one's parent."""
    _until(path.exists)
    version, own, parent = path.read_text(encoding="utf-8").split()
    return version, int(own), int(parent)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_is_a_process_of_its_own_and_the_server_knows_when_it_ends(
    server: ForkServer, tmp_path: Path
):
    assert not server.is_busy()
    server.start([str(tmp_path), "one", "go"])
    _, first, parent = _told(tmp_path / "one")
    assert parent == server._process.pid
    assert server.is_busy()
    (tmp_path / "go").touch()
    _until(lambda: not server.is_busy())
    assert not _runs(first)
    server.start([str(tmp_path), "two"])
    _, second, parent = _told(tmp_path / "two")
    assert parent == server._process.pid
    assert second != first
    _until(lambda: not server.is_busy())


def test_code_that_was_installed_meanwhile_is_what_runs(
    server: ForkServer, module: Path, tmp_path: Path
):
    server.start([str(tmp_path), "one"])
    assert _told(tmp_path / "one")[0] == "first"
    _until(lambda: not server.is_busy())
    _write(module, "second")
    os.utime(module, ns=(1, 1))
    server.start([str(tmp_path), "two"])
    version, _, parent = _told(tmp_path / "two")
    assert (version, parent) == ("second", server._process.pid)
    _until(lambda: not server.is_busy())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_client_app_is_interrupted_as_any_process_and_the_next_one_runs(
    server: ForkServer, tmp_path: Path, number: signal.Signals
):
    server.start([str(tmp_path), "one", "never"])
    _, pid, _ = _told(tmp_path / "one")
    os.kill(server._process.pid, number)  # To which it does not listen.
    os.kill(pid, number)
    _until(lambda: not server.is_busy())
    assert not _runs(pid)
    server.start([str(tmp_path), "two"])
    _told(tmp_path / "two")
    _until(lambda: not server.is_busy())


def test_none_is_left_over_where_the_server_is_killed(server: ForkServer, tmp_path: Path):
    """It is busy until the ClientApp has ended, too: another one would run beside it."""
    server.start([str(tmp_path), "one", "never"])
    _, pid, _ = _told(tmp_path / "one")
    server._process.kill()
    _until(lambda: not server.is_busy())
    _until(lambda: not _runs(pid))
    with pytest.raises(BrokenPipeError):
        server.start([str(tmp_path), "two"])


def test_it_ends_with_the_client_app_where_nobody_asks_any_more(module: Path, tmp_path: Path):
    server = ForkServer()
    server.start([str(tmp_path), "one", "go"])
    _, pid, _ = _told(tmp_path / "one")
    server.close()
    assert _runs(pid)
    assert server._process.poll() is None
    (tmp_path / "go").touch()
    _until(lambda: server._process.poll() is not None)
    assert not _runs(pid)


def test_an_idle_one_ends_at_once(module: Path, tmp_path: Path):
    server = ForkServer()
    server.start([str(tmp_path), "one"])
    _until(lambda: not server.is_busy())
    server.close()
    assert server._process.returncode == 0


def test_a_client_app_that_cannot_be_loaded_ends_and_the_next_one_is_tried(
    server: ForkServer, module: Path, tmp_path: Path
):
    server.start([str(tmp_path), "zero"])
    _until(lambda: not server.is_busy())
    module.write_text("raise RuntimeError('no driver')\n", encoding="utf-8")
    server.start([str(tmp_path), "one"])
    _until(lambda: not server.is_busy())
    assert not (tmp_path / "one").exists()
    _write(module, "third")
    server.start([str(tmp_path), "two"])
    assert _told(tmp_path / "two")[0] == "third"
    _until(lambda: not server.is_busy())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no processes in files")
def test_doctor_counts_forks_and_not_what_they_are_forked_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    forking = ["python", "-m", "ahfal_app.deployment.fork_server", "3"]
    for pid, parent, words in (
        (10, 1, ["python", "-m", "ahfal_app.deployment.superexec"]),
        (11, 10, forking),
        (12, 11, forking),
        (20, 1, ["python", "-m", "ahfal_app.deployment.superexec"]),
        (21, 20, forking),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in words))
        (folder / "status").write_text(f"Name:\tpython\nPPid:\t{parent}\n", encoding="utf-8")
    assert "1 ClientApps are running" in check_processes(tmp_path).text


def test_what_is_imported_before_a_fork_has_no_threads_and_no_accelerator():
    """A lock that another thread held would be held for ever in a fork, and CUDA begins once."""
    program = (
        "import importlib, threading\n"
        "from ahfal_app.deployment import fork_server\n"
        "for name in fork_server._MODULES: importlib.import_module(name)\n"
        "import torch\n"
        "print(threading.active_count(), torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False"]
