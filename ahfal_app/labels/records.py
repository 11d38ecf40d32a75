"""What is said about labels: requests, answers, the ledger and the labelled set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def request_id(run: str, client: int, cycle: int) -> str:
    """Return the id of what `client` asks for before `cycle`: equal on every retry."""
    return hashlib.sha256(f"{run}/{client}/{cycle}".encode()).hexdigest()[:32]


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
    """

    request_id: str
    cycle: int
    strategy: str
    samples: tuple[int, ...]
    scores: tuple[float, ...] = ()
    guesses: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelReceipt:
    """One answer of an oracle: the class index of one sample, or None where it was skipped."""

    request_id: str
    sample: int
    label: int | None
    annotator: str


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
        `reserved` (asked for), `labelled`, `skipped`, or `given` (labelled before the run).
    label : int | None
        The class index that stands now.
    annotator : str | None
        Who has given it, or skipped the sample.
    answered : str | None
        When, in UTC, as ISO 8601.
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
