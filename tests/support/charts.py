"""Reports without their pictures, which take Matplotlib longer than a small run takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

from ahfal_app.results.svg import Chart


@contextmanager
def without_charts() -> Iterator[None]:
    """Leave charts empty; all else of a report, and the numbers for its charts, is made."""
    with pytest.MonkeyPatch.context() as patch:
        for user in ("figures", "heat_maps"):
            patch.setattr(f"ahfal_app.results.{user}.draw_chart", _empty_chart)
        yield


def _empty_chart(
    name: str,
    title: str,
    description: str,
    size: tuple[float, float],
    draw: Callable[[Figure], None],
) -> Chart:
    return Chart(name, title, description, "<svg/>")
