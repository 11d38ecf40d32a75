"""What is open at a site, read beside the client that is at work on it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ahfal_app.errors import StoreError
from ahfal_app.label_page.desk import REQUESTS, Desk
from ahfal_app.labels.store import STORE_FILE, find_store

_ORACLE = "oracle"

_QUERY = """
SELECT r.request_id, r.cycle, r.strategy, r.created, count(*), sum(s.state = 'reserved')
FROM requests AS r JOIN samples AS s USING (request_id)
GROUP BY r.request_id HAVING sum(s.state = 'reserved') > 0
ORDER BY r.cycle, r.request_id
"""


@dataclass(frozen=True)
class OpenRequest:
    """A request with samples that the client has no label of.

    Attributes
    ----------
    request : str
        Its id.
    cycle : int
        The cycle that waits for it.
    strategy : str
        Who chose the samples.
    created : str
        When, in UTC.
    samples : int
        Number of samples.
    missing : int
        How many the client has no answer for.
    waiting : int
        How many of these are answered in the page, and wait to be collected.
    disputed : int
        How many of these readers disagree on, so that they wait for an adjudicator.
    """

    request: str
    cycle: int
    strategy: str
    created: str
    samples: int
    missing: int
    waiting: int
    disputed: int


def desk_folder(folder: Path) -> Path:
    """Return where requests and answers lie.

    Parameters
    ----------
    folder : Path
        A site's `state-dir` or a client's state below it, with one label store; or the folder of
        the oracle itself.

    Raises
    ------
    StoreError
        There are several label stores below it, or neither one nor requests.
    """
    if (folder / REQUESTS).is_dir():
        return folder
    return find_store(folder).parent / _ORACLE


def store_beside(desk: Path) -> Path | None:
    """Return the label store of the client whose desk this is; None where it is elsewhere."""
    store = desk.parent / STORE_FILE
    return store if desk.name == _ORACLE and store.is_file() else None


def open_requests(state: Path) -> tuple[OpenRequest, ...]:
    """Return the open requests of a client, oldest first; nothing is changed by looking.

    Parameters
    ----------
    state : Path
        The site's `state-dir`, or a client's state below it, with one label store.

    Raises
    ------
    StoreError
        There is no label store below it, or several, or it cannot be read.
    """
    path = find_store(state)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
            rows = store.execute(_QUERY).fetchall()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"label store {path}: {error}") from error
    desk = Desk(path.parent / _ORACLE)
    waiting, disputed = desk.waiting(), desk.disputed()
    return tuple(
        OpenRequest(
            request=request,
            cycle=cycle,
            strategy=strategy,
            created=created,
            samples=samples,
            missing=missing,
            waiting=waiting.get(request, 0),
            disputed=disputed.get(request, 0),
        )
        for request, cycle, strategy, created, samples, missing in rows
    )
