"""Local folders of images or parquet files: what is found in them is used, or named."""

from __future__ import annotations

import bisect
import glob
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ahfal_app.data.files import (
    LARGEST_FILE,
    NO_IMAGE,
    PARQUET,
    SUFFIXES,
    FoundFile,
    too_large,
)
from ahfal_app.data.layout import TRAIN, image_layout, parquet_layout
from ahfal_app.data.not_used import summary, told
from ahfal_app.data.raw import Columns, RawData, RawSplit
from ahfal_app.data.rows import ImageFiles
from ahfal_app.errors import DatasetError
from ahfal_app.storage.names import readable

#: Rows of a parquet file that are held at a time, as its groups may be the whole file.
_ROWS_AT_ONCE = 1000

_SAVED = ("dataset_dict.json", "state.json")
_BESIDE_SAVED = "beside a saved data set"
_BESIDE_PARQUET = "beside parquet files with images, and in no folders of classes"


@dataclass(frozen=True)
class Folder:
    """A local folder and what is in it.

    Attributes
    ----------
    path : Path
        The folder.
    files : Sequence[FoundFile]
        All its files.
    problems : Mapping[str, str]
        Why what else is there cannot be read, by name.
    """

    path: Path
    files: Sequence[FoundFile]
    problems: Mapping[str, str]

    @property
    def where(self) -> str:
        """The setting that names it."""
        return f"dataset={str(self.path)!r}"


def read_folder(folder: Folder, columns: Columns, work_dir: Path) -> RawData:
    """Read a local folder: saved with `save_to_disk`, parquet files or an image folder.

    Parameters
    ----------
    folder : Folder
        The folder.
    columns : Columns
        Which columns hold images and labels.
    work_dir : Path
        Folder for what `datasets` writes in between.

    Raises
    ------
    DatasetError
        The folder holds nothing of the kind, cannot be read, or may mean several things.
    """
    not_used = {readable(name): reason for name, reason in folder.problems.items()}
    images, parquets = [], []
    for file in folder.files:
        if file.suffix == PARQUET:
            parquets.append(file)
        elif file.suffix not in SUFFIXES:
            not_used[readable(file.name)] = NO_IMAGE
        elif file.size > LARGEST_FILE:
            not_used[readable(file.name)] = too_large(file.size, LARGEST_FILE)
        else:
            images.append(file)
    if any((folder.path / name).is_file() for name in _SAVED):
        return _saved(folder, [*images, *parquets], columns)
    if parquets:
        parquets = _with_images(
            parquets, columns.image, not_used, folder.where, has_images=bool(images)
        )
    if images and parquets:
        images = _unless_meant(images, parquets, not_used, folder.where)
    if parquets:
        return _parquets(parquets, not_used, columns, work_dir, folder.where)
    if images:
        return _images(images, not_used, columns, folder.where)
    from ahfal_app.data.reading import LOCAL_HINT

    raise DatasetError(f"{folder.where}: nothing to read; {LOCAL_HINT}{_besides(not_used)}")


def _besides(not_used: Mapping[str, str]) -> str:
    return f"; not used: {told(summary(not_used))}" if not_used else ""


def _saved(folder: Folder, beside: Sequence[FoundFile], columns: Columns) -> RawData:
    from ahfal_app.data.reading import read_saved

    raw = read_saved(folder.path, columns, folder.where)
    raw.not_used.update({readable(file.name): _BESIDE_SAVED for file in beside})
    return raw


def _images(
    images: Sequence[FoundFile], not_used: dict[str, str], columns: Columns, where: str
) -> RawData:
    for key, value, own in (
        ("image-column", columns.image, "image"),
        ("label-column", columns.label, "label"),
    ):
        if value not in ("", own):
            raise DatasetError(f"{key}={value!r}: no such column; image files have image, label")
    names = [readable(file.name) for file in images]
    try:
        layout, classes = image_layout([file.name for file in images], where)
    except DatasetError as error:
        raise DatasetError(f"{error}{_besides(not_used)}") from error
    not_used |= {names[i]: reason for i, reason in layout.not_used.items()}
    class_names = sorted(set(classes.values()))
    label_of = {name: label for label, name in enumerate(class_names)}
    splits = {
        split: RawSplit(
            ImageFiles([images[i].path for i in rows], [names[i] for i in rows]),
            np.array([label_of[classes[i]] for i in rows], np.int64),
        )
        for split, rows in layout.splits.items()
    }
    shown = tuple(map(readable, class_names))
    return RawData(where, splits, shown, not_used, layout.notes, sets_aside=True)


def _with_images(
    parquets: Sequence[FoundFile],
    image_column: str,
    not_used: dict[str, str],
    where: str,
    *,
    has_images: bool,
) -> list[FoundFile]:
    """Return the parquet files that have images; the others are not used, unless all are alike."""
    import pyarrow as pa
    from pyarrow import parquet

    from ahfal_app.data.parquet import image_columns

    fitting, reasons = [], {}
    for file in parquets:
        try:
            schema = parquet.read_schema(file.path)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DatasetError(
                f"{where}: the folder cannot be read: {type(error).__name__}: {file.path}: {error}"
            ) from error
        if image_columns(schema, image_column):
            fitting.append(file)
        else:
            columns = ", ".join(schema.names)
            reasons[readable(file.name)] = f"no column with images; it has {columns}"
    if not fitting and not has_images:
        return list(parquets)  # Reading them tells best what is missing.
    not_used |= reasons
    return fitting


def _unless_meant(
    images: list[FoundFile],
    parquets: Sequence[FoundFile],
    not_used: dict[str, str],
    where: str,
) -> list[FoundFile]:
    """Pass over images beside parquet files, but for images that may be the data set."""
    try:
        image_layout([file.name for file in images], where)
    except DatasetError:
        not_used |= {readable(file.name): _BESIDE_PARQUET for file in images}
        return []
    raise DatasetError(
        f"{where}: {len(images)} image files in folders of classes (such as "
        f"{readable(images[0].name)}) and {len(parquets)} parquet files with images (such as "
        f"{readable(parquets[0].name)}): which are meant is not known; move the others elsewhere"
    )


def _parquets(
    found: Sequence[FoundFile],
    not_used: dict[str, str],
    columns: Columns,
    work_dir: Path,
    where: str,
) -> RawData:
    import datasets
    from pyarrow import parquet
    from pyarrow.dataset import ParquetFragmentScanOptions

    from ahfal_app.data.reading import from_tables, reading

    counts = [parquet.read_metadata(file.path).num_rows for file in found]
    for file, count in zip(found, counts, strict=True):
        if not count:  # On such files `datasets` fails without saying why.
            raise DatasetError(f"dataset: {file.path} is empty; a split must have rows")
    layout = parquet_layout([file.name for file in found], where)
    splits, row_names = {}, {}
    for split, rows in layout.splits.items():
        # Characters that are special in patterns stand for themselves here.
        paths = [glob.escape(found[i].path) for i in rows]
        with reading(f"{where}: the folder cannot be read"):
            splits[split] = datasets.load_dataset(
                "parquet",
                data_files={TRAIN: paths},
                split=TRAIN,
                cache_dir=str(work_dir),
                batch_size=_ROWS_AT_ONCE,
                # Files lie here: nothing is won by reading ahead, which takes their memory.
                fragment_scan_options=ParquetFragmentScanOptions(pre_buffer=False),
            )
        ends = list(itertools.accumulate(counts[i] for i in rows))
        if len(splits[split]) != ends[-1]:
            raise DatasetError(f"{where}: {len(splits[split])} of {ends[-1]} rows were read")
        row_names[split] = _RowsOfFiles([readable(found[i].name) for i in rows], ends)
    raw = from_tables(splits, row_names, columns, where)
    not_used |= {readable(found[i].name): reason for i, reason in layout.not_used.items()}
    return RawData(where, raw.splits, raw.class_names, not_used, layout.notes, sets_aside=True)


@dataclass(frozen=True)
class _RowsOfFiles:
    """What rows of a split are called: by file, and by row in there, as at a site."""

    names: Sequence[str]
    ends: Sequence[int]

    def __call__(self, row: int) -> str:
        file = bisect.bisect_right(self.ends, row)
        start = self.ends[file - 1] if file else 0
        return f"{self.names[file]}#{row - start}"
