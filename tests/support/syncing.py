"""Waiting for the disk, which tests in this process go without.

What a test looks at is in the system's memory either way: only a power cut would show the
difference. Programs that tests start do wait, and so do tests that ask for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ahfal_app.storage import database

_FSYNC, _SYNCHRONOUS = os.fsync, database.SYNCHRONOUS


def stop_waiting() -> None:
    """Take for written what the system has, from now on."""
    os.fsync = _taken_for_written
    database.SYNCHRONOUS = "OFF"


@contextmanager
def waiting() -> Iterator[None]:
    """Wait for the disk as the programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _FSYNC)
        patch.setattr(database, "SYNCHRONOUS", _SYNCHRONOUS)
        yield


def _taken_for_written(descriptor: int) -> None:
    os.fstat(descriptor)
