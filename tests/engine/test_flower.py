"""Real `flwr run`: the same result as in this process, and an exit code that is true."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.patients import write_patients
from support.simulation import TINY, Outcome, Simulation
from support.small_backbone import SETTINGS as BACKBONE

from ahfal_app.engine import flower
from ahfal_app.results.status import State, read_status

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every process that this test starts inherits it; other tests may run beside this one."""
    monkeypatch.setenv("AHFAL_TEST", str(tmp_path))
    return str(tmp_path)


def _command(**values: object) -> list[str]:
    settings = [f"{key}={value}" for key, value in {**TINY, **values}.items()]
    return [sys.executable, "-m", "ahfal_app", "run", "--engine", "flower", *settings]


def _processes_of_flower(marker: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        is_of_this_test = f"AHFAL_TEST={marker}\0".encode() in environment
        if is_of_this_test and b"ahfal-flower-" in environment:
            found.append(command)
    return found


def _vectors(folder: Path) -> dict[str, object]:
    """Return settings of a run on vectors that all clients standardise alike.

    They choose together, each message in any process.
    """
    path = write_patients(folder / "patients.parquet", slice(0, 200))
    few = {"initial-labels": 8, "query-labels": 4, "target-labels": 12}
    own = {"dataset": str(path), "model": "auto", "strategy": "coordinated-typicality"}
    return {**few, **own}


def _images(folder: Path) -> dict[str, object]:
    """Return settings of a run on features of images and of their views.

    Images come over time, and look different then.
    """
    return {
        **BACKBONE,
        "max-train-samples": 200,
        "augment": "crop",
        "feature-views": 1,
        "arrivals": "count",
        "arrival-start": 20,
        "arrival-rate": 10,
        "arrival-order": "prior-drift",
        "arrival-order.path": "walk",
        "pool-memory": 1,
        "covariate-drift": "noise",
        "forget": 2.0,
    }


@pytest.mark.parametrize(
    "data", [_images, _vectors], ids=["images that come", "vectors, chosen together"]
)
def test_flowers_simulation_gives_the_same_result_as_this_process(
    data: Callable[[Path], dict[str, object]],
    simulation: Simulation,
    tmp_path: Path,
    data_dir: Path,
    marker: str,
):
    """With secure sums, on frozen features and on vectors; convolutions: tests of deployments."""
    settings = {**data(tmp_path), "privacy": "secure-aggregation", "cycles": 2}
    folders = {"output-dir": tmp_path / "flower", "data-dir": data_dir}
    done = subprocess.run(
        _command(**settings, **folders),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "flower").iterdir()
    assert str(folder / "report.html") in done.stdout
    assert Outcome(folder, "").result == simulation(settings).result
    status = read_status(folder)
    assert status is not None
    assert (status.state, len(status.sites)) == (State.FINISHED, 3)
    assert not _processes_of_flower(marker)


def test_a_failed_run_is_an_error(simulation: Simulation, marker: str):
    """Flower itself exits with 0 here."""
    folder = simulation(cycles=2, **{"client-state": "memory"}).folder
    command = [sys.executable, "-m", "ahfal_app", "run", "--engine", "flower", f"resume={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EngineError" in done.stderr
    assert "have lost labels" in done.stdout + done.stderr
    assert not _processes_of_flower(marker)


def test_a_signal_from_outside_stops_everything(tmp_path: Path, data_dir: Path, marker: str):
    """As `docker stop` and Slurm send it; all signals: `test_signals.py`."""
    with _running(tmp_path, data_dir) as process:
        assert _processes_of_flower(marker)
        # It reaches this process alone; impatient people and systems tell it again.
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        process.stdout.read()
    assert process.wait(60) == 143
    _gone(marker)


def test_a_signal_that_is_to_be_ignored_is_ignored(tmp_path: Path, data_dir: Path, marker: str):
    """As `nohup` has it; it ends by Ctrl-C, which reaches the whole group."""
    with _running(tmp_path, data_dir, ignored=signal.SIGHUP) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        line = next(line for line in process.stdout if "cycle 1/3 round" in line)
        assert line
        os.killpg(process.pid, signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.wait(60) == 130
    _gone(marker)


@contextlib.contextmanager
def _running(
    tmp_path: Path, data_dir: Path, ignored: signal.Signals | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a run of many rounds, and wait until its first one is over."""

    def set_signals() -> None:
        # A shell that started the tests in the background would have some ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        _command(**{"output-dir": tmp_path, "data-dir": data_dir, "rounds": 500}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=set_signals,
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if "cycle 1/3 round" in line:
                break
        yield process


def _gone(marker: str) -> None:
    # Ray's agents take their time.
    deadline = time.monotonic() + 90
    while _processes_of_flower(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _processes_of_flower(marker)


def test_flwr_run_as_in_the_readme_with_two_clients(tmp_path: Path, data_dir: Path):
    """Plain `flwr run .`: the number of clients is Flower's default."""
    home = tmp_path / "flwr"
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "39391",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    overrides = (
        f'output-dir="{tmp_path / "runs"}" data-dir="{data_dir}" rounds=2 cycles=2 local-epochs=1'
    )
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            ["flwr", "run", str(root), "--stream", "--run-config", overrides],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["pkill", "-f", f"flower-superlink.*{home}"], check=False)
    (folder,) = (tmp_path / "runs").iterdir()
    outcome = Outcome(folder, done.stdout)
    assert outcome.summary["complete"], done.stdout
    assert outcome.summary["num_clients"] == 2
    assert str(folder / "report.html") in done.stdout


@pytest.mark.parametrize(
    ("gpus", "cores", "most"), [(1, 3, 3), (1, 4, 4), (1, 16, 4), (3, 7, 6), (6, 13, 12), (8, 2, 8)]
)
def test_as_many_clients_share_the_gpus_as_are_meant_to(gpus: int, cores: int, most: int) -> None:
    """A share that is rounded up leaves room for one fewer."""
    share = float(f"{flower.share_of_gpu(gpus, cores):.4f}")
    assert gpus * int(1 / share) == most
