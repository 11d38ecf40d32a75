"""What a check has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """How bad it is."""

    GOOD = "ok"
    WARNING = "warning"
    FAILURE = "FAILED"


@dataclass(frozen=True)
class Finding:
    """What a check has found, in one line.

    Attributes
    ----------
    check : str
        What was looked at.
    verdict : Verdict
        A site with a failure cannot join.
    text : str
        What there is, and where it is not good what to do.
    """

    check: str
    verdict: Verdict
    text: str


def good(check: str, text: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.GOOD, text)


def warning(check: str, text: str) -> Finding:
    """Return that the site can join, and what had better be changed."""
    return Finding(check, Verdict.WARNING, text)


def failure(check: str, text: str) -> Finding:
    """Return that the site cannot join, and what to do."""
    return Finding(check, Verdict.FAILURE, text)
