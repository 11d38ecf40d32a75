"""When a site's samples came, as far as a run has seen: a table beside its labels.

The cycles are those of one run, so that each run's store has a table of its own. In simulation
there is none: when a sample arrives follows from the settings.
"""

from __future__ import annotations

import sqlite3

import numpy as np
from numpy.typing import NDArray

_TABLE = """
CREATE TABLE IF NOT EXISTS arrivals (
    sample INTEGER PRIMARY KEY,
    cycle INTEGER NOT NULL CHECK (cycle >= 0)
) STRICT
"""


class ArrivalTable:
    """The cycles for which samples were first there to be asked for.

    Parameters
    ----------
    connection : sqlite3.Connection
        The label store's database; the table is made if it is not there.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute(_TABLE)

    def note(self, samples_N: NDArray[np.int64], cycle: int) -> None:
        """Keep that samples are there for a cycle's purchase; of known ones nothing changes.

        To be called within a transaction.

        Parameters
        ----------
        samples_N : NDArray[np.int64]
            Ids of what is there, increasing.
        cycle : int
            The cycle that labels are bought for.
        """
        new_N = samples_N[self.cycles(samples_N) < 0]
        self._connection.executemany(
            "INSERT OR IGNORE INTO arrivals VALUES (?, ?)",
            [(sample, cycle) for sample in new_N.tolist()],
        )

    def cycles(self, samples_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cycle for which each sample was first there; -1 where it was never seen.

        Parameters
        ----------
        samples_N : NDArray[np.int64]
            Ids, increasing.
        """
        rows = self._connection.execute("SELECT sample, cycle FROM arrivals ORDER BY sample")
        known_M2 = np.array(rows.fetchall(), np.int64).reshape(-1, 2)
        cycle_N = np.full(len(samples_N), -1, np.int64)
        _, here_K, there_K = np.intersect1d(
            samples_N, known_M2[:, 0], assume_unique=True, return_indices=True
        )
        cycle_N[here_K] = known_M2[there_K, 1]
        return cycle_N

    def count(self) -> int:
        """Return how many samples were ever seen."""
        return int(self._connection.execute("SELECT count(*) FROM arrivals").fetchone()[0])
