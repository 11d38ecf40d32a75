"""What other runs have cost a site, as the stores in its state folder tell."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ahfal_app.errors import StoreError
from ahfal_app.labels.store import STORE_FILE
from ahfal_app.privacy.store import are_increments


@dataclass(frozen=True)
class PastRuns:
    """What all other runs have cost together.

    Attributes
    ----------
    labels : int
        Labels that were bought or are asked for.
    epsilon : Fraction
        Privacy budget ε that was spent on class histograms.
    """

    labels: int = 0
    epsilon: Fraction = Fraction(0)


def past_runs(state: Path, but: str) -> PastRuns:
    """Add up what the runs of a state folder have cost.

    Parameters
    ----------
    state : Path
        The site's state folder, which has a folder for each run.
    but : str
        The run that is not counted.

    Raises
    ------
    StoreError
        A store cannot be read, so that nobody knows what it would add.
    """
    stores = [path for path in sorted(state.glob(f"*/*/{STORE_FILE}")) if path.parts[-3] != but]
    costs = [_cost(path) for path in stores]
    return PastRuns(
        sum(cost.labels for cost in costs), sum((cost.epsilon for cost in costs), Fraction(0))
    )


def _cost(store: Path) -> PastRuns:
    try:
        with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {
                str(name)
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                )
            }
            labels, epsilon = 0, Fraction(0)
            # A run that was stopped as it joined has one of them, or none.
            if "ledger" in tables:
                row = connection.execute("SELECT sum(spent + reserved) FROM ledger").fetchone()
                labels = int(row[0] or 0)
            if "privacy_releases" in tables:
                rows = connection.execute("SELECT epsilon FROM privacy_releases").fetchall()
                costs = [Fraction(each) for (each,) in rows]
                row = connection.execute("SELECT terms FROM privacy_terms").fetchone()
                is_parallel = row is not None and are_increments(row[0])
                epsilon = max(costs, default=epsilon) if is_parallel else sum(costs, epsilon)
            return PastRuns(labels, epsilon)
    except (sqlite3.Error, ValueError) as error:
        raise StoreError(f"label store {store}: {error}") from error
