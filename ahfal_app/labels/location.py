"""Where label stores are found."""

from __future__ import annotations

from pathlib import Path

from ahfal_app.errors import StoreError

#: The file of a client's label store, in the folder of its state.
STORE = "labels.sqlite"


def find_store(path: Path) -> Path:
    """Return the label store that a path means: itself, or the only one below a folder.

    Raises
    ------
    StoreError
        There is none, or there are several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.rglob(STORE))
    if len(found) != 1:
        which = "; name one of " + ", ".join(map(str, found)) if found else ""
        raise StoreError(f"{path}: {len(found)} label stores in this folder{which}")
    return found[0]
