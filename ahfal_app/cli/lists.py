"""Commands that list what there is."""

from __future__ import annotations

import functools
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Lists")


@command()
def strategies(
    name: Annotated[
        str | None, typer.Argument(help="Tell all about this one, its parameters too.")
    ] = None,
) -> None:
    """List the query strategies: name, what they need, their paper."""
    from ahfal_app.query import strategy_entry, strategy_table

    console = Console()
    if name is None:
        table = Table("name", "what it takes", "needs", "paper")
        for entry in strategy_table():
            needs = "\n".join(entry.signals) or "-"
            table.add_row(entry.name, entry.summary, needs, entry.paper)
        console.print(table)
        console.print("`ahfal strategies NAME` tells all about one, its parameters too.")
        return
    entry = strategy_entry(name)
    console.print(f"{entry.name}: {entry.description}\n", markup=False, soft_wrap=True)
    console.print(f"Paper: {entry.paper}", markup=False, soft_wrap=True)
    console.print(f"Needs: {', '.join(entry.signals) or 'nothing'}\n", markup=False)
    table = Table("parameter", "default", "allowed", "meaning")
    for parameter in entry.parameters:
        default = str(parameter.default)
        table.add_row(parameter.key, default, parameter.allowed, parameter.meaning)
    if entry.parameters:
        console.print(table)


@command()
def settings(
    markdown: Annotated[bool, typer.Option(help="As the README's Markdown table.")] = False,
    toml: Annotated[bool, typer.Option(help="As the defaults in pyproject.toml.")] = False,
) -> None:
    """List all settings: name, default, what is allowed, meaning."""
    from ahfal_app import settings_table

    if markdown:
        print(settings_table.settings_markdown())
    elif toml:
        print(settings_table.settings_toml())
    else:
        table = Table("setting", "default", "allowed", "meaning")
        for row in settings_table.settings_rows():
            table.add_row(*row)
        Console().print(table)
