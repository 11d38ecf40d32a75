"""How much disk something takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def bytes_in(folder: Path) -> int:
    """Return the sizes of all files in a folder together; 0 where it is not there.

    Links are not followed, and files that go away meanwhile are not counted.
    """
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
