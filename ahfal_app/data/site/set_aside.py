"""What of a site's images is not used, and why: written down, and told once for each change."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ahfal_app.data.not_used import kind_of
from ahfal_app.labels.spreadsheet import read_csv, write_csv
from ahfal_app.parameters import SUGGESTION

#: What is not used, and why: a file in the site's state folder.
SET_ASIDE = "set-aside.csv"

_log = logging.getLogger(__name__)


def report(
    path: Path,
    set_aside: Mapping[str, str],
    usable: int,
    suggestions: Callable[[], Mapping[str, str]] = dict,
    what: str = "images",
) -> None:
    """Write what is set aside, and tell how much; once for each change.

    Suggestions, by what is set aside, take a while: they are asked for where there is a change.

    Parameters
    ----------
    path : Path
        The file.
    set_aside : Mapping[str, str]
        Why what is not used, by name.
    usable : int
        How many images can be used.
    suggestions : Callable[[], Mapping[str, str]]
        Returns what to add to reasons, by name.
    what : str
        What is counted, in plural.
    """
    rows = sorted(set_aside.items())
    if _told_before(path) == rows:
        return
    near = suggestions()
    write_csv(path, ("file", "reason"), [(key, why + near.get(key, "")) for key, why in rows])
    if rows:
        reasons = Counter(kind_of(reason) for _, reason in rows)
        shown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
        _log.warning(
            "%d %s can be used, %d set aside (%s): %s", usable, what, len(rows), shown, path
        )


def _told_before(path: Path) -> list[tuple[str, str]] | None:
    """Return what was set aside before; None where that file is missing, or a person saved it."""
    try:
        return [(file, reason.split(SUGGESTION)[0]) for file, reason in read_csv(path)[1:]]
    except (OSError, ValueError, csv.Error):
        return None
