from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from support.official import Agreement


@pytest.fixture(scope="session")
def agreement() -> Iterator[Agreement]:
    """Collects what was found; `AHFAL_OFFICIAL_TABLE` names a file for the table."""
    found = Agreement()
    yield found
    found.write(os.environ)


@pytest.fixture
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `.cuda()`, which the authors' code calls everywhere, stay on the CPU."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
