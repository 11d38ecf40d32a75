"""AHFAL: federated active learning on Flower.

`run` and `sweep` are the library calls. Importing the package is cheap: nothing here imports
torch or Flower before one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ahfal_app.code_version import __version__

if TYPE_CHECKING:
    from ahfal_app.api import RunResult, SweepResult, run, sweep

__all__ = ["RunResult", "SweepResult", "__version__", "run", "sweep"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("ahfal_app.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
