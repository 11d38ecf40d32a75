"""Which run a folder belongs to.

A message names the run's folder, and a client may write there where it shares the disk with the
server. That the folder holds the run's identity is the proof: a server elsewhere cannot put it
there.
"""

from __future__ import annotations

from pathlib import Path

from ahfal_app.storage.files import write_text

_IDENTITY = "run-id"
# Longer than any identity.
_READ_CHARACTERS = 200


def mark(folder: Path, run: str) -> None:
    """Write a run's identity into its folder, unless it is there."""
    if not is_folder_of(folder, run):
        write_text(folder / _IDENTITY, run)


def is_folder_of(folder: Path, run: str) -> bool:
    """Return whether a folder on this machine is that of a run."""
    try:
        with (folder / _IDENTITY).open(encoding="utf-8") as file:
            return file.read(_READ_CHARACTERS) == run
    except (OSError, ValueError):
        return False
