from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# What is compiled is small: processes that wait to help would each import torch first.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# Imported where it is used: the process that deals the tests out needs none of it.
if TYPE_CHECKING:
    from support.devtools import Chromium
    from support.simulation import SharedRuns, Simulation

# Tests are never about time, and a busy machine may pause any of them. Each run draws examples of
# its own, so that a third of the usual number still finds over time what there is to find.
settings.register_profile("untimed", deadline=None, max_examples=35)
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores: tests wait for disks, browsers and other processes."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have each process begin with slow tests, so that short ones are left to fill what remains.

    xdist gives each process as many tests in a row; those of a file stay together.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    if not slow or not fast:
        return
    processes = int(getattr(config, "workerinput", {}).get("workercount", 1))
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for _, of_file in groupby(slow, key=lambda item: item.path):
        min(shares, key=len).extend(of_file)
    for share in shares[:-1]:
        room = max(0, len(items) // processes - len(share))
        share.extend(fast[:room])
        del fast[:room]
    items[:] = [item for share in [*shares, fast] for item in share]


def pytest_collection_finish() -> None:
    """Make a process that is about to run tests fast at them.

    Each collection of garbage is spared the million objects that imports have made; some
    libraries collect with each call, and each time that would take half a second.
    """
    import torch
    from support.charts import leave_out_charts
    from support.syncing import stop_waiting

    # Tensors are small here: on a busy machine more threads wait for each other.
    torch.set_num_threads(1)
    stop_waiting()
    leave_out_charts()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _memory_given_back() -> Iterator[None]:
    """Give freed memory back to the system, which training tells the C library to keep."""
    yield
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _no_wait_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a site's files for settled at once: each test has just written them all."""
    clock = SimpleNamespace(time=time.time, time_ns=time.time_ns, sleep=lambda seconds: None)
    monkeypatch.setattr("ahfal_app.data.site.settling.time", clock)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded data, shared by all tests and by nothing else."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def simulation(tmp_path: Path, data_dir: Path) -> Simulation:
    from support.simulation import Simulation

    return Simulation(tmp_path / "runs", data_dir)


@pytest.fixture(scope="session")
def shared_runs(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, data_dir: Path
) -> SharedRuns:
    """Runs that several tests look at, each made once; nobody may change one."""
    from support.simulation import SharedRuns

    own = tmp_path_factory.getbasetemp()
    return SharedRuns((own if worker_id == "master" else own.parent) / "shared-runs", data_dir)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Start a browser for all tests of a process: each opens tabs of its own."""
    from support.devtools import chromium

    with chromium(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture
def charts() -> Iterator[None]:
    """Draw charts, which are left out otherwise."""
    from support.charts import with_charts

    with with_charts():
        yield


@pytest.fixture(name="sweeps_here")
def _sweeps_here() -> Iterator[None]:
    from support.sweeps import sweeps_here

    with sweeps_here():
        yield
