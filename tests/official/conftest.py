from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.official import Agreement


@pytest.fixture(scope="session")
def agreement() -> Iterator[Agreement]:
    """Collects what was found; `AHFAL_OFFICIAL_TABLE` names the page for the table."""
    found = Agreement()
    yield found
    found.write(os.environ)


def _moved(self: Any, moves: Any, *where: Any, **options: Any) -> Any:
    return self if where == ("cuda",) else moves(self, *where, **options)


@pytest.fixture
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `.cuda()` and `.to("cuda")`, which the authors' code has everywhere, stay on the CPU."""
    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "to", functools.partialmethod(_moved, kind.to))
        monkeypatch.setattr(kind, "cuda", lambda self, *device, **options: self)


@pytest.fixture
def _double() -> Iterator[None]:
    """Have tensors that the authors' code makes be of double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
