"""Data sets by name: scikit-learn's digits, Hugging Face, or a local folder.

Shapes: N images, C channels.

A data set is decoded once, into the cache folder, and from then on memory-mapped.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import Settings, expanded
from ahfal_app.data import catalog
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.builders import (
    Options,
    build_arrays,
    build_folder,
    build_hub,
    build_vectors,
)
from ahfal_app.data.cache import (
    NOT_USED,
    Description,
    Entry,
    cache_key,
    data_dir,
    open_or_build,
)
from ahfal_app.data.files import PARQUET, files_below, only_file
from ahfal_app.data.folders import Folder
from ahfal_app.data.images import ImageDataset, Images, Shown
from ahfal_app.data.known.core.base import Arrays, KnownDataset
from ahfal_app.data.no_data import dataset_of_settings
from ahfal_app.data.not_used import told
from ahfal_app.data.preparation import limited, limited_fingerprint, with_classes
from ahfal_app.errors import DatasetError
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import DATASETS
from ahfal_app.storage.names import readable

__all__ = ["ImageDataset", "Images", "load_dataset"]

#: `name` or `owner/name`.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

#: Version of the rules by which images are found and used. Known data sets hold nothing that they
#: touch, and what was decoded of these is kept.
_RULES = 1

_Build = Callable[[Path], Description]

_log = logging.getLogger(__name__)


def load_dataset(settings: Settings) -> ImageDataset:
    """Load the data set that the settings name.

    It is decoded once and kept under `data-dir`: a local folder until one of its files
    changes, a Hugging Face data set until its entry is deleted. A process keeps what it
    has loaded. Where there is no test split, a stratified share is held out, the same
    one for every seed of a run.

    A known data set (CIFAR-10, CIFAR-100, SVHN, MNIST) is recognised by its content and
    normalised and augmented as in the literature. Any other is normalised with the mean
    and standard deviation of its training pixels, and augmented as photographs usually are.
    What a folder holds and is not used is logged, and named in `not-used.csv` of the entry.

    Parameters
    ----------
    settings : Settings
        Read are `dataset`, `data-dir`, `image-column`, `label-column`, `test-fraction`,
        `max-train-samples`, `max-test-samples`, `augment`, `classes`, `image-size` and
        `partition`: where the clients have data of their own, a data set without a test split
        is all for testing.

    Raises
    ------
    DatasetError
        The data set cannot be found or read, or its images or labels cannot be used.
    """
    options = Options(
        settings.image_column,
        settings.label_column,
        settings.test_fraction,
        settings.image_size,
        only_tests=settings.has_sites,
        vector_column=settings.vector_column,
        shown_column=settings.shown_column,
    )
    if not settings.has_dataset:
        return dataset_of_settings(settings)
    most = (settings.max_train_samples, settings.max_test_samples)
    parameters = tuple(sorted(settings.parameters_of("dataset").items()))
    loaded = _load(
        settings.dataset, options, settings.augment, data_dir(settings), most, parameters
    )
    if loaded.holds_vectors:
        loaded = _as_vectors(loaded, settings)
    return with_classes(loaded, settings.class_list) if settings.class_list else loaded


def forget_loaded() -> None:
    """Have the next call look at what lies there then, and not at what this process has loaded."""
    _load.cache_clear()


@lru_cache(maxsize=4)
def _load(
    dataset: str,
    options: Options,
    augment: str,
    root: Path,
    most: tuple[int, int],
    parameters: tuple[tuple[str, Scalar], ...],
) -> ImageDataset:
    name, source, build = _locate(dataset, options, parameters)
    key = cache_key(name, **options.key(), **source)
    entry = open_or_build(root, key, build)
    train, test = (_images(entry, split) for split in ("train", "test"))
    found = entry.description
    _tell(dataset, entry)
    height, width, channels = train.images_NHWC.shape[1:]
    shape = (height, width, channels)
    known = catalog.recognise(shape, len(found.class_names), found.mean_C) or _by_name(dataset)
    is_vectors = train.images_NHWC.dtype == np.float32
    usual = NO_AUGMENTATION if is_vectors else catalog.usual_augmentation(shape)
    train, test = (limited(split, size) for split, size in zip((train, test), most, strict=True))
    sizes = (len(train), len(test))
    return ImageDataset(
        name=known.name if known else name,
        train=train,
        test=test,
        class_names=found.class_names,
        mean_C=known.mean_C if known and known.mean_C else found.mean_C,
        std_C=known.std_C if known and known.std_C else found.std_C,
        augmentation=catalog.resolve_augmentation(augment, known, usual),
        fingerprint=limited_fingerprint(found.fingerprint, sizes)
        if any(most)
        else found.fingerprint,
        not_used=found.not_used,
        notes=found.notes,
    )


def _locate(
    dataset: str, options: Options, parameters: tuple[tuple[str, Scalar], ...]
) -> tuple[str, dict[str, object], _Build]:
    """Return a data set's short name, what identifies its content, and how it is decoded."""
    known = catalog.registered(dataset)
    if known is not None and known.load is not None:
        return (
            dataset,
            _made_by(dataset, parameters),
            partial(_build_made, known, options, parameters),
        )
    folder = expanded("dataset", dataset)
    if folder.is_file() and folder.suffix.lower() == PARQUET:
        found = Folder(folder.resolve(), [only_file(folder.resolve())], {})
        facts = [(file.path, file.size, file.modified_ns) for file in found.files]
        file_source: dict[str, object] = {"files": facts, "rules": _RULES}
        return _short(folder.stem), file_source, partial(_build_folder, found, options)
    if folder.is_dir():
        folder = folder.resolve()
        found = Folder(folder, *files_below(folder, "dataset"))
        listing = [(file.path, file.size, file.modified_ns) for file in found.files]
        source: dict[str, object] = {"files": listing, "problems": found.problems, "rules": _RULES}
        return _short(folder.name), source, partial(_build_folder, found, options)
    path, configuration = catalog.hub_source(dataset)
    if folder.exists() or not _HUB_NAME.fullmatch(path):
        what = "a file and not a folder" if folder.exists() else "no such folder"
        raise DatasetError(
            f"dataset={dataset!r}: {what} (tried {folder.absolute()}); must be one of "
            f"{', '.join(DATASETS.names())}, a Hugging Face name such as `uoft-cs/cifar10`, or an "
            "existing folder or parquet file"
        )
    source = {"path": path, "configuration": configuration}
    if not catalog.is_known(path):
        source["rules"] = _RULES
    return _short(path), source, partial(build_hub, path, configuration, options)


def _by_name(dataset: str) -> KnownDataset | None:
    """Return the known data set of a name, unless the name is that of a folder here."""
    known = catalog.registered(dataset)
    is_folder = known is not None and known.load is None and Path(dataset).is_dir()
    return None if is_folder else known


def _made_by(dataset: str, parameters: tuple[tuple[str, Scalar], ...]) -> dict[str, object]:
    """Return what identifies the content of a data set that is made: its code and parameters."""
    origin = DATASETS.provenance(dataset)
    source: dict[str, object] = {"source": origin.source} if origin else {}
    return source | ({"parameters": dict(parameters)} if parameters else {})


def _build_made(
    known: KnownDataset,
    options: Options,
    parameters: tuple[tuple[str, Scalar], ...],
    target: Path,
) -> Description:
    where, model = f"dataset={known.name!r}", DATASETS.parameters(known.name)
    arguments = [model.model_validate(dict(parameters))] if model.model_fields else []
    arrays = known.load(*arguments) if known.load else None
    if not isinstance(arrays, Arrays):
        raise DatasetError(f"{where}: `load` gives {type(arrays).__name__}; allowed is Arrays")
    return build_arrays(arrays, where, options, target)


def _build_folder(folder: Folder, options: Options, target: Path) -> Description:
    """Build an entry of a folder or file, unless files are still being copied to it."""
    from ahfal_app.data.vector_tables import has_vectors

    if has_vectors(folder, options.vector_column):
        description = build_vectors(folder, options, target)
    else:
        description = build_folder(folder, options, target)
    is_file = folder.path.is_file()
    files = [only_file(folder.path)] if is_file else files_below(folder.path, "dataset")[0]
    before, after = (
        {(f.name, f.size, f.modified_ns) for f in look} for look in (folder.files, files)
    )
    if changed := sorted({name for name, *_ in before ^ after}):
        raise DatasetError(
            f"{folder.where}: {len(changed)} files changed while they were read, such as "
            f"{readable(changed[0])}; start again when all of them are there"
        )
    return description


def _tell(dataset: str, entry: Entry) -> None:
    """Log what was found and is not used, in each process that goes on without it."""
    found = entry.description
    if found.not_used:
        count = sum(line.count for line in found.not_used)
        path = entry.folder / NOT_USED
        _log.warning(
            "dataset=%r: %d not used: %s; see %s", dataset, count, told(found.not_used), path
        )
    for note in found.notes:
        _log.warning("dataset=%r: %s", dataset, note)


def _short(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.rsplit("/", 1)[-1]) or "folder"


def _images(entry: Entry, split: str) -> Images:
    labels_N = np.asarray(entry.arrays[f"{split}-labels"], np.int64)
    images_NHWC: NDArray[np.uint8] | NDArray[np.float32] = np.asarray(
        entry.arrays[f"{split}-images"]
    )
    if f"{split}-shown" not in entry.arrays:
        return Images(images_NHWC, labels_N)
    content = np.asarray(entry.arrays[f"{split}-shown"], np.uint8)
    ends_N = np.asarray(entry.arrays[f"{split}-shown-ends"], np.int64)
    return Images(images_NHWC, labels_N, Shown(content, ends_N))


def _as_vectors(dataset: ImageDataset, settings: Settings) -> ImageDataset:
    """Return vectors as the settings want them standardised.

    Raises
    ------
    DatasetError
        A setting is about images.
    """
    if settings.augment not in ("auto", "none"):
        raise DatasetError(f"augment={settings.augment!r}: allowed for vectors is auto | none")
    if settings.image_size:
        raise DatasetError(f"image-size={settings.image_size}: allowed for vectors is 0")
    if settings.standardise == "none":
        numbers = len(dataset.mean_C)
        return replace(dataset, mean_C=(0.0,) * numbers, std_C=(1.0,) * numbers)
    return dataset
