from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.simulation import Simulation

# Tensors are small here: on a busy machine more threads wait for each other.
torch.set_num_threads(1)

# Tests are never about time, and a busy machine may pause any of them.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded data, shared by all tests and by nothing else."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def simulation(tmp_path: Path, data_dir: Path) -> Simulation:
    return Simulation(tmp_path / "runs", data_dir)
