"""Commands about several runs: sweeps, benchmarks, comparisons, forecasts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ahfal_app.cli.options import Metric, Reference
from ahfal_app.errors import ReportError
from ahfal_app.experiments.scales import Scale

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Comparisons")


_Protocol = Annotated[
    Path, typer.Argument(metavar="PROTOCOL.yaml", help="Such as conf/benchmark/quick.yaml.")
]


@command()
def sweep(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE.yaml... [key=value]...",
            help="Files of experiments, then settings that replace the files'.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The sweep's folder; give it again to resume.")],
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at the same time; by default one a core, or 4 a GPU."),
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="How much of it: paper, small or smoke.")
    ] = Scale.PAPER,
    force: Annotated[bool, typer.Option(help="Do again what is done.")] = False,
) -> None:
    """Run experiments' grids, what is missing of them; `conf/paper/` has the paper's."""
    from ahfal_app.config_sources import is_setting, read_arguments
    from ahfal_app.experiments.files import load_experiments
    from ahfal_app.experiments.report import write_sweep_report
    from ahfal_app.experiments.sweep import run_sweep

    files = [Path(argument) for argument in arguments if not is_setting(argument)]
    overrides = read_arguments([argument for argument in arguments if is_setting(argument)])
    experiments = load_experiments(files, scale, overrides)
    try:
        result = run_sweep(experiments, out, Console(), jobs, force)
    except KeyboardInterrupt:
        Console().print(f"stopped; the same command goes on: {out.absolute()}", markup=False)
        raise typer.Exit(130) from None
    Console().print(f"report: {write_sweep_report(out)}", soft_wrap=True, markup=False)
    if result.failed:
        raise typer.Exit(1)


@command()
def benchmark(
    protocol: _Protocol,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[strategy=NAME] [key=value]...",
            help="What takes part, and where files lie; without a strategy the baselines alone.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of its runs; give it again to resume.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the method is called; empty: as its strategy.")
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at the same time; by default one a core, or 4 a GPU."),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave out baselines whose results are not there.")
    ] = False,
    lock: Annotated[
        bool, typer.Option("--lock", help="Write the fingerprints of a protocol of your own.")
    ] = False,
) -> None:
    """Run a query strategy under a fixed protocol, and put it beside the baselines."""
    from ahfal_app.benchmark.lock import lock_file, make_lock
    from ahfal_app.benchmark.protocol import method_and_places, read_protocol
    from ahfal_app.benchmark.running import Benchmark, take_part
    from ahfal_app.config_sources import read_arguments
    from ahfal_app.storage.files import write_text

    values, console = read_arguments(arguments or []), Console()
    method, places = method_and_places(read_protocol(protocol), values, name)
    if lock:
        path = lock_file(protocol)
        made = make_lock(read_protocol(protocol), places)
        write_text(path.absolute(), made.model_dump_json(indent=1) + "\n")
        console.print(f"written: {path.absolute()}", soft_wrap=True, markup=False)
        return
    if out is None:
        raise typer.BadParameter("--out: a folder is needed")
    try:
        result = take_part(Benchmark.read(protocol), method, places, out, console, jobs, alone)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on: {out.absolute()}", markup=False)
        raise typer.Exit(130) from None
    if result.failed:
        raise typer.Exit(1)


@command()
def leaderboard(
    protocol: _Protocol,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE.jsonl]...", help="Submissions, beside the baselines."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("leaderboard.html"),
) -> None:
    """Check submissions to a benchmark, and compare them with its baselines."""
    from ahfal_app.benchmark.running import Benchmark, show
    from ahfal_app.errors import BenchmarkError
    from ahfal_app.experiments.output import check_output

    check_output(out, ".html")
    found = Benchmark.read(protocol)
    submissions = found.with_cached(files or [])
    if not submissions:
        raise BenchmarkError([f"{protocol}: no results; allowed is at least one file of them"])
    show(found, submissions, out, Console())


@command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs' folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    metric: Metric = "",
    reference: Reference = "",
) -> None:
    """Compare runs: a table here, and a page with figures and tests."""
    from ahfal_app.experiments.compare import compare_runs, refuse_repetitions
    from ahfal_app.experiments.output import check_output, write_output
    from ahfal_app.experiments.report import render_sweep_report
    from ahfal_app.experiments.results import with_reference
    from ahfal_app.experiments.same_data import data_warnings
    from ahfal_app.experiments.tables import accuracy_table

    check_output(out, ".html")
    refuse_repetitions(folders)
    results = with_reference(reference, compare_runs(folders, metric))
    table = accuracy_table(results)
    console = Console()
    grid = Table(*table.headings, title=table.title)
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
    for warning in data_warnings(results):
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    write_output(out, render_sweep_report(results))
    console.print(f"report: {out.absolute()}", soft_wrap=True, markup=False)


@command()
def forecast(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run's folder; several: its seeds.")
    ],
    accuracy: Annotated[
        float | None, typer.Option(help="The test accuracy that is wanted, as a share.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="In its place: labels that can still be bought.")
    ] = None,
    label_cost: Annotated[
        float | None, typer.Option(min=0, help="What a label costs; else as in the run's settings.")
    ] = None,
    round_cost: Annotated[
        float | None, typer.Option(min=0, help="What a round costs; else as in the run's settings.")
    ] = None,
    currency: Annotated[
        str | None, typer.Option(help="Of the costs; else as in the run's settings.")
    ] = None,
) -> None:
    """Tell what an accuracy takes, or a budget gives, by the learning curve of a run so far."""
    from ahfal_app.results import forecast as forecasts

    if (accuracy is None) == (budget is None):
        raise ReportError("--accuracy, --budget: allowed is one of them")
    points = forecasts.points_of(folders).priced(label_cost, round_cost, currency)
    console = Console()
    if budget is not None:
        gives = forecasts.forecast_runs_budget(points, budget)
        if gives.accuracy is None:
            console.print(gives.reason, soft_wrap=True, markup=False)
            return
        table = forecasts.budget_table(gives, points)
    else:
        found = forecasts.forecast_runs(points, accuracy or 0.0)
        if found.reached is not None:
            console.print(f"the run has it already, with {found.reached} labels")
            return
        if found.labels is None:
            console.print(found.reason, soft_wrap=True, markup=False)
            return
        table = forecasts.forecast_table(found, points)
    grid = Table(*table.headings, title=table.title)
    for row in table.rows:
        grid.add_row(*map(escape, row))
    console.print(grid)
    console.print(
        "Of the curve's bend alone: how a run scatters, other seeds and other curves are not in it."
        if budget is None
        else "Of this curve: other seeds and other curves are not in it."
    )
