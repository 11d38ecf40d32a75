"""What several people's readings of one image come to.

An image is read by `readers` people, none of whom sees what the others say. Then a rule decides.
What it leaves open is a disagreement, and somebody who has not read the image settles it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

#: The class that more than half of the readers name stands.
MAJORITY = "majority"

#: Only what all readers say stands; whatever else they say is for the adjudicator.
ADJUDICATOR = "adjudicator"

#: What may decide, by name.
RULES = (MAJORITY, ADJUDICATOR)


@dataclass(frozen=True)
class Readers:
    """How many people read each image, and what decides: one of `RULES`."""

    count: int = 1
    rule: str = MAJORITY


@dataclass(frozen=True)
class Reading:
    """What one person says of an image: a class index, or None where nobody could tell.

    `decides` says whether it settles a disagreement.
    """

    annotator: str
    label: int | None
    decides: bool = False


@dataclass(frozen=True)
class Verdict:
    """What stands, and who says so, in the order of their readings."""

    label: int | None
    annotators: tuple[str, ...]


def decide(readings: Sequence[Reading], readers: int, rule: str) -> Verdict | None:
    """Return what readings of one image come to, or None while that is open.

    Parameters
    ----------
    readings : Sequence[Reading]
        One of each person, the oldest first.
    readers : int
        How many people read each image; with 1 the first reading stands.
    rule : str
        One of `RULES`. It is asked once there are `readers` readings, and of all that there are:
        more than asked for count like the others.
    """
    settled = [reading for reading in readings if reading.decides]
    read = [reading for reading in readings if not reading.decides]
    if settled:
        return Verdict(settled[0].label, (settled[0].annotator,))
    if len(read) < max(1, readers):
        return None
    if readers == 1:
        return Verdict(read[0].label, (read[0].annotator,))
    label, votes = Counter(reading.label for reading in read).most_common(1)[0]
    needed = len(read) if rule == ADJUDICATOR else len(read) // 2 + 1
    if votes < needed:
        return None
    return Verdict(label, tuple(r.annotator for r in read if r.label == label))


def disagree(readings: Sequence[Reading], readers: int, rule: str) -> bool:
    """Return whether all have read an image, and what they say decides nothing."""
    read = sum(not reading.decides for reading in readings)
    return read >= readers and decide(readings, readers, rule) is None
