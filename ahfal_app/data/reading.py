"""Tables with images and labels, opened with `datasets`: from Hugging Face, or saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetsError

from ahfal_app.data.columns import encode_labels, find_columns
from ahfal_app.data.layout import TRAIN, chosen_splits
from ahfal_app.data.raw import Columns, RawData, RawSplit
from ahfal_app.data.rows import ImageTable
from ahfal_app.errors import DatasetError

#: What a local folder may be.
LOCAL_HINT = (
    "a local folder may hold a data set saved with `save_to_disk`, parquet files, or "
    "images as `class/image.png` or `train/class/image.png` and `test/class/image.png`"
)

#: What a row of a split is called in messages.
RowName = Callable[[int], str]


def read_hub(path: str, configuration: str | None, columns: Columns) -> RawData:
    """Read a data set by its Hugging Face name, downloading it if it is not there yet.

    Raises
    ------
    DatasetError
        It does not exist, cannot be reached or cannot be read.
    """
    where = f"dataset={path!r}"
    tried = f"Hugging Face data set {path!r}"
    if configuration:
        tried += f" with configuration {configuration!r}"
    with reading(
        f"{where}: is no local folder (tried {Path(path).absolute()}), and "
        f"{tried} cannot be loaded; {LOCAL_HINT}"
    ):
        loaded = datasets.load_dataset(path, configuration)
    return _whole(loaded, columns, where)


def read_saved(folder: Path, columns: Columns, where: str) -> RawData:
    """Read a data set that `save_to_disk` wrote.

    Raises
    ------
    DatasetError
        It cannot be read.
    """
    with reading(f"{where}: the folder cannot be read"):
        loaded = datasets.load_from_disk(str(folder))
    return _whole(loaded, columns, where)


def from_tables(
    splits: Mapping[str, Dataset], row_names: Mapping[str, RowName], columns: Columns, where: str
) -> RawData:
    """Find images and labels in the columns of tables.

    Parameters
    ----------
    splits : Mapping[str, Dataset]
        The splits by name, `train` among them.
    row_names : Mapping[str, RowName]
        What a row of each is called.
    columns : Columns
        Which columns hold images and labels.
    where : str
        The data set, for messages.

    Raises
    ------
    DatasetError
        There are no such columns, or no rows, or labels cannot be used.
    """
    image, label = find_columns(splits[TRAIN].features, columns.image, columns.label)
    for split, dataset in splits.items():
        if not len(dataset):
            raise DatasetError(f"{where}: split `{split}` is empty")
        for column in (image, label):
            if column not in dataset.column_names:
                raise DatasetError(
                    f"{where}: split `{split}` has no column {column!r}; it has "
                    f"{', '.join(dataset.column_names)}"
                )
    labels, class_names = encode_labels(splits, label)
    raw = {
        split: RawSplit(ImageTable(dataset, image, row_names[split]), labels[split])
        for split, dataset in splits.items()
    }
    return RawData(where, raw, class_names)


@contextlib.contextmanager
def reading(failure: str) -> Iterator[None]:
    """Read without progress bars, and turn what `datasets` raises into our error."""
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    # Arrow's own allocators keep what they have taken, which is as much as the largest files.
    pool = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        cause = error.__cause__ or error
        raise DatasetError(f"{failure}: {type(cause).__name__}: {cause}") from error
    finally:
        pyarrow.set_memory_pool(pool)
        if bars:
            datasets.enable_progress_bars()


def _whole(loaded: object, columns: Columns, where: str) -> RawData:
    """Return what `datasets` loaded; a row that cannot be used is an error there."""
    if isinstance(loaded, Dataset):
        own = {TRAIN: loaded}
    elif isinstance(loaded, DatasetDict):
        own = {str(split): dataset for split, dataset in loaded.items()}
    else:
        raise DatasetError(f"{where}: {type(loaded).__name__} cannot be used")
    chosen, unused = chosen_splits(own, where)
    splits = {split: _joined([own[name] for name in names]) for split, names in chosen.items()}
    raw = from_tables(splits, {split: _row_name(split) for split in splits}, columns, where)
    for name, reason in unused.items():
        raw.not_used[f"split `{name}`, {len(own[name])} rows"] = reason
    return raw


def _joined(tables: Sequence[Dataset]) -> Dataset:
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(list(tables))


def _row_name(split: str) -> RowName:
    return lambda row: f"split `{split}`, row {row}"
