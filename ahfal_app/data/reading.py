"""Data sets from Hugging Face or a local folder, opened with `datasets`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetsError
from PIL import Image
from pyarrow import parquet

from ahfal_app.errors import DatasetError

_TEST_SPLITS = ("test", "validation", "valid", "val")

_LOCAL_HINT = (
    "a local folder may hold a data set saved with `save_to_disk`, parquet files, or "
    "images as `class/image.png` or `train/class/image.png` and `test/class/image.png`"
)


@dataclass(frozen=True)
class RawSplits:
    """The splits of a data set as `datasets` opened them; no test split: None."""

    train: Dataset
    test: Dataset | None


def read_folder(folder: Path, work_dir: Path) -> RawSplits:
    """Open a local folder: saved with `save_to_disk`, parquet files or an image folder.

    Parameters
    ----------
    folder : Path
        The folder.
    work_dir : Path
        Folder for what `datasets` writes in between.

    Raises
    ------
    DatasetError
        The folder holds nothing of the kind or cannot be read.
    """
    with _reading(f"dataset={str(folder)!r}: the folder cannot be read"):
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return _choose_splits(datasets.load_from_disk(str(folder)), str(folder))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        suffixes = {path.suffix.lower() for path in files}
        if ".parquet" in suffixes:
            _check_parquet(files)
            loaded = datasets.load_dataset(str(folder), cache_dir=str(work_dir))
        elif suffixes & Image.registered_extensions().keys():
            loaded = datasets.load_dataset(
                "imagefolder", data_dir=str(folder), cache_dir=str(work_dir)
            )
        else:
            raise DatasetError(f"dataset={str(folder)!r}: nothing to read; {_LOCAL_HINT}")
        return _choose_splits(loaded, str(folder))


def read_hub(path: str, configuration: str | None) -> RawSplits:
    """Open a data set by its Hugging Face name, downloading it if it is not there yet.

    Raises
    ------
    DatasetError
        It does not exist, cannot be reached or cannot be read.
    """
    tried = f"Hugging Face data set {path!r}"
    if configuration:
        tried += f" with configuration {configuration!r}"
    with _reading(
        f"dataset={path!r}: is no local folder (tried {Path(path).absolute()}), and "
        f"{tried} cannot be loaded; {_LOCAL_HINT}"
    ):
        return _choose_splits(datasets.load_dataset(path, configuration), path)


@contextlib.contextmanager
def _reading(failure: str) -> Iterator[None]:
    """Read without progress bars, and turn what `datasets` raises into our error."""
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        cause = error.__cause__ or error
        raise DatasetError(f"{failure}: {type(cause).__name__}: {cause}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _check_parquet(files: list[Path]) -> None:
    """Refuse files without rows, on which `datasets` fails without saying why."""
    for path in files:
        if path.suffix.lower() == ".parquet" and not parquet.read_metadata(path).num_rows:
            raise DatasetError(f"dataset: {path} is empty; a split must have rows")


def _choose_splits(loaded: object, name: str) -> RawSplits:
    if isinstance(loaded, Dataset):
        return RawSplits(loaded, None)
    if not isinstance(loaded, DatasetDict):
        raise DatasetError(f"dataset={name!r}: {type(loaded).__name__} cannot be used")
    splits = {str(split): dataset for split, dataset in loaded.items()}
    if len(splits) == 1:
        return RawSplits(next(iter(splits.values())), None)
    if "train" not in splits:
        raise DatasetError(f"dataset={name!r}: no split `train` among {', '.join(sorted(splits))}")
    test = next((splits[split] for split in _TEST_SPLITS if split in splits), None)
    return RawSplits(splits["train"], test)
