"""Who labels: oracles by name, one file each.

An oracle is told of a request and asked for its answers; both may be repeated, and
answers may come in part, in any order, again, after milliseconds or after days.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol

from ahfal_app.errors import ConfigError
from ahfal_app.labels import LabelReceipt, LabelRequest


class Oracle(Protocol):
    """Labels samples on request."""

    def submit(self, request: LabelRequest) -> None:
        """Take a request; a repeated one changes nothing."""
        ...

    def collect(self, request_id: str) -> list[LabelReceipt]:
        """Return the answers that are there: any part, in any order, repeats allowed."""
        ...


def oracle_names() -> tuple[str, ...]:
    """Return the names of all oracles: one module of this package each."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def make_oracle(name: str, truth: Mapping[int, int]) -> Oracle:
    """Return an oracle by name.

    Parameters
    ----------
    name : str
        One of `oracle_names()`.
    truth : Mapping[int, int]
        Class index by sample id, as far as the data set has labels; only the simulated
        oracle reads it.

    Raises
    ------
    ConfigError
        No oracle has this name.
    """
    if name not in oracle_names():
        raise ConfigError([f"oracle={name!r}: allowed is {' | '.join(oracle_names())}"])
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    oracle: Oracle = module.make(truth)
    return oracle
