"""The leaderboard: in the terminal, and as a page that needs nothing else."""

from __future__ import annotations

import jinja2
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ahfal_app.benchmark.charts import difference_diagram, regret_curves
from ahfal_app.benchmark.scores import Board, newcomers
from ahfal_app.benchmark.tables import (
    difference_table,
    entry_table,
    friedman_text,
    main_table,
    regret_tables,
)
from ahfal_app.results.report import Fact, Panel
from ahfal_app.results.template import PAGE, STYLE

#: By night. Figures are drawn in dark ink: they are turned round, and keep their hues.
_DARK = """
:root { color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #eef1f4; --soft: #a9b4bf; --line: #3a444f; --panel: #1d232a; --mark: #8cc2ff; }
  body { background: #14181d; }
  .banner { background: #33260d; border-color: #d98a1f; }
  figure svg { filter: invert(1) hue-rotate(180deg); }
}
"""

#: Of a method in the terminal.
_WIDEST_NAME = 40

#: What the tests take for granted, and where that fails.
_ASSUMPTIONS = (
    "Friedman's and Nemenyi's tests take blocks for independent of each other. Seeds of one data "
    "set draw other splits and labels of the same samples: what is found holds for such splits of "
    "these data sets, and says nothing of others. Mean ranks hang on which methods take part; the "
    "p-values of pairs do by Holm's correction alone."
)


def print_board(board: Board, console: Console) -> None:
    """Print the table of methods, and the test of all of them."""
    table = main_table(board)
    # What fits into a terminal: the page has the rest.
    columns = [0, *range(1, 3 + len(board.protocol.problems)), len(table.headings) - 2]
    headings = (escape(table.headings[column]) for column in columns)
    grid = Table(
        *headings, title=escape(board.protocol.title), box=SIMPLE_HEAD, collapse_padding=True
    )
    grid.columns[0].no_wrap, grid.columns[0].max_width = True, _WIDEST_NAME
    for row in table.rows:
        grid.add_row(*(escape(row[column]) for column in columns))
    console.print(grid)
    console.print(friedman_text(board), markup=False, soft_wrap=True)


def render_board(board: Board, digest: str) -> str:
    """Return the leaderboard as HTML.

    Parameters
    ----------
    board : Board
        What takes part.
    digest : str
        `protocol_hash`.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    differences = difference_table(board)
    return environment.from_string(PAGE).render(
        title=f"Leaderboard: {board.protocol.title}",
        subtitle=f"Version {board.protocol.version}, protocol {digest[:16]}. {_ASSUMPTIONS}",
        style=STYLE + _DARK,
        banner=_banner(board),
        facts=_facts(board),
        panels=_panels(board),
        tables=[
            main_table(board),
            *([differences] if differences else []),
            *regret_tables(board),
            entry_table(board),
        ],
    )


def _banner(board: Board) -> str:
    """Say what keeps these numbers from being comparable, or complete."""
    lines = []
    codes = board.codes()
    if len(codes) > 1:
        lines.append(f"Run with {len(codes)} versions of the code: see the last table.")
    lacking = [name for name in board.protocol.baselines if name not in board.methods]
    if lacking:
        lines.append(f"{len(lacking)} baselines are missing: {', '.join(lacking)}.")
    return " ".join(lines)


def _facts(board: Board) -> list[Fact]:
    new = [board.methods[place] for place in newcomers(board)]
    protocol = board.protocol
    best = board.order[0]
    level = f"mean rank {board.mean_ranks_M[best]:.2f}"
    if board.groups and board.groups[0][0] == 0:
        level += f", not told apart from {board.groups[0][1]} others"
    return [
        Fact("Methods", f"{len(board.methods)}", f"{len(new)} of them no baselines"),
        Fact(
            "Blocks",
            f"{len(board.cases)}",
            f"{len(protocol.problems)} data sets, {len(protocol.splits)} splits, "
            f"{len(protocol.seeds)} seeds",
        ),
        Fact("Lowest mean rank", board.methods[best], level),
        Fact("Data sets", f"{len(protocol.problems)}", ", ".join(protocol.problems)),
    ]


def _panels(board: Board) -> list[Panel]:
    panels = []
    if len(board.methods) > 1:
        caption = (
            "Along one bar at the right: methods that differ by less than the critical difference "
            f"(CD). Orange: no baseline. {friedman_text(board)}"
        )
        panels.append(Panel(difference_diagram(board), caption))
    caption = "The best by mean rank, the reference, and what is no baseline; 0 is the best."
    panels += [Panel(regret_curves(board, problem), caption) for problem in board.protocol.problems]
    return panels
