"""Commands that make a run, or show one."""

from __future__ import annotations

import contextlib
import enum
import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ahfal_app.cli.options import Metric, Reference

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Runs")


class Engine(enum.StrEnum):
    """What runs the clients of a simulation."""

    IN_PROCESS = "in-process"
    FLOWER = "flower"


_Watched = Annotated[
    Path,
    typer.Argument(metavar="RUN|FOLDER", help="A run's folder, or one with several runs in it."),
]


@command()
def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [key=value]...",
            help="A YAML file of settings, then settings that override it.",
        ),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Run clients in this process, or in Flower's simulation.")
    ] = Engine.IN_PROCESS,
) -> None:
    """Run federated active learning; `ahfal settings` lists what can be set."""
    from ahfal_app.config_sources import read_arguments

    values = read_arguments(arguments or [])
    try:
        if engine is Engine.FLOWER:
            from ahfal_app.engine.flower import run_on_flower

            run_on_flower(values, Console())
        else:
            from ahfal_app.engine.local import run_in_process

            run_in_process(values, Console())
    except KeyboardInterrupt:
        # The shell's code for it; Click would make it 1.
        raise typer.Exit(130) from None


@command()
def rehearse(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [key=value]...",
            help="As for `ahfal run`; also the TOML file that `flwr run` gets.",
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE_CONFIG",
            help="A site, as its flower-supernode gets it as --node-config; once for each.",
        ),
    ] = None,
) -> None:
    """Run over sites as it will be, on this machine; with `truth`, without people."""
    from ahfal_app.config_sources import read_arguments
    from ahfal_app.engine.rehearsal import rehearse as rehearse_run

    try:
        rehearse_run(read_arguments(arguments or []), site or [], Console())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of a run or of a sweep.")
    ],
    metric: Metric = "",
    reference: Reference = "",
) -> None:
    """Write the report.html of a run or of a sweep anew; a sweep's tables as files, too."""
    from ahfal_app.errors import ConfigError
    from ahfal_app.experiments.report import write_sweep_report
    from ahfal_app.experiments.results import EXPERIMENTS
    from ahfal_app.results.report import write_report
    from ahfal_app.results.summary import print_summary

    if (folder / EXPERIMENTS).is_dir():
        page = write_sweep_report(folder, metric, reference)
        Console().print(f"report: {page}", soft_wrap=True, markup=False)
        return
    said = {"metric": metric, "reference": reference}
    if problems := [
        f"--{name}={value!r}: allowed with the folder of a sweep"
        for name, value in said.items()
        if value
    ]:
        raise ConfigError(problems)
    write_report(folder)
    print_summary(folder, Console())


@command()
def status(
    folder: _Watched,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until all runs have ended.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON; with --watch a line each time.")
    ] = False,
) -> None:
    """Tell how far runs are, and whom they wait for.

    Exit code: 0 where all goes well or is done, 1 where there is no run, 3 where a run has failed,
    was interrupted, cannot be read or has been silent for a minute, 4 where one waits for labels
    and the others are well.
    """
    from ahfal_app.results.overview_text import exit_code, print_overviews, watch_overviews

    tell = watch_overviews if watch else print_overviews
    with contextlib.suppress(KeyboardInterrupt):
        raise typer.Exit(exit_code(tell(folder, as_json)))
    raise typer.Exit(130)


@command()
def watch(
    folder: _Watched,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free.")
    ] = 0,
) -> None:
    """Show in a page of the browser how far runs are, and whom they wait for."""
    from ahfal_app.results.overview import run_folders
    from ahfal_app.watch_page.app import serve

    console = Console()
    runs = run_folders(folder)

    def tell(address: str) -> None:
        console.print(f"open in a browser on this machine: {address}", soft_wrap=True, markup=False)
        console.print(f"runs: {len(runs)}; Ctrl-C ends the page, and no run.")

    with contextlib.suppress(KeyboardInterrupt):
        serve(folder, port, tell)


@command()
def partition(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG.yaml] [key=value]...", help="As for `ahfal run`."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("partition.svg"),
) -> None:
    """Draw how a split spreads the classes over the clients, before paying for labels."""
    from ahfal_app.config_sources import read_arguments
    from ahfal_app.experiments.partition import draw_partition

    draw_partition(read_arguments(arguments or []), out, Console())
