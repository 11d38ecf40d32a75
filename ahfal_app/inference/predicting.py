"""Images to classes: folders, files and rows of parquet files, decoded as at a site.

Shapes: N images, B of a batch, H height, W width, c channels, C classes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ahfal_app.data.site.decoding import pixels_of
from ahfal_app.data.site.files import Columns, SiteImage, images_in, list_images
from ahfal_app.data.vectors import VectorColumns
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.inference.saved_model import SavedModel
from ahfal_app.labels.spreadsheet import write_csv

#: Images that go through the network together.
_BATCH = 32

#: Columns that stand before the probabilities.
_COLUMNS = ("file", "class", "probability")


@dataclass(frozen=True)
class Predicted:
    """One batch of predictions.

    Attributes
    ----------
    names : tuple[str, ...]
        The images.
    probabilities_BC : NDArray[np.float32]
        Of the classes, in the model's order.
    """

    names: tuple[str, ...]
    probabilities_BC: NDArray[np.float32]


@dataclass(frozen=True)
class Written:
    """What was predicted and written.

    Attributes
    ----------
    images : int
        How many.
    set_aside : dict[str, str]
        Why others were not, by name.
    seconds : float
        Decoding and prediction.
    """

    images: int
    set_aside: dict[str, str]
    seconds: float


class Predictor:
    """Predicts images with a model on a device.

    Parameters
    ----------
    model : SavedModel
        The model.
    device : torch.device
        Where it computes.
    """

    def __init__(self, model: SavedModel, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._network = model.network.to(device).to(memory_format=torch.channels_last)

    def probabilities(self, samples_B: NDArray[np.uint8 | np.float32]) -> NDArray[np.float32]:
        """Return the probabilities (B, C) of samples of the model's shape.

        Images are bytes (B, H, W, c), vectors float32 (B, D) or (B, 1, 1, D).
        """
        samples_B = samples_B.reshape(len(samples_B), *self.model.sample_shape)
        # torch takes none that is read-only.
        samples_B = np.require(samples_B, requirements=["C", "W"])
        with torch.inference_mode():
            shares_BC: torch.Tensor = self._network(torch.from_numpy(samples_B).to(self._device))
        found: NDArray[np.float32] = shares_BC.cpu().numpy()
        return found

    def predict(
        self, images: Sequence[SiteImage], columns: Columns, set_aside: dict[str, str]
    ) -> Iterator[Predicted]:
        """Yield predictions in the images' order; note in `set_aside` what cannot be decoded."""
        decoded = pixels_of(images, columns, self.model.use.shape)
        usable = _usable(decoded, set_aside)
        while batch := list(itertools.islice(usable, _BATCH)):
            names, pixels = zip(*batch, strict=True)
            yield Predicted(names, self.probabilities(np.stack(pixels)))


def find_images(
    paths: Sequence[Path], columns: Columns = ""
) -> tuple[list[SiteImage], dict[str, str]]:
    """Return the images of folders and files, and why other files are none.

    Where there are several paths, an image's name begins with its path.

    Raises
    ------
    ConfigError
        A path is not there, or there is no image.
    DatasetError
        A file or a folder cannot be read.
    """
    images: list[SiteImage] = []
    problems: dict[str, str] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError([f"{str(path)!r}: allowed is a folder or a file that is there"])
        if path.is_dir():
            found, others = list_images(path, columns, ())
        else:
            found, others = images_in(path, columns), {}
        start = f"{path}/" if len(paths) > 1 and path.is_dir() else ""
        start = f"{path.parent}/" if len(paths) > 1 and not path.is_dir() else start
        images += [_named(image, start + image.name) for image in found]
        problems |= {start + name: reason for name, reason in others.items()}
    if not images:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(problems.items())[:3])
        raise DatasetError(f"{', '.join(map(str, paths))}: no image was found. {told}".rstrip(". "))
    return images, problems


def write_predictions(
    predictor: Predictor,
    paths: Sequence[Path],
    target: Path,
    top: int = 0,
    column: str = "",
) -> Written:
    """Predict images, and write a table of them as CSV.

    It has the columns `file`, `class`, `probability` and one for each class; with `top` = k the
    k most probable classes instead of all. `column` is the one that holds the images or vectors of
    parquet files; empty: the only one that may. What was set aside is in `<target>-not-used.csv`.

    Raises
    ------
    ConfigError, DatasetError
        There are no images, or none can be decoded; nothing is written then.
    """
    columns = VectorColumns(column) if predictor.model.use.vectors else column
    images, set_aside = find_images(paths, columns)
    start = time.perf_counter()
    found = list(predictor.predict(images, columns, set_aside))
    seconds = time.perf_counter() - start
    if not found:
        name, reason = next(iter(set_aside.items()))
        raise DatasetError(f"none of {len(images)} images can be used; {name}: {reason}")
    classes = predictor.model.classes
    names = [name for batch in found for name in batch.names]
    probabilities_NC = np.concatenate([batch.probabilities_BC for batch in found])
    header, rows = _table(names, probabilities_NC, classes, top)
    write_csv(target, header, rows)
    beside = target.with_name(f"{target.stem}-not-used.csv")
    if set_aside:
        write_csv(beside, ("file", "reason"), sorted(set_aside.items()))
    else:
        beside.unlink(missing_ok=True)
    return Written(len(names), set_aside, seconds)


def _table(
    names: Sequence[str],
    probabilities_NC: NDArray[np.float32],
    classes: Sequence[str],
    top: int,
) -> tuple[list[str], list[list[object]]]:
    # Equal probabilities: the first class first.
    order_NC = np.argsort(-probabilities_NC, axis=1, kind="stable")
    likeliest = [
        (classes[order[0]], float(row[order[0]]))
        for order, row in zip(order_NC, probabilities_NC, strict=True)
    ]
    header = list(_COLUMNS)
    if top:
        shown = range(1, min(top, len(classes)))
        header += [text for k in shown for text in (f"class {k + 1}", f"probability {k + 1}")]
        more = [
            [cell for k in shown for cell in (classes[order[k]], _short(row[order[k]]))]
            for order, row in zip(order_NC, probabilities_NC, strict=True)
        ]
    else:
        header += [f"probability of {name}" for name in classes]
        more = [[_short(value) for value in row] for row in probabilities_NC]
    rows = [
        [name, label, _short(share), *cells]
        for name, (label, share), cells in zip(names, likeliest, more, strict=True)
    ]
    return header, rows


def _short(share: float) -> str:
    """Return a probability with all digits that float32 has."""
    return f"{float(share):.7g}"


def _named(image: SiteImage, name: str) -> SiteImage:
    return SiteImage(name, image.path, image.row, image.size, image.modified_ns, image.changed_ns)


def _usable(
    decoded: Iterator[tuple[SiteImage, NDArray[np.uint8] | NDArray[np.float32] | str]],
    set_aside: dict[str, str],
) -> Iterator[tuple[str, NDArray[np.uint8] | NDArray[np.float32]]]:
    for image, found in decoded:
        if isinstance(found, str):
            set_aside[image.name] = found
        else:
            yield image.name, found
