"""Overviews of runs as plain text, for people at a terminal."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ahfal_app.results.overview import Condition, Overview, Overviews, SiteOverview
from ahfal_app.results.units import percent

_SITE_COLUMNS = (
    *("site", "last seen", "wanted", "given", "missing", "since", "waiting longest"),
    *("failures", "version"),
)
_RUN_COLUMNS = (
    *("run", "condition", "cycle", "round", "time left", "labels", "missing", "since"),
    *("accuracy", "failures"),
)
_NUMBERS = frozenset({"wanted", "given", "missing", "failures", "cycle", "round", "labels"})

_STYLES = {
    Condition.WAITING: "yellow",
    Condition.FAILED: "red",
    Condition.SILENT: "red",
    Condition.UNREADABLE: "red",
}


#: Exit codes of `ahfal status`: something is wrong with a run; or people are waited for.
WRONG, WAITS = 3, 4

_WRONG = {Condition.FAILED, Condition.INTERRUPTED, Condition.SILENT, Condition.UNREADABLE}
_PAUSE_S = 2.0

#: Of what is no terminal: lines are as long as they need to be.
_WIDTH = 240


def print_overviews(folder: Path, as_json: bool) -> list[Overview]:
    """Print what is known of the runs in a folder, once, and return it.

    Raises
    ------
    ReportError
        There is no run, or the only one cannot be read.
    """
    overviews, console = Overviews(folder), _console()
    now = dt.datetime.now(dt.UTC)
    found = _found(overviews, now)
    if as_json:
        print(json_text(found, overviews.is_one_run, indent=2))
    else:
        console.print(_text(found, overviews.is_one_run, now))
    return list(found.values())


def watch_overviews(
    folder: Path, as_json: bool, sleep: Callable[[float], None] = time.sleep
) -> list[Overview]:
    """Print what is known of the runs in a folder until all have ended, and return the last of it.

    On a terminal it stays in its place; elsewhere it is printed anew when something has changed.

    Raises
    ------
    ReportError
        There is no run, or the only one cannot be read.
    """
    overviews, console = Overviews(folder), _console()
    before: object = None
    shown = Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()
    with shown as live:
        while True:
            now = dt.datetime.now(dt.UTC)
            found = _found(overviews, now)
            is_one = overviews.is_one_run
            # Signs of life are no news.
            seen = [_without_signs_of_life(run) for run in found.values()]
            if as_json and seen != before:
                print(json_text(found, is_one), flush=True)
            elif live is not None and not as_json:
                live.update(_text(found, is_one, now), refresh=True)
            elif seen != before and not as_json:
                console.print(_text(found, is_one, now), "")
                console.file.flush()
            before = seen
            if all(run.has_ended for run in found.values()):
                return list(found.values())
            sleep(_PAUSE_S)


def exit_code(runs: Iterable[Overview]) -> int:
    """Return the exit code of `ahfal status` for what is known of some runs."""
    conditions = {run.condition for run in runs}
    if conditions & _WRONG:
        return WRONG
    return WAITS if Condition.WAITING in conditions else 0


def json_text(runs: Mapping[str, Overview], is_one: bool, indent: int | None = None) -> str:
    """Return overviews as JSON: one alone, or all by their paths below `runs`."""
    told = {key: run.model_dump(mode="json") for key, run in runs.items()}
    return json.dumps(next(iter(told.values())) if is_one else {"runs": told}, indent=indent)


def run_text(run: Overview, now: dt.datetime) -> RenderableType:
    """Return all that there is to say of a run: some lines, and a table of its sites."""
    lines = [
        Text.assemble(
            (run.name, "bold"), ": ", (run.condition.value, _STYLES.get(run.condition, ""))
        ),
        Text(f"{run.strategy} on {run.dataset}{run.oracle and f', labels by {run.oracle}'}"),
        Text(_place(run, now)),
        Text(_labels(run, now)),
    ]
    if run.reason:
        lines.insert(1, Text(run.reason))
    if curve := [f"{point.labels}: {percent(point.accuracy, 1)}" for point in run.curve]:
        lines.append(Text(f"test accuracy by labels: {', '.join(curve)}"))
    lines += [Text(f"note: {note}") for note in run.notes]
    parts: list[RenderableType] = [*lines]
    if run.sites:
        parts += ["", _table(_SITE_COLUMNS, [_site_cells(site, now) for site in run.sites])]
    for site in run.sites:
        if reason := site.failing or site.last_failure:
            when = f", since {ago(site.failing_since, now)}" if site.failing_since else ""
            what = f"fails now{when}" if site.failing else "last failure"
            parts.append(Text(f"{site.name or site.called}: {what}: {reason}"))
    return Group(*parts)


def runs_text(runs: Mapping[str, Overview], now: dt.datetime) -> RenderableType:
    """Return a table with a line for each run."""
    table = _table(_RUN_COLUMNS, [_run_cells(name, run, now) for name, run in runs.items()])
    reasons = [Text(f"{name}: {run.reason}") for name, run in runs.items() if run.reason]
    return Group(table, *reasons)


def ago(time: dt.datetime | None, now: dt.datetime) -> str:
    """Return how long something is ago, such as `3 min`; a dash where nobody knows."""
    return "-" if time is None else span((now - time).total_seconds())


def span(seconds: float) -> str:
    """Return a time in the two largest units that it has, such as `2 d 4 h`; 0 where it is less."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole // 60} min"


def left(run: Overview) -> str:
    """Return the time that is left in words; a dash where nobody knows, or nothing is left."""
    if run.seconds_left is None:
        return "-"
    return f"{'at most ' if run.may_end_earlier else ''}{span(run.seconds_left)}"


def _place(run: Overview, now: dt.datetime) -> str:
    words = [f"cycle {run.cycle + 1} of {run.num_cycles}, round {run.round} of {run.rounds}"]
    if run.phase and not run.has_ended:
        words.append(f"{run.phase} for {ago(run.phase_since, now)}")
    if run.seconds_left is not None:
        words.append(f"{left(run)} of computing left, without waiting for people")
    if run.started is not None:
        words.append(f"started {ago(run.started, now)} ago")
    return "; ".join(words)


def _labels(run: Overview, now: dt.datetime) -> str:
    text = f"labels: {run.wanted} wanted, {run.given} given, {run.missing} missing"
    if run.missing and run.missing_since:
        text += f" for {ago(run.missing_since, now)}"
    if run.longest is not None:
        waits = run.longest
        text += f"; {waits.images} images of {waits.site} wait longest: {ago(waits.since, now)}"
    return text


def _site_cells(site: SiteOverview, now: dt.datetime) -> tuple[str, ...]:
    longest = f"{site.longest} for {ago(site.longest_since, now)}" if site.longest else "-"
    seen = f"{ago(site.last_seen, now)} ago" if site.last_seen else "never"
    return (
        site.name or site.called,
        seen,
        *(str(site.wanted), str(site.given), str(site.missing)),
        ago(site.missing_since, now),
        longest,
        str(site.failures),
        site.version or "-",
    )


def _run_cells(name: str, run: Overview, now: dt.datetime) -> tuple[str, ...]:
    accuracy = percent(run.curve[-1].accuracy, 1) if run.curve else "-"
    return (
        name,
        run.condition.value,
        f"{run.cycle + 1}/{run.num_cycles}" if run.num_cycles else "-",
        f"{run.round}/{run.rounds}" if run.rounds else "-",
        left(run),
        str(run.given),
        str(run.missing),
        ago(run.missing_since, now),
        accuracy,
        str(run.failures),
    )


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        is_number = column in _NUMBERS
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        # As data: a site's name may look like markup.
        table.add_row(*map(Text, row))
    return table


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _found(overviews: Overviews, now: dt.datetime) -> dict[str, Overview]:
    return {".": overviews.one(now)} if overviews.is_one_run else overviews.all(now)


def _text(runs: Mapping[str, Overview], is_one: bool, now: dt.datetime) -> RenderableType:
    return run_text(next(iter(runs.values())), now) if is_one else runs_text(runs, now)


def _without_signs_of_life(run: Overview) -> Overview:
    sites = tuple(site.model_copy(update={"last_seen": None}) for site in run.sites)
    return run.model_copy(update={"written": None, "sites": sites})
