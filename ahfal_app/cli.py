"""The command line: one short function for each command of `ahfal`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ahfal_app.errors import AhfalError, ReportError
from ahfal_app.experiments.scales import Scale

if TYPE_CHECKING:
    from ahfal_app.inference.predicting import Predictor

app = typer.Typer(
    help="Federated active learning: the best shared model for the fewest labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


labels_app = typer.Typer(
    help="A site's label store: to a file, from a file, or checked.", no_args_is_help=True
)
app.add_typer(labels_app, name="labels")

_Store = Annotated[
    Path, typer.Argument(metavar="STORE", help="A labels.sqlite, or a folder with one below it.")
]


class Engine(enum.StrEnum):
    """What runs the clients of a simulation."""

    IN_PROCESS = "in-process"
    FLOWER = "flower"


@app.command()
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


@app.command()
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


@app.command()
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


_Protocol = Annotated[
    Path, typer.Argument(metavar="PROTOCOL.yaml", help="Such as conf/benchmark/quick.yaml.")
]


@app.command()
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


@app.command()
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


_Metric = Annotated[
    str,
    typer.Option(
        metavar="METRIC",
        help="What runs are compared by, accuracy or another metric; else as their settings say.",
    ),
]


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of a run or of a sweep.")
    ],
    metric: _Metric = "",
) -> None:
    """Write the report.html of a run or of a sweep anew; a sweep's tables as files, too."""
    from ahfal_app.errors import ConfigError
    from ahfal_app.experiments.report import write_sweep_report
    from ahfal_app.experiments.results import EXPERIMENTS
    from ahfal_app.results.report import write_report
    from ahfal_app.results.summary import print_summary

    if (folder / EXPERIMENTS).is_dir():
        Console().print(
            f"report: {write_sweep_report(folder, metric)}", soft_wrap=True, markup=False
        )
        return
    if metric:
        raise ConfigError([f"--metric={metric!r}: allowed with the folder of a sweep"])
    write_report(folder)
    print_summary(folder, Console())


_Watched = Annotated[
    Path,
    typer.Argument(metavar="RUN|FOLDER", help="A run's folder, or one with several runs in it."),
]


@app.command()
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


@app.command()
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


@app.command()
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


_Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run's folder, or its model.safetensors.")
]
_BackboneWeights = Annotated[
    str,
    typer.Option(
        metavar="WEIGHTS",
        help="The backbone's weights, a file or `pretrained`; else as in its run.",
    ),
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")]


@app.command()
def predict(
    model: _Model,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Folders, image and parquet files.")
    ],
    out: Annotated[Path, typer.Option(help="The table to write.")] = Path("predictions.csv"),
    top: Annotated[
        int, typer.Option(min=0, help="The k most probable classes; 0: all probabilities.")
    ] = 0,
    column: Annotated[
        str, typer.Option(help="Column of parquet files that holds the images, or the vectors.")
    ] = "",
    backbone_weights: _BackboneWeights = "",
    device: _Device = "auto",
) -> None:
    """Predict the classes of images, and write them with probabilities as CSV."""
    from ahfal_app.data.not_used import summary
    from ahfal_app.experiments.output import check_output
    from ahfal_app.inference.predicting import write_predictions

    check_output(out, ".csv")
    predictor = _predictor(model, backbone_weights, device)
    done = write_predictions(predictor, images, out, top, column)
    console = Console()
    rate = done.images / max(done.seconds, 1e-9)
    console.print(
        f"{done.images} samples, {rate:.0f} a second: {out.absolute()}",
        soft_wrap=True,
        markup=False,
    )
    for line in summary(done.set_aside):
        told = f"not used: {line.count} {line.reason}, such as {line.such_as}"
        console.print(told, soft_wrap=True, markup=False)


@app.command()
def evaluate(
    model: _Model,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As the setting `dataset`.")],
    split: Annotated[
        str, typer.Option(help="test, train or all; without a test split one is held out.")
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write all of it as JSON, too.")
    ] = None,
    data_dir: Annotated[str, typer.Option(help="As the setting `data-dir`.")] = "",
    backbone_weights: _BackboneWeights = "",
    device: _Device = "auto",
) -> None:
    """Evaluate a model on labelled images: accuracy, classes, calibration, with intervals."""
    from ahfal_app.experiments.output import check_output
    from ahfal_app.inference.evaluation import checked_split, evaluate_on, evaluation_tables
    from ahfal_app.storage.files import write_json

    if out is not None:
        check_output(out, ".json")
    found = evaluate_on(
        _predictor(model, backbone_weights, device), data, checked_split(split), data_dir
    )
    console = Console()
    for table in evaluation_tables(found):
        grid = Table(*table.headings, title=table.title)
        for row in table.rows:
            grid.add_row(*map(escape, row))
        console.print(grid)
    if out is not None:
        write_json(out, found.to_json())
        console.print(f"all of it: {out.absolute()}", soft_wrap=True, markup=False)


@app.command()
def export(
    model: _Model,
    format_: Annotated[str, typer.Option("--format", help="onnx or torch-export.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default beside the model.")
    ] = None,
    backbone_weights: _BackboneWeights = "",
) -> None:
    """Write a model for other software: bytes in, probabilities out, preprocessing inside."""
    from ahfal_app.experiments.output import check_output
    from ahfal_app.inference import load_model
    from ahfal_app.inference.exporting import export as write
    from ahfal_app.inference.exporting import suffix_of

    suffix = suffix_of(format_)
    saved = load_model(model, backbone_weights)
    target = out or saved.path.with_suffix(suffix)
    check_output(target, suffix)
    write(saved, format_, target)
    Console().print(
        f"{saved.input_text}, to probabilities (B, {len(saved.classes)}): {target.absolute()}",
        soft_wrap=True,
        markup=False,
    )


@app.command()
def serve(
    model: _Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    backbone_weights: _BackboneWeights = "",
    device: _Device = "auto",
) -> None:
    """Answer requests with a model, on this machine alone, until it is interrupted."""
    from ahfal_app.inference.service import serve as serve_model

    console = Console()

    def tell(address: str, token: str) -> None:
        console.print(f"{address}/predict; description: {address}/openapi.json", soft_wrap=True)
        console.print(f"Authorization: Bearer {token}", soft_wrap=True, markup=False)

    with contextlib.suppress(KeyboardInterrupt):
        serve_model(_predictor(model, backbone_weights, device), port, tell)


def _predictor(model: Path, backbone_weights: str, device: str) -> Predictor:
    from ahfal_app.inference import load_model
    from ahfal_app.inference.predicting import Predictor
    from ahfal_app.training.resources import resolve_device

    return Predictor(load_model(model, backbone_weights), resolve_device(device))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs' folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    metric: _Metric = "",
) -> None:
    """Compare runs: a table here, and a page with figures and tests."""
    from ahfal_app.experiments.compare import compare_runs, refuse_repetitions
    from ahfal_app.experiments.output import check_output, write_output
    from ahfal_app.experiments.report import render_sweep_report
    from ahfal_app.experiments.tables import accuracy_table

    check_output(out, ".html")
    refuse_repetitions(folders)
    results = compare_runs(folders, metric)
    table = accuracy_table(results)
    console = Console()
    grid = Table(*table.headings, title=table.title)
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
    write_output(out, render_sweep_report(results))
    console.print(f"report: {out.absolute()}", soft_wrap=True, markup=False)


@app.command()
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


@app.command()
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


@app.command()
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


@labels_app.command("export")
def export_labels(
    store: _Store,
    target: Annotated[Path, typer.Argument(metavar="LABELS.csv", help="The file to write.")],
) -> None:
    """Write all that a store holds into a CSV file; a site's next run reads it as labels.csv."""
    from ahfal_app.labels.exchange import export_labels as export

    count = export(store, target)
    Console().print(f"{count} labels: {target.absolute()}", soft_wrap=True, markup=False)


@labels_app.command("import")
def import_labels(
    store: _Store,
    source: Annotated[
        Path, typer.Argument(metavar="LABELS.csv", help="A file with columns `file` and `label`.")
    ],
    annotator: Annotated[
        str, typer.Option(help="Who has labelled, where the file does not say.")
    ] = "import",
    correct: Annotated[
        bool, typer.Option("--correct", help="Replace other labels, from the next cycle on.")
    ] = False,
) -> None:
    """Take in answers to what was asked for: the whole file, or nothing of it."""
    from ahfal_app.labels.exchange import import_labels as take_in

    done = take_in(store, source, annotator, correct)
    settled = f", {done.settled} settled" if done.settled else ""
    Console().print(
        f"{done.labelled} labelled, {done.skipped} skipped, {done.corrected} corrected, "
        f"{done.conflicts} new contradictions{settled}"
    )


@labels_app.command("history")
def labels_history(
    store: _Store,
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help="Tell of this image alone.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write it into a new CSV file.")
    ] = None,
) -> None:
    """Tell who labelled what, and when, with all that was taken back or corrected."""
    from ahfal_app.labels.exchange import label_history, write_history

    history = label_history(store, image)
    console = Console()
    if out is not None:
        write_history(history, out)
        console.print(f"{len(history.events)} lines: {out.absolute()}", markup=False)
        return
    table = Table("image", "what", "class", "by", "said (UTC)", "stands", "comment")
    for column in table.columns:
        column.overflow = "fold"
    for event in history.events:
        said = (event.at or event.received)[:19].replace("T", " ")
        remark = "; ".join(filter(None, ("unsure" if event.unsure else "", event.comment)))
        name, label = history.files[event.sample], history.label_text(event)
        stands = "yes" if event.stands else ""
        texts = (name, event.what, label, event.annotator, said, stands, remark)
        table.add_row(*map(escape, texts))
    console.print(table if table.rows else "nothing was said yet")


@labels_app.command("agreement")
def labels_agreement(store: _Store) -> None:
    """Tell how far those agree who have read the same images: Cohen's and Fleiss' kappa."""
    from ahfal_app.labels.exchange import label_agreement

    found, console = label_agreement(store), Console()
    if not found.images:
        console.print("no image was read by several people")
        return
    console.print(
        f"{found.images} images were read by several people: {found.unanimous} unanimously; "
        f"{found.settled} were settled by somebody else"
    )
    console.print(
        f"Fleiss' kappa: {_kappa(found.fleiss)} ({found.read} images, {found.readers} readers each)"
    )
    table = Table("reader", "and", "images", "agreed", "Cohen's kappa")
    for pair in found.pairs:
        agreed = f"{pair.agreed} ({100 * pair.agreed / pair.images:.1f} %)"
        people = (escape(pair.first), escape(pair.second))
        table.add_row(*people, str(pair.images), agreed, _kappa(pair.kappa))
    console.print(table)


def _kappa(value: float | None) -> str:
    return "undefined, all say the same" if value is None else f"{value:.3f}"


@labels_app.command("verify")
def verify_labels(store: _Store) -> None:
    """Check a store, and list the answers that contradict each other."""
    from ahfal_app.labels.exchange import verify_store

    found = verify_store(store)
    ledger, console = found.ledger, Console()
    console.print(f"{found.path}: sound", soft_wrap=True, markup=False)
    console.print(
        f"{ledger.allotted} labels allotted = {ledger.spent} spent + {ledger.reserved} reserved + "
        f"{ledger.free} free"
    )
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    console.print(f"images: {states or 'none'}")
    if not found.conflicts:
        return
    names = found.class_names
    table = Table("image", "stands", "other answer", "by", title="contradictions")
    for c in found.conflicts:
        texts = (found.files[c.sample], names[c.standing_label], names[c.label], c.annotator)
        table.add_row(*map(escape, texts))
    console.print(table)


@app.command()
def label(
    state_dir: Annotated[
        Path,
        typer.Argument(metavar="STATE_DIR", help="The site's state-dir, or its oracle's folder."),
    ],
    only_list: Annotated[
        bool, typer.Option("--list", help="List what is open, and serve no page.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free.")
    ] = 0,
    annotator: Annotated[str, typer.Option(help="Who labels; kept with each answer.")] = "page",
    show_guess: Annotated[
        bool,
        typer.Option("--show-guess", help="Show the model's guess, which may sway who labels."),
    ] = False,
    hide_names: Annotated[
        bool, typer.Option("--hide-names", help="Call images by number, and not by file.")
    ] = False,
    adjudicator: Annotated[
        bool, typer.Option("--adjudicator", help="Settle what readers disagree on, too.")
    ] = False,
    language: Annotated[
        str, typer.Option(metavar="auto|en|de", help="The page's; auto: what the browser wants.")
    ] = "auto",
) -> None:
    """List what is to be labelled at a site, and label it in a page of the browser."""
    from ahfal_app.label_page.app import PageOptions
    from ahfal_app.label_page.open_requests import desk_folder, store_beside
    from ahfal_app.label_page.serve import serve
    from ahfal_app.label_page.texts import AUTO, TEXTS

    console = Console()
    if not state_dir.exists():
        raise typer.BadParameter(f"{state_dir}: no such folder")
    if only_list:
        _list_open(state_dir, console)
        return
    if not state_dir.is_dir():
        raise typer.BadParameter(f"{state_dir}: no folder")
    if not annotator.strip():
        raise typer.BadParameter("--annotator: a name is needed")
    if language not in (AUTO, *TEXTS):
        raise typer.BadParameter(f"--language {language}: allowed is {' | '.join((AUTO, *TEXTS))}")

    def tell(address: str) -> None:
        console.print(f"open in a browser on this machine: {address}", soft_wrap=True, markup=False)
        console.print(f"requests are taken from {folder}", soft_wrap=True, markup=False)
        console.print("Ctrl-C ends it; what was answered is kept.")

    folder = desk_folder(state_dir)
    options = PageOptions(show_guess, hide_names, language, adjudicator, store_beside(folder))
    # Ctrl-C is how it is meant to end.
    with contextlib.suppress(KeyboardInterrupt):
        serve(folder, annotator.strip(), port, options, tell)


def _list_open(state_dir: Path, console: Console) -> None:
    from ahfal_app.label_page.open_requests import open_requests

    table = Table(
        "request", "cycle", "chosen by", "asked (UTC)", "samples", "to label", "to settle", "ready"
    )
    for column in table.columns:
        # Rather several lines than dots in place of what is meant.
        column.overflow = "fold"
    for r in open_requests(state_dir):
        to_label = r.missing - r.waiting - r.disputed
        numbers = (str(r.samples), str(to_label), str(r.disputed), str(r.waiting))
        asked = r.created[:19].replace("T", " ")
        table.add_row(r.request[:12], str(r.cycle), escape(r.strategy), asked, *numbers)
    console.print(table if table.rows else "nothing is open")


@app.command()
def certs(
    out: Annotated[Path, typer.Option(help="The folder to write; it gets one folder a machine.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A DNS name or address by which sites reach the server; repeatable."),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site's name; repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are valid.")] = 365,
) -> None:
    """Write certificates and keys for a deployment: TLS and SuperNode authentication."""
    from ahfal_app.deployment.certificates import write_certificates

    for path in write_certificates(out, host or [], site or [], days):
        print(path)


@app.command()
def doctor(
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="As for flower-supernode.")],
    node_config: Annotated[str, typer.Option(help="As for flower-supernode.")],
    root_certificates: Annotated[
        Path | None, typer.Option(help="As for flower-supernode: the file ca.crt.")
    ] = None,
    private_key: Annotated[
        Path | None,
        typer.Option(
            "--private-key", "--auth-supernode-private-key", help="As for flower-supernode."
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="As for flower-supernode.")] = False,
    classes: Annotated[
        str, typer.Option(help="The classes, as the run says them: `nevus,melanoma`.")
    ] = "",
    backbone: Annotated[str, typer.Option(help="The backbone, as the run says it.")] = "",
    backbone_size: Annotated[
        int, typer.Option(help="Its size, where the run says one; 0: its own.")
    ] = 0,
    feature_views: Annotated[
        int, typer.Option(help="Augmented views of an image, where the run says a number.")
    ] = 0,
) -> None:
    """Check a site before it joins: versions, device, data, labels, folders, key, link, clock."""
    from ahfal_app.deployment.doctor import Site, Verdict, examine

    run: dict[str, object] = {}
    if backbone:
        run = {
            "backbone": backbone,
            "backbone-size": backbone_size,
            "feature-views": feature_views,
        }
    site = Site(node_config, superlink, root_certificates, private_key, insecure, classes, run)
    failed = False
    for finding in examine(site):
        failed |= finding.verdict is Verdict.FAILURE
        line = f"{finding.verdict:8}{finding.check:12}{finding.text}"
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


# Of commands that are Flower's with other insides: their arguments are Flower's, too.
_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_ANY_ARGUMENTS, add_help_option=False)
def supernode(context: typer.Context) -> None:
    """Run a site: flower-supernode, with AHFAL's SuperExec beside it."""
    from ahfal_app.deployment.supernode import main

    main(context.args)


@app.command(context_settings=_ANY_ARGUMENTS, add_help_option=False)
def superexec(context: typer.Context) -> None:
    """Run what starts a site's ClientApps: of the installed code alone, one at a time."""
    from ahfal_app.deployment.superexec import main

    main(context.args)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a named error is told in its own words, with exit code 1."""
    try:
        app(arguments)
    except AhfalError as error:
        console = Console(stderr=True)
        text = f"{type(error).__name__}: {error}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
