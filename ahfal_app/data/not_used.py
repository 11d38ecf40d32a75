"""What was found and is not used, in a few lines."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Names that are told; of more, how many there are.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class NotUsed:
    """Files, or rows, that are not used for the same reason.

    Attributes
    ----------
    count : int
        How many there are.
    reason : str
        Why, without what differs from one to the other.
    such_as : str
        The first of them.
    """

    count: int
    reason: str
    such_as: str


def kind_of(reason: str) -> str:
    """Return the part of a reason that does not differ from one file to the other."""
    # A name stands in quotes, as Python writes them.
    return re.sub(r"'.*'|\".*\"", "…", reason).split(": ")[0].split("; ")[0]


def summary(reasons: Mapping[str, str]) -> tuple[NotUsed, ...]:
    """Return reasons by name in a few lines, the most frequent first."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in sorted(reasons.items()):
        names[kind_of(reason)].append(name)
    lines = [NotUsed(len(group), reason, group[0]) for reason, group in names.items()]
    return tuple(sorted(lines, key=lambda line: -line.count))


def told(lines: Iterable[NotUsed]) -> str:
    """Return a summary as text."""
    return "; ".join(f"{line.count} {line.reason} (such as {line.such_as})" for line in lines)


def shown_names(names: Iterable[str]) -> str:
    """Return the first of some names, in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more
