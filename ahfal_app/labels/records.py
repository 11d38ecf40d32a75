"""What is said about labels: requests, answers, the ledger and the labelled set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

#: In place of a query strategy's name, of a request that was drawn at random.
AUDIT = "audit"


def request_id(run: str, client: int, cycle: int, what: str = "") -> str:
    """Return the id of what `client` asks for before `cycle`: equal on every retry.

    Parameters
    ----------
    run : str
        The run's identity.
    client, cycle : int
        Who asks, and before which cycle.
    what : str
        `AUDIT` for what is drawn at random; empty for what the query strategy chooses.
    """
    name = "/".join([run, str(client), str(cycle), *([what] if what else [])])
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def utc_text(moment: datetime) -> str:
    """Return a moment as all label stores write it: UTC, ISO 8601, milliseconds.

    Raises
    ------
    ValueError
        The moment has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()}: no time zone")
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return f"{text}Z"


def parse_utc(text: str) -> str | None:
    """Return a moment in ISO 8601 with a time zone as `utc_text` writes it; None if it is none."""
    try:
        return utc_text(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class LabelRequest:
    """Samples to be labelled, in the order in which they were chosen.

    Attributes
    ----------
    request_id : str
        Equal whenever the request is repeated.
    cycle : int
        The cycle that is trained on the labels.
    strategy : str
        Name of the query strategy.
    samples : tuple[int, ...]
        Sample ids.
    scores : tuple[float, ...]
        Acquisition score of each sample, or empty where the strategy gives none.
    guesses : tuple[int, ...]
        Class index that the client's model takes each sample for, or empty.
    readers : int
        How many people label each sample.
    rule : str
        What decides where there are several: one of `ahfal_app.labels.readings.RULES`.
    report : bytes
        What the server is told of the choice; empty where the query strategy tells nothing. Of an
        audit what a model has said of its samples, which nobody is told of.
    """

    request_id: str
    cycle: int
    strategy: str
    samples: tuple[int, ...]
    scores: tuple[float, ...] = ()
    guesses: tuple[int, ...] = ()
    readers: int = 1
    rule: str = "majority"
    report: bytes = b""


@dataclass(frozen=True)
class LabelReceipt:
    """One answer of an oracle.

    When it was given, and what was said besides, does not make it another one.

    Attributes
    ----------
    request_id : str
        The request that it answers.
    sample : int
        Sample id.
    label : int | None
        Class index, or None where the sample was skipped.
    annotator : str
        Who has said so.
    given : str | None
        When, as `utc_text` writes it; None where that is not known.
    taken_back : str | None
        When whoever said so has taken it back; such an answer is kept, and labels nothing.
    decides : bool
        Whether it settles what several readers disagree on.
    unsure : bool
        Whether whoever said so was not sure.
    comment : str
        What else was said.
    """

    request_id: str
    sample: int
    label: int | None
    annotator: str
    given: str | None = field(default=None, compare=False)
    taken_back: str | None = None
    decides: bool = False
    unsure: bool = field(default=False, compare=False)
    comment: str = field(default="", compare=False)


@dataclass(frozen=True)
class Labelled:
    """The labelled set L_i, by increasing sample id."""

    samples_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Return the number of labelled samples of each class, int64, shape (C,)."""
        return np.bincount(self.labels_N, minlength=num_classes).astype(np.int64)


@dataclass(frozen=True)
class Conflict:
    """A later answer that contradicts the label that stands."""

    sample: int
    label: int
    annotator: str
    standing_label: int


@dataclass(frozen=True)
class Entry:
    """All that a store knows of one sample.

    Attributes
    ----------
    sample : int
        Its id.
    file : str | None
        Its file, where the client has files.
    state : str
        `reserved` (asked for), `labelled`, `skipped`, `given` (labelled before the run), or
        `removed` (asked for, and the image went before it was labelled).
    label : int | None
        The class index that stands now.
    annotator : str | None
        Who has given or corrected it, or skipped the sample.
    answered : str | None
        When they have, in UTC, as ISO 8601.
    from_cycle : int | None
        The first cycle that is trained on it.
    request_id : str | None
        The request that it was asked for in.
    guess : int | None
        The class that the client's model took it for.
    score : float | None
        Its acquisition score.
    """

    sample: int
    file: str | None
    state: str
    label: int | None
    annotator: str | None
    answered: str | None
    from_cycle: int | None
    request_id: str | None
    guess: int | None
    score: float | None


@dataclass(frozen=True)
class Event:
    """Something that somebody has said of a sample, as the audit trail has it.

    Attributes
    ----------
    sample : int
        Sample id.
    what : str
        `answer`, `skip`, `decision` (between readers who disagree), `given` (labelled before the
        run), `correction`, or `taken back`.
    label : int | None
        Class index, or None where the sample was skipped.
    annotator : str
        Who has said so.
    at : str | None
        When, in UTC, as ISO 8601; None where only `received` is known.
    received : str
        When the store was told, in the same form.
    unsure : bool
        Whether whoever said so was not sure.
    comment : str
        What else was said.
    stands : bool
        Whether it is what stands now.
    """

    sample: int
    what: str
    label: int | None
    annotator: str
    at: str | None
    received: str
    unsure: bool
    comment: str
    stands: bool
