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
from ahfal_app.results import figures, heat_maps, svg
from ahfal_app.results.svg import Chart

#: Who draws charts of sweeps, and who else does.
OF_SWEEPS = (charts,)
_ALL = (figures, heat_maps, charts)


def leave_out_charts() -> None:
    """Leave charts empty from now on; all else of a report is made, also their numbers."""
    for user in _ALL:
        user.draw_chart = _empty_chart  # type: ignore[attr-defined]


@contextmanager
def with_charts(users: tuple[ModuleType, ...] = _ALL) -> Iterator[None]:
    """Draw charts as the programs do, or those of some modules alone."""
    with pytest.MonkeyPatch.context() as patch:
        for user in users:
            patch.setattr(user, "draw_chart", svg.draw_chart)
        yield


def _empty_chart(
    name: str,
    title: str,
    description: str,
    size: tuple[float, float],
    draw: Callable[[Figure], None],
) -> Chart:
    return Chart(name, title, description, "<svg></svg>")
