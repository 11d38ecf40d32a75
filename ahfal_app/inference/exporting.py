"""A model in formats of exchange: samples in, probabilities out, preprocessing in the graph.

Shapes: B images, H height, W width, c channels, C classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ahfal_app.errors import ConfigError
from ahfal_app.inference.saved_model import SavedModel
from ahfal_app.parameters import suggestion
from ahfal_app.storage.files import write_bytes

#: Version of ONNX's operators in exported files.
OPSET = 18

#: Names of the input and the output.
INPUT, OUTPUT = "images", "probabilities"


def export_onnx(model: SavedModel, target: Path) -> None:
    """Write a model as ONNX of opset `OPSET`, for any number of samples.

    The input `images` is uint8 (B, H, W, c), of vectors float32 (B, D), the output
    `probabilities` float32 (B, C). The classes, and what the input must be like, are in its
    metadata.

    Raises
    ------
    ConfigError
        The packages that this takes are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            [
                f"format='onnx': {missing[0]} is not installed; "
                "`uv sync --extra onnx`, or pip install 'ahfal-app[onnx]', has what is needed"
            ]
        )
    program = torch.onnx.export(
        model.network,
        (_example(model),),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("B")},),
        verbose=False,
    )
    if program is None:
        raise ConfigError(["format='onnx': torch gave no program"])
    proto = program.model_proto
    for key, value in _facts(model).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    write_bytes(target, proto.SerializeToString())


def export_torch(model: SavedModel, target: Path) -> None:
    """Write a model as a program of `torch.export`, for any number of samples.

    `torch.export.load` reads it without any code of ours; the file `ahfal.json` in it has the
    classes and what the input must be like.
    """
    program = torch.export.export(
        model.network, (_example(model),), dynamic_shapes=({0: torch.export.Dim("B")},)
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"ahfal.json": json.dumps(_facts(model))})
    write_bytes(target, buffer.getvalue())


#: What writes each format, and the end of its files' names.
FORMATS: dict[str, tuple[Callable[[SavedModel, Path], None], str]] = {
    "onnx": (export_onnx, ".onnx"),
    "torch-export": (export_torch, ".pt2"),
}


def export(model: SavedModel, format_: str, target: Path) -> None:
    """Write a model in one of `FORMATS`, quietly.

    Raises
    ------
    ConfigError
        There is no such format, or what it takes is not installed.
    """
    suffix_of(format_)
    with _quiet():
        FORMATS[format_][0](model, target)


def suffix_of(format_: str) -> str:
    """Return what names of a format's files end in.

    Raises
    ------
    ConfigError
        There is no such format.
    """
    if format_ not in FORMATS:
        raise ConfigError(
            [f"format={format_!r}: allowed is {' | '.join(FORMATS)}{suggestion(format_, FORMATS)}"]
        )
    return FORMATS[format_][1]


def _example(model: SavedModel) -> torch.Tensor:
    # Of two, since tools take a size of 1 for one that never changes.
    dtype = torch.float32 if model.use.vectors else torch.uint8
    return torch.zeros((2, *model.sample_shape), dtype=dtype)


def _facts(model: SavedModel) -> dict[str, str]:
    return {
        "classes": json.dumps(model.classes),
        "input": model.input_text,
        "written-by": f"ahfal {model.use.code}",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell of themselves from the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
