"""What other installed packages register with us."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of a group.

    Read once: that opens a file of every installed package, and a sweep asks many times.
    """
    return tuple(metadata.entry_points(group=group))
