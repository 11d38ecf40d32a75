"""The command line: one short function for each command of `ahfal`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console

from ahfal_app.cli import labels, lists, models, runs, sites, studies
from ahfal_app.errors import AhfalError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Federated active learning: the best shared model for the fewest labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _module in (runs, studies, models, labels, sites, lists):
    app.add_typer(_module.commands)
app.add_typer(labels.store_commands, name="labels", rich_help_panel="Labels")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a named error is told in its own words, with exit code 1."""
    try:
        app(arguments)
    except AhfalError as error:
        console = Console(stderr=True)
        text = f"{type(error).__name__}: {error}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
