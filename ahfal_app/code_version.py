"""The package's version, and a hash of its source by which server and clients agree."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.1.0"

PACKAGE_FOLDER = Path(__file__).resolve().parent


@cache
def code_hash() -> str:
    """Return the SHA-256 over the names and contents of all Python files of the package."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE_FOLDER.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE_FOLDER).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
