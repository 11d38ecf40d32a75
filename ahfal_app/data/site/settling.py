"""Which files are still being copied: those that change between two looks at them.

A file may have its full size long before its last byte, and another machine's clock may have
written its time. So neither says that it is whole; that both stay as they are does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ahfal_app.data.site.index import SiteIndex

#: Why a file is not used yet.
COPIED = "still being copied; looked at again with the next message"

#: Seconds between the two looks.
SETTLE_S = 2.0

#: A file that has not changed for longer needs no second look, by whatever time zone's clock.
_RECENT_S = 86_400.0

#: Size in bytes and time of the last change in nanoseconds, by path.
Looks = Mapping[str, tuple[int, int]]


def look_at(paths: Iterable[Path | str]) -> dict[str, tuple[int, int]]:
    """Look at files; those that are not there, or not any more, are left out."""
    found = {}
    for path in map(str, paths):
        try:
            status = os.stat(path)
        except OSError:
            continue
        found[path] = (status.st_size, status.st_mtime_ns)
    return found


def recent(looks: Looks) -> dict[str, tuple[int, int]]:
    """Return the files that need a second look, by what the first one has found."""
    now = time.time_ns()
    return {path: look for path, look in looks.items() if now - look[1] < _RECENT_S * 1e9}


def unsettled(looks: Looks, before: Looks) -> set[str]:
    """Return the files that are not as they were; wait for a second look only if there is need.

    Parameters
    ----------
    looks : Looks
        The look that was just taken.
    before : Looks
        Files as they were when they had settled.
    """
    doubtful = {path: look for path, look in recent(looks).items() if before.get(path) != look}
    if not doubtful:
        return set()
    time.sleep(SETTLE_S)
    second = look_at(doubtful)
    return {path for path, look in doubtful.items() if second.get(path) != look}


def still_copied(paths: Collection[str], index: SiteIndex) -> set[str]:
    """Return the files that are not as they were at the last look, or a moment ago."""
    looks = look_at(paths)
    changing = unsettled(looks, index.looks())
    index.remember({path: look for path, look in recent(looks).items() if path not in changing})
    return changing
