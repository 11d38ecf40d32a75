"""Reports without their pictures, which take Matplotlib longer than a small run takes.

Tests in this process go without; those that look at pictures ask for them. Programs that tests
start draw theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from ahfal_app.experiments import charts
from ahfal_app.results import svg

#: Who draws charts of sweeps.
OF_SWEEPS = (charts,)

_DRAWN = svg._drawn


def leave_out_charts() -> None:
    """Leave charts empty from now on; all else of a report is made, also their numbers."""
    svg._drawn = _empty


@contextmanager
def with_charts(users: tuple[ModuleType, ...] = ()) -> Iterator[None]:
    """Draw charts as the programs do, or those of some modules alone."""
    names = {user.__name__ for user in users}

    def drawn(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
        is_wanted = not names or draw.__module__ in names
        return (_DRAWN if is_wanted else _empty)(name, size, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg, "_drawn", drawn)
        yield


@contextmanager
def with_sketches(users: tuple[ModuleType, ...] = OF_SWEEPS) -> Iterator[None]:
    """Draw charts of some modules, but write no pictures of them, which takes longest."""
    names = {user.__name__ for user in users}

    def drawn(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
        if draw.__module__ in names:
            draw(Figure(figsize=size))
        return _empty(name, size, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg, "_drawn", drawn)
        yield


def _empty(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    return b"<svg></svg>"
