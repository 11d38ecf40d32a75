"""Commands that use a trained model."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ahfal_app.inference.predicting import Predictor

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Models")


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


@command()
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


@command()
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
    if found.note:
        console.print(found.note, soft_wrap=True, markup=False)
    if out is not None:
        write_json(out, found.to_json())
        console.print(f"all of it: {out.absolute()}", soft_wrap=True, markup=False)


@command()
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


@command()
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
    from ahfal_app.training.choices import resolve_device

    return Predictor(load_model(model, backbone_weights), resolve_device(device))
