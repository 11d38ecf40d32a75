"""What a client must not forget about its privacy: terms, releases, and secrets under way.

These tables lie in the database of the client's labels, so that they cannot get lost
without the labels, whose loss stops a run.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahfal_app.errors import PrivacyBudgetExceeded, PrivacyRefused, StoreError
from ahfal_app.storage.database import connect, reason, transaction

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS privacy_terms ("
    "id INTEGER PRIMARY KEY CHECK (id = 1), terms TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS privacy_releases ("
    "cycle INTEGER PRIMARY KEY, counts TEXT NOT NULL, epsilon TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS privacy_inputs ("
    "cycle INTEGER PRIMARY KEY, input BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS privacy_survivors ("
    "cycle INTEGER PRIMARY KEY, survivors TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS privacy_sessions ("
    "cycle INTEGER PRIMARY KEY, session TEXT NOT NULL) STRICT",
)


#: Terms that runs had before they said so.
_BEFORE = {"privacy.releases": "cumulative"}


def prepare_privacy(connection: sqlite3.Connection) -> None:
    """Make the tables, unless they are there: with each message the database is opened."""
    (found,) = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name LIKE 'privacy!_%' "
        "ESCAPE '!'"
    ).fetchone()
    if found != len(_SCHEMA):
        with transaction(connection):
            for statement in _SCHEMA:
                connection.execute(statement)


class PrivacyStore:
    """One client's record of what it has told, and what it must keep to itself.

    Parameters
    ----------
    path : Path
        The client's database.

    Raises
    ------
    StoreError
        The database is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = connect(path)
            # Secrets that are done with are overwritten, and not just unlinked.
            self._connection.execute("PRAGMA secure_delete = ON")
            prepare_privacy(self._connection)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"privacy store {path}: {reason(path, error)}") from error

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def change(self) -> AbstractContextManager[None]:
        """Make what is done inside one change, durable at its end."""
        return transaction(self._connection)

    def hold_to(self, terms: Mapping[str, object]) -> None:
        """Hold the server to the terms of the first call.

        Raises
        ------
        PrivacyRefused
            These are other terms.
        """
        with self.change():
            row = self._one("SELECT terms FROM privacy_terms")
            if row is None:
                self._set("INSERT INTO privacy_terms VALUES (1, ?)", json.dumps(dict(terms)))
                return
        held = json.loads(row)
        changed = [key for key, value in terms.items() if held.get(key, _BEFORE.get(key)) != value]
        if changed:
            told = ", ".join(
                f"{key}={terms[key]!r} instead of {held.get(key)!r}" for key in changed
            )
            raise PrivacyRefused(f"the run's privacy must not change: {told}")

    def release(
        self,
        cycle: int,
        epsilon: Fraction,
        budget: Fraction,
        draw: Callable[[], NDArray[np.int64]],
    ) -> NDArray[np.int64]:
        """Return a cycle's release, int64 (C,); drawn at the first call and kept for all others.

        It is durable, with what it costs, when this returns.

        Parameters
        ----------
        cycle : int
            The cycle.
        epsilon : Fraction
            What a new release costs.
        budget : Fraction
            What all of them may cost together, as `spent` counts it.
        draw : Callable
            Returns a new release.

        Raises
        ------
        PrivacyBudgetExceeded
            A new release would cost more than is left.
        """
        with self.change():
            known = self._one("SELECT counts FROM privacy_releases WHERE cycle = ?", cycle)
            if known is not None:
                return np.array(json.loads(known), dtype=np.int64)
            spent = self.spent()
            if (max(spent, epsilon) if self._is_parallel() else spent + epsilon) > budget:
                raise PrivacyBudgetExceeded(
                    f"cycle {cycle}: a histogram costs ε={float(epsilon):g}, and "
                    f"{float(spent):g} of the budget of {float(budget):g} is spent"
                )
            counts_C = draw()
            self._set(
                "INSERT INTO privacy_releases VALUES (?, ?, ?)",
                cycle,
                json.dumps(counts_C.tolist()),
                str(epsilon),
            )
        return counts_C

    def releases(self) -> dict[int, NDArray[np.int64]]:
        """Return all releases, int64 (C,) each, by cycle in order."""
        rows = self._connection.execute("SELECT cycle, counts FROM privacy_releases ORDER BY cycle")
        return {cycle: np.array(json.loads(counts), np.int64) for cycle, counts in rows}

    def spent(self) -> Fraction:
        """Return what all releases have cost together, exactly.

        Their sum; where each label is in one of them alone, the most that one has cost.
        """
        rows = self._connection.execute("SELECT epsilon FROM privacy_releases").fetchall()
        costs = [Fraction(epsilon) for (epsilon,) in rows]
        return max(costs, default=Fraction(0)) if self._is_parallel() else sum(costs, Fraction(0))

    def _is_parallel(self) -> bool:
        row = self._one("SELECT terms FROM privacy_terms")
        return row is not None and are_increments(row)

    def keep_input(self, cycle: int, vector_D: NDArray[np.uint64]) -> None:
        """Keep what goes into a cycle's secure sum, unless there is something already."""
        self._set("INSERT OR IGNORE INTO privacy_inputs VALUES (?, ?)", cycle, vector_D.tobytes())

    def input(self, cycle: int) -> NDArray[np.uint64]:
        """Return what goes into a cycle's secure sum, uint64 (D,); empty where it is not kept."""
        row = self._one("SELECT input FROM privacy_inputs WHERE cycle = ?", cycle)
        return np.frombuffer(row or b"", dtype=np.uint64)

    def survivors(self, cycle: int) -> tuple[int, ...]:
        """Return the clients over which this one has helped to unmask a cycle's sum, or none."""
        row = self._one("SELECT survivors FROM privacy_survivors WHERE cycle = ?", cycle)
        return tuple(json.loads(row)) if row else ()

    def keep_survivors(self, cycle: int, survivors: tuple[int, ...]) -> None:
        """Keep them, for good."""
        self._set(
            "INSERT OR IGNORE INTO privacy_survivors VALUES (?, ?)", cycle, json.dumps(survivors)
        )

    def session(self, cycle: int) -> str | None:
        """Return a cycle's session as it was saved, or None."""
        row = self._one("SELECT session FROM privacy_sessions WHERE cycle = ?", cycle)
        return None if row is None else str(row)

    def save_session(self, cycle: int, session: str) -> None:
        """Keep a cycle's session and overwrite all others."""
        self._set("DELETE FROM privacy_sessions")
        self._set("INSERT INTO privacy_sessions VALUES (?, ?)", cycle, session)

    def _one(self, query: str, *values: Any) -> Any:
        row = self._connection.execute(query, values).fetchone()
        return None if row is None else row[0]

    def _set(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement, values)


def are_increments(terms: str) -> bool:
    """Tell by the terms of a run, as they are kept, whether each label is in one release alone."""
    return bool(json.loads(terms).get("privacy.releases") == "increments")
