"""A query strategy's half at the server: what it learns of a run, and tells all clients.

A strategy with such a half still chooses at each client. The server sends it a *policy* before each
purchase, and gets back of each client a *report* of what it chose from, and what of it it chose;
after each cycle it is told what the global model makes of samples that the server has held out. All
of it is plain arrays, and knows nothing of messages.

Shape suffixes: M held-out samples, C classes, R rows of a report.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.flat import ArrayForm
from ahfal_app.settings import Settings

#: Arrays by name.
Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class RowsForm:
    """The form of an array of a report, which has a row for each sample.

    Attributes
    ----------
    columns : tuple[int, ...]
        Its shape without the rows.
    dtype : str
        Its type, as NumPy calls it.
    """

    columns: tuple[int, ...]
    dtype: str

    def of(self, rows: int) -> ArrayForm:
        """Return the form with so many rows."""
        return ArrayForm((rows, *self.columns), self.dtype)


@dataclass(frozen=True)
class Task:
    """What both halves of a strategy know of a run.

    Attributes
    ----------
    seed : int
        Key of everything random.
    num_classes, num_clients : int
        How many there are.
    held_out : int
        Samples that the server has held out.
    most_rows : int | None
        Samples that a client may choose from at once; None: nobody knows.
    """

    seed: int
    num_classes: int
    num_clients: int
    held_out: int = 0
    most_rows: int | None = None

    @classmethod
    def of(cls, settings: Settings, num_classes: int) -> Task:
        """Return the task of a run whose number of clients is resolved."""
        is_single_access = settings.arrivals == "count" and settings.pool_memory == 1
        return cls(
            seed=settings.seed,
            num_classes=num_classes,
            num_clients=settings.num_clients,
            held_out=settings.held_out,
            most_rows=int(settings.arrival_rate) if is_single_access else None,
        )


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a cycle's model makes of the samples that the server has held out.

    Attributes
    ----------
    logits_MC : NDArray[np.float32]
        Its logits. Shape (M, C).
    labels_M : NDArray[np.int64]
        The true classes. Shape (M,).
    """

    logits_MC: NDArray[np.float32]
    labels_M: NDArray[np.int64]


class ServerSide(ABC):
    """A strategy's half at the server.

    Of a cycle it is called in the order of the methods here, and all that it does must follow from
    its state and from what it is told: a server that starts again restores the state of its newest
    checkpoint and repeats the cycle.
    """

    @abstractmethod
    def trained(self, cycle: int, held_out: HeldOut | None) -> None:
        """Take note of a cycle's model, before labels are bought after it; not of the last one's.

        Parameters
        ----------
        cycle : int
            The cycle that was just trained.
        held_out : HeldOut | None
            What the model makes of the held-out samples, if there are any.
        """

    @abstractmethod
    def policy(self) -> Arrays:
        """Return what clients choose by now, in the strategy's `policy_forms`; or nothing yet."""

    @abstractmethod
    def check_report(self, report: Arrays) -> None:
        """Refuse a report of the right form that no client makes.

        Raises
        ------
        ValueError
            It says what cannot be.
        """

    @abstractmethod
    def reported(self, cycle: int, reports: Mapping[int, Arrays]) -> None:
        """Take note of what clients chose after a cycle.

        Parameters
        ----------
        cycle : int
            The cycle that was just trained.
        reports : Mapping[int, Arrays]
            By client, in increasing order. Who chose nothing, or did not answer, is not there.
        """

    def figures(self) -> Mapping[str, float]:
        """Return what people may want to know of this cycle, by name."""
        return {}

    @abstractmethod
    def state(self) -> Arrays:
        """Return all that it must know again after it was restored."""

    @abstractmethod
    def restore(self, state: Arrays) -> None:
        """Be as it was when this was its state.

        Raises
        ------
        ValueError
            It is no state of such a strategy.
        """
