"""What a report says of a budget that all clients share: who got how much of it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahfal_app.results.reading import Run
from ahfal_app.results.records import GrantsRecord, called
from ahfal_app.results.tables import TextTable, grid_table

#: What a client's labels went by, by `budget-split`.
_WHY = {
    "share": "its samples; what a client lacks of its exact share in one cycle comes first in the "
    "next",
    "missing": "its share of the labels of the classes that all clients lack, by what the global "
    "model sees in its pool; first labels by its samples",
    "threshold": "its samples whose scores are among the highest of all clients, ties and all, "
    "within its cap; first labels by its samples",
    "equal": "the same for all; of what is left over, who had fewest gets one first",
}


def grants_table(run: Run) -> TextTable | None:
    """Tell what each client was granted in each cycle, and why; None without a shared budget."""
    told = [(cycle.cycle, cycle.grants) for cycle in run.metrics.cycles if cycle.grants is not None]
    if not told:
        return None
    sites = {grant.client: grant.site for _, each in told for grant in each.clients}
    split = told[-1][1].split
    headings = ["First", *(f"After cycle {cycle + 1}" for cycle, _ in told), "In all"]
    rows = {}
    for client in sorted(sites):
        by_cycle = [_cells(each, client) for _, each in told]
        first, last = by_cycle[0], by_cycle[-1]
        cells = [f"{first[0]:,}", *(text for _, _, text in by_cycle), f"{last[0] + last[1]:,}"]
        rows[called(client, sites[client])] = cells
    table = grid_table(f"Who got which labels: budget-split={split}", "Client", headings, rows)
    return TextTable(
        table.title,
        table.headings,
        table.rows,
        table.numbers,
        note=f"Labels granted; in brackets what they went by: {_WHY[split]}.{_left(told)}",
    )


def describe_grants(run: Run) -> dict[str, Any] | None:
    """Return what `summary.json` holds of a shared budget; None without one."""
    told = [cycle.grants for cycle in run.metrics.cycles if cycle.grants is not None]
    if not told:
        return None
    last = told[-1]
    return {
        "split": last.split,
        "granted": {str(g.client): g.before + g.added for g in last.clients},
        "left_per_cycle": [each.left for each in told],
    }


def _left(told: Sequence[tuple[int, GrantsRecord]]) -> str:
    """Say where labels were left that nobody could take."""
    words = [f"{each.left:,} after cycle {cycle + 1}" for cycle, each in told if each.left]
    return (
        f" Nobody could take {', '.join(words)}; those are due in the next cycle, if there is one."
        if words
        else ""
    )


def _cells(told: GrantsRecord, client: int) -> tuple[int, int, str]:
    """Return what a client had, what it got, and that in words with its reason."""
    for grant in told.clients:
        if grant.client == client:
            why = "" if grant.weight is None else f" ({grant.weight:.4g})"
            return grant.before, grant.added, f"{grant.added:,}{why}"
    return 0, 0, ""
