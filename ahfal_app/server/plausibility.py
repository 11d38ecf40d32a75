"""What a client can have, as far as the server can know.

All of it is the client's own word. What the server knows are the labels that it has granted, and
what the client said before; whoever contradicts that is refused by name.
"""

from __future__ import annotations

from ahfal_app.config import Settings
from ahfal_app.ledger import Ledger
from ahfal_app.messages.answers import QueryAnswer


def check_counts(num_samples: int, labelled: int, ledger: Ledger, settings: Settings) -> None:
    """Check what a client tells as it joins.

    Raises
    ------
    ValueError
        It has more samples than any client may have, or more labels than samples.
    """
    most = settings.max_client_samples
    for key, value in (("num-samples", num_samples), ("allotted", ledger.allotted)):
        if value > most:
            raise ValueError(f"{key}={value}: allowed is at most max-client-samples={most}")
    if labelled > num_samples:
        raise ValueError(f"labelled={labelled}: allowed is at most num-samples={num_samples}")


def check_purchase(answer: QueryAnswer, settings: Settings) -> None:
    """Check what a client tells of a purchase.

    Its folder may have grown since it joined, so only what no client may have is refused.

    Raises
    ------
    ValueError
        A count is above what any client may have, more is pending than was asked for, or more
        waits longest than waits at all.
    """
    most = settings.max_client_samples
    counts = {
        "selected": answer.selected,
        "labelled": answer.labelled + answer.held_out,
        "allotted": answer.ledger.allotted,
    }
    for key, value in counts.items():
        if value > most:
            raise ValueError(f"{key}={value}: allowed is at most max-client-samples={most}")
    if answer.pending > answer.ledger.reserved:
        raise ValueError(
            f"pending={answer.pending}: allowed is at most reserved={answer.ledger.reserved}"
        )
    if answer.longest > answer.pending:
        raise ValueError(f"longest={answer.longest}: allowed is at most pending={answer.pending}")


class LabelBounds:
    """The most labels that each client may have, by its own word and what it was granted since."""

    def __init__(self) -> None:
        self._most: dict[int, int] = {}
        self._last: dict[int, tuple[int, Ledger]] = {}

    def __getitem__(self, client: int) -> int:
        """Return the most labels that a client may have."""
        return self._most[client]

    def told(self, client: int, labelled: int, ledger: Ledger) -> None:
        """Take note of what a client has told: some labels may come of those asked for.

        It never sinks, since images that are away for a while come back with their labels.
        """
        self._last[client] = labelled, ledger
        self._raise(client, labelled + ledger.reserved)

    def unheard(self, client: int, due: int) -> None:
        """Take note that a client may have bought all that was due, and its answer got lost."""
        if client not in self._last:
            # It has told nothing since the server started again.
            self._raise(client, due)
            return
        labelled, ledger = self._last[client]
        granted = max(0, due - ledger.allotted)
        self._raise(client, labelled + ledger.reserved + ledger.free + granted)

    def _raise(self, client: int, most: int) -> None:
        self._most[client] = max(most, self._most.get(client, 0))
