"""Commands about a site's labels."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Labels")


store_commands = typer.Typer(
    help="A site's label store: to a file, from a file, or checked.", no_args_is_help=True
)


_Store = Annotated[
    Path, typer.Argument(metavar="STORE", help="A labels.sqlite, or a folder with one below it.")
]


@store_commands.command("export")
def export_labels(
    store: _Store,
    target: Annotated[Path, typer.Argument(metavar="LABELS.csv", help="The file to write.")],
) -> None:
    """Write all that a store holds into a CSV file; a site's next run reads it as labels.csv."""
    from ahfal_app.labels.exchange import export_labels as export

    count = export(store, target)
    Console().print(f"{count} labels: {target.absolute()}", soft_wrap=True, markup=False)


@store_commands.command("import")
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


@store_commands.command("history")
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


@store_commands.command("agreement")
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


@store_commands.command("verify")
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


@command()
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
