"""Components of another package, for as long as a test takes."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from ahfal_app import plugins
from ahfal_app.plugins import Family


def register(monkeypatch: pytest.MonkeyPatch, family: Family, name: str, value: str) -> None:
    """Register what `value` names, and nothing else, in a family's entry-point group."""
    found = (EntryPoint(name, value, family.group),)
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: found if group == family.group else ()
    )
