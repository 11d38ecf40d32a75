"""Sites that hold a part of a data set, as image files or as one parquet file, and a test set.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Image, disable_progress_bars
from support.site_images import write_labels

from ahfal_app.config import parse_settings
from ahfal_app.data.columns import find_columns
from ahfal_app.data.files import files_below
from ahfal_app.data.folders import Folder, read_folder
from ahfal_app.data.partition import make_partition
from ahfal_app.data.raw import Columns
from ahfal_app.data.rows import ImageTable
from ahfal_app.seeds import numpy_generator

_PURPOSE = "images of the sites"


@dataclass(frozen=True)
class SiteImages:
    """What is known of a site's images.

    Attributes
    ----------
    truth : dict[str, str]
        The true class, by what the site calls the image.
    contents : dict[bytes, str]
        The true class, by the image's bytes: for somebody who sees nothing else.
    """

    truth: dict[str, str]
    contents: dict[bytes, str]


@dataclass(frozen=True)
class Plan:
    """How many images there are, and how they are dealt out.

    Attributes
    ----------
    sites : tuple[str, ...]
        The sites' names.
    in_parquet : str
        The site that has its images in one parquet file; the others have image files.
    images, test_images : int
        Images of all sites together, and of the test set.
    alpha : float
        Concentration of the Dirichlet distribution of each class over the sites.
    seed : int
        Of what is drawn.
    """

    sites: tuple[str, ...]
    in_parquet: str
    images: int
    test_images: int
    alpha: float
    seed: int


def write_data(data: Path, work: Path, plan: Plan) -> dict[str, SiteImages]:
    """Write `test-set`, and `images` and `truth.csv` below `sites` for each site.

    Parameters
    ----------
    data : Path
        A folder with `train*.parquet` and `test*.parquet`.
    work : Path
        Where all of it goes.
    plan : Plan
        How much goes where.
    """
    disable_progress_bars()
    found = Folder(data, *files_below(data, "data"))
    raw = read_folder(found, Columns("", ""), work / "datasets")
    assert "test" in raw.splits, f"{data}: no test split"
    tables = {split: part.images for split, part in raw.splits.items()}
    assert all(isinstance(table, ImageTable) for table in tables.values()), f"{data}: no table"
    image, label = find_columns(tables["train"].dataset.features, "", "")
    class_names = raw.class_names
    train, test = (
        tables[split].dataset.select_columns([image, label]).cast_column(image, Image(decode=False))
        for split in ("train", "test")
    )
    (work / "test-set").mkdir()
    rows_N = _drawn(len(test), plan.test_images, plan.seed, 1)
    test.select(rows_N).cast_column(image, Image()).to_parquet(work / "test-set" / "test.parquet")
    rows_N = _drawn(len(train), plan.images, plan.seed, 0)
    labels_N = raw.splits["train"].labels_N[rows_N]
    options = {
        "partition": "dirichlet",
        "alpha": plan.alpha,
        "seed": plan.seed,
        "data-dir": str(work / "cache"),
    }
    partition = make_partition(parse_settings(options), labels_N, len(class_names), len(plan.sites))
    sites = {}
    for name, own in zip(plan.sites, partition.indices, strict=True):
        part = train.select(rows_N[own]).select_columns([image])
        classes = [class_names[c] for c in labels_N[own].tolist()]
        folder = work / "sites" / name
        (folder / "images").mkdir(parents=True)
        contents = [each["bytes"] for each in part[image]]
        if name == plan.in_parquet:
            names = _write_parquet(folder / "images", part)
        else:
            names = _write_files(folder / "images", contents, rows_N[own].tolist())
        truth = dict(zip(names, classes, strict=True))
        write_labels(folder / "truth.csv", truth)
        sites[name] = SiteImages(truth, dict(zip(contents, classes, strict=True)))
    return sites


def _drawn(size: int, wanted: int, seed: int, split: int) -> np.ndarray:
    generator = numpy_generator(seed, _PURPOSE, split)
    return np.sort(generator.choice(size, size=wanted, replace=False))


def _write_parquet(folder: Path, part: Dataset) -> list[str]:
    part.to_parquet(folder / "scans.parquet")
    return [f"scans.parquet#{row}" for row in range(len(part))]


def _write_files(folder: Path, contents: Sequence[bytes], rows: Sequence[int]) -> list[str]:
    names = [f"ward-{row % 3}/{row:05d}.jpg" for row in rows]
    for name, content in zip(names, contents, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return names
