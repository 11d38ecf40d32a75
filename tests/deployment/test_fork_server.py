"""ClientApps that are forked: each alone, none left over, of the code that is installed now."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from support.execution import execution_spec

from ahfal_app.deployment import fork_server, superexec
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
    # Without an empty one, which would be the folder that this runs in.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    monkeypatch.setattr(fork_server, "_COMMAND", (sys.executable, str(program)))
    return path


def _write(path: Path, version: str) -> None:
    """Write the module as if it had been there for long."""
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
    _age(path, _AGES[version])


#: When each version was written, as the file system has it: before anything here began.
_AGES = {"first": 10**18, "second": 11 * 10**17, "third": 12 * 10**17}


def _age(path: Path, changed_ns: int) -> None:
    os.utime(path, ns=(changed_ns, changed_ns))


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
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # One that nobody has waited for has ended all the same.
    return status.rpartition(")")[2].split()[0] != "Z"


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_end_that_are_told_together(module: Path, tmp_path: Path, number: signal.Signals):
    """As Ctrl-C at a terminal and `systemctl stop` tell them."""
    program = textwrap.dedent(
        f"""\
        import time
        from ahfal_app.deployment import fork_server
        fork_server._COMMAND = {fork_server._COMMAND!r}
        server = fork_server.ForkServer()
        server.start([{str(tmp_path)!r}, "one", "never"])
        time.sleep(600)
        """
    )
    asking = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    _, pid, server = _told(tmp_path / "one")
    os.killpg(asking.pid, number)
    assert asking.wait(_PATIENCE_S) != 0
    _until(lambda: not _runs(pid))
    _until(lambda: not _runs(server))


def test_an_idle_one_ends_at_once(module: Path, tmp_path: Path):
    server = ForkServer()
    server.start([str(tmp_path), "one"])
    _until(lambda: not server.is_busy())
    server.close()
    _until(lambda: server._process.poll() is not None)
    assert server._process.returncode == 0


def test_code_that_changes_while_it_is_imported_is_imported_again(module: Path, tmp_path: Path):
    """Or what runs would be old for ever, and its hash, which is of the disk, that of the new."""
    _write(module, "first")
    slow = module.with_name("slow.py")
    waits = "import time\nfrom pathlib import Path\n"
    waits += f"while not Path({str(tmp_path / 'go')!r}).exists():\n    time.sleep(0.01)\n"
    slow.write_text(waits, encoding="utf-8")
    _age(slow, _AGES["first"])
    # It is imported after the module has been read.
    module.write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'read')!r}).touch()\n"
        + module.read_text(encoding="utf-8")
        + "\n\nimport slow\n",
        encoding="utf-8",
    )
    _age(module, _AGES["first"])
    server = ForkServer()
    server.start([str(tmp_path), "one"])
    _until((tmp_path / "read").exists)
    _write(module, "second")
    os.utime(module)  # Now.
    (tmp_path / "go").touch()
    assert _told(tmp_path / "one")[0] == "second"
    _until(lambda: not server.is_busy())
    server.close()


@pytest.mark.parametrize("when", ["at first", "as code is loaded anew"])
def test_a_server_that_ends_before_it_reads_a_request_is_free_again(
    monkeypatch: pytest.MonkeyPatch, module: Path, tmp_path: Path, when: str
):
    """The SuperExec that asks it goes on, as after any ClientApp that could not start."""
    program = Path(fork_server._COMMAND[1])
    if when == "at first":
        program.write_text("raise SystemExit(1)\n", encoding="utf-8")
    server = ForkServer()
    if when != "at first":
        server.start([str(tmp_path), "one"])
        _told(tmp_path / "one")
        _until(lambda: not server.is_busy())
        program.write_text("raise SystemExit(1)\n", encoding="utf-8")
        _write(module, "second")
    with contextlib.suppress(OSError):  # Where it has ended already.
        server.start([str(tmp_path), "two"])
    _until(lambda: not server.is_busy())
    _until(lambda: server._process.poll() is not None)
    with pytest.raises(BrokenPipeError):
        server.start([str(tmp_path), "three"])
    server.close()


def test_a_site_goes_on_after_its_fork_server_failed(
    monkeypatch: pytest.MonkeyPatch, module: Path, tmp_path: Path
):
    program = Path(fork_server._COMMAND[1])
    sound = program.read_text(encoding="utf-8")
    program.write_text("raise SystemExit(1)\n", encoding="utf-8")
    executor = superexec.SiteExecutor()
    monkeypatch.setattr(executor, "_arguments", lambda spec: [str(tmp_path), spec.token])
    everything = set(TaskType)

    def is_free() -> bool:
        return bool(executor.get_eligible_capacity(everything)[0])

    executor.launch(execution_spec(token="one"))
    _until(is_free)
    program.write_text(sound, encoding="utf-8")
    executor.launch(execution_spec(token="two"))
    _told(tmp_path / "two")
    _until(is_free)
    executor.close()


def test_without_anything_to_write_to_messages_are_served(module: Path, tmp_path: Path):
    """As where a service has been started with its output closed."""
    program = textwrap.dedent(
        f"""\
        import os, sys, time
        os.close(1), os.close(2)
        from ahfal_app.deployment import fork_server
        fork_server._COMMAND = {fork_server._COMMAND!r}
        server = fork_server.ForkServer()
        server.start([{str(tmp_path)!r}, "one"])
        while server.is_busy(): time.sleep(0.01)
        server.close()
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=_PATIENCE_S)
    assert _told(tmp_path / "one")[0] == "first"


def test_a_server_that_is_told_to_ignore_ended_processes_waits_for_them(
    module: Path, tmp_path: Path
):
    """As it may be inherited: two ClientApps of the same server all the same."""
    program = textwrap.dedent(
        f"""\
        import signal, time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        from ahfal_app.deployment import fork_server
        fork_server._COMMAND = {fork_server._COMMAND!r}
        server = fork_server.ForkServer()
        for name in ("one", "two"):
            server.start([{str(tmp_path)!r}, name])
            while server.is_busy(): time.sleep(0.01)
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=_PATIENCE_S)
    (_, first, server), (_, second, same) = (_told(tmp_path / name) for name in ("one", "two"))
    assert server == same
    assert first != second


def test_the_end_comes_before_new_code(server: ForkServer, module: Path, tmp_path: Path):
    """As in an upgrade that restarts the site: nothing is imported only to end."""
    server.start([str(tmp_path), "one"])
    _told(tmp_path / "one")
    _until(lambda: not server.is_busy())
    module.write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n",
        encoding="utf-8",
    )
    server.close()
    _until(lambda: server._process.poll() is not None)
    assert not (tmp_path / "imported").exists()


def test_forks_draw_different_numbers(module: Path, tmp_path: Path):
    """From the generators that a process has from the beginning."""
    module.write_text(
        "import sys\nfrom pathlib import Path\nimport numpy, torch\n\n\n"
        "def main(arguments):\n"
        "    drawn = f'{torch.rand(1).item()} {numpy.random.rand()}'\n"
        "    Path(*arguments).write_text(drawn)\n",
        encoding="utf-8",
    )
    _age(module, _AGES["first"])
    server = ForkServer()
    drawn = []
    for name in ("one", "two"):
        server.start([str(tmp_path), name])
        _until(lambda: not server.is_busy())
        drawn.append((tmp_path / name).read_text(encoding="utf-8").split())
    server.close()
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


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


def test_what_is_imported_before_a_fork_has_no_threads_and_asks_for_no_accelerator():
    """A lock that another thread held would be held for ever in a fork, and CUDA begins once."""
    program = """if True:
        import importlib, os, threading
        import torch

        asked = []
        for name in ("is_available", "device_count", "init", "_lazy_init"):
            setattr(torch.cuda, name, lambda *_, name=name, **__: asked.append(name) or 0)
        from ahfal_app.deployment import fork_server

        for name in fork_server._MODULES:
            importlib.import_module(name)
        tasks = os.listdir("/proc/self/task")
        named = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
        # Of pyarrow's memory, which knows of forks.
        print(threading.active_count(), len([n for n in named if n != "jemalloc_bg_thd"]), asked)
    """
    # OpenBLAS has threads, too, and knows of forks.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.split() == ["1", "1", "[]"]
