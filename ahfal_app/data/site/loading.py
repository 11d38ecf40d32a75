"""The data of one site: its images by ids that stay, the labels it has, what is set aside.

Shapes: N rows, one for each id; H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.cache import Entry
from ahfal_app.data.images import DataFormat, ImageDataset, Images
from ahfal_app.data.not_used import summary, told
from ahfal_app.data.site.entries import cache_name_of, decoded, forget
from ahfal_app.data.site.files import Columns, SiteImage, content, list_images
from ahfal_app.data.site.index import SiteIndex
from ahfal_app.data.site.label_file import labelled_ids, read_site_labels
from ahfal_app.data.site.set_aside import SET_ASIDE, report
from ahfal_app.data.site.settling import COPIED, still_copied
from ahfal_app.data.site.survey import Survey, asked_or_labelled, survey
from ahfal_app.data.vectors import VectorColumns, VectorRow
from ahfal_app.errors import DatasetError, LabelFileError
from ahfal_app.labels.names import SKIP, ClassNames, SampleNames
from ahfal_app.labels.spreadsheet import MOST_SUGGESTED

#: Labels that are there already.
LABELS = "labels.csv"

_INDEX = "images.sqlite"
_NO_LABEL = f"called like a class, which labels nothing: labels are given in {LABELS}"


@dataclass(frozen=True)
class SiteFolders:
    """Where a site keeps what.

    Attributes
    ----------
    data : Path
        Its images, and `labels.csv`.
    state : Path
        What AHFAL keeps there.
    truth : Path | None
        Labels of all images, which only the simulated oracle reads: for rehearsals.
    validation : Path | None
        Labelled images for testing alone.
    """

    data: Path
    state: Path
    truth: Path | None = None
    validation: Path | None = None


@dataclass(frozen=True)
class SiteData:
    """The data of a site.

    Attributes
    ----------
    dataset : ImageDataset
        All images by id in the training split; its labels are those of the simulated oracle, -1
        where there is none. There is no test split.
    ids_N : NDArray[np.int64]
        Ids of the images that can be used, strictly increasing.
    names : Mapping[int, str]
        What the site calls each of them, by id.
    given : Mapping[str, Mapping[int, int]]
        Labels that are there already: class index by id, by who gave them.
    images : Mapping[int, SiteImage]
        Where the bytes of each are, by id.
    digests_N32 : NDArray[np.uint8]
        SHA-256 of the bytes of each, by id.
    columns : Columns
        How parquet files are read.
    cache_name : str
        What the names of all that is kept of the site's images in the cache start with.
    """

    dataset: ImageDataset
    ids_N: NDArray[np.int64]
    names: Mapping[int, str]
    given: Mapping[str, Mapping[int, int]]
    images: Mapping[int, SiteImage]
    digests_N32: NDArray[np.uint8]
    columns: Columns
    cache_name: str

    def content(self, sample: int) -> bytes:
        """Return an image as the site has it, or of a vector what people see.

        Raises
        ------
        DatasetError
            It cannot be read any more, or is another one than was decoded: whoever labels it
            would label an image that nobody has asked for.
        """
        found = content(self.images[sample], self.columns)
        digest = found.digest if isinstance(found, VectorRow) else hashlib.sha256(found).digest()
        if digest != self.digests_N32[sample].tobytes():
            raise DatasetError(f"{self.images[sample].name}: changed since it was looked at")
        return found.shown if isinstance(found, VectorRow) else found


def load_site(
    folders: SiteFolders,
    data_format: DataFormat,
    cache: Path,
    image_column: str,
    room: int | None = None,
    vectors: VectorColumns | None = None,
) -> SiteData:
    """Load a site's data; what cannot be used is reported in `set-aside.csv` of its state folder.

    Images are decoded once, and anew when a file was added, changed or removed. An image keeps
    its id as long as the state folder lives: ids follow the sorted paths when the folder is
    first seen, and the order of arrival from then on. What is still being copied is left for the
    next time; where files are new, this takes a moment.

    Parameters
    ----------
    folders : SiteFolders
        Where the site keeps what.
    data_format : DataFormat
        What all sites' data have in common.
    cache : Path
        Folder for decoded data.
    image_column : str
        The setting of this name, for parquet files.
    room : int | None
        Bytes that images which are to be decoded may take; None: as many as they need.
    vectors : VectorColumns | None
        Which columns of parquet files hold vectors; read where the format is that of vectors.

    Raises
    ------
    DatasetError
        The folder cannot be read, or holds no image that can be used.
    PolicyRefused
        Decoded images would take more than there is room for.
    LabelFileError
        `labels.csv` cannot be read, or has a line that cannot be used.
    """
    if not folders.data.is_dir():
        raise DatasetError(f"data={str(folders.data)!r}: no such folder")
    others = [folders.data / LABELS] + ([folders.truth] if folders.truth else [])
    columns: Columns = (vectors or VectorColumns()) if data_format.vectors else image_column
    several = "vectors" if data_format.vectors else "images"
    present, set_aside = list_images(folders.data, columns, others)
    if not present:
        forget(cache, folders.data)
        besides = f": {told(summary(set_aside))}" if set_aside else ""
        what = "parquet file with vectors" if data_format.vectors else "image"
        raise DatasetError(f"data={str(folders.data)!r}: there is no {what} in it{besides}")
    index = SiteIndex(folders.state / _INDEX)
    copied = still_copied({*(image.path for image in present), *map(str, others)}, index)
    set_aside |= {image.name: COPIED for image in present if image.path in copied}
    listed = [image for image in present if image.path not in copied]
    if not listed:
        raise _nothing_usable(folders, set_aside, len(present), several)

    known = index.know([image.name for image in listed])
    ids = {image.name: known[image.name].id for image in listed}
    entry = decoded(folders.data, listed, ids, data_format, cache, columns, room)
    labels = _GivenLabels(folders, ClassNames(data_format.class_names), copied)
    found = survey(listed, known, entry, lambda: labels.bound(ids))
    index.note(found.new_digests)
    set_aside |= found.problems
    given, lines_set_aside = labels.read(found, set_aside)
    set_aside |= lines_set_aside
    set_aside |= _called_like_classes(found, given, data_format.class_names)
    if not found.usable:
        raise _nothing_usable(folders, set_aside, len(present), several)
    labels_N = labels.truth(found, len(entry.arrays["images"]))
    path = folders.state / SET_ASIDE
    report(path, set_aside, len(found.usable), partial(labels.suggestions, found), several)
    return SiteData(
        dataset=_dataset(entry, labels_N, data_format),
        ids_N=np.array(sorted(found.usable), np.int64),
        names={identity: image.name for identity, image in found.usable.items()},
        given=given,
        images=found.usable,
        digests_N32=np.asarray(entry.arrays["digests"], np.uint8),
        columns=columns,
        cache_name=cache_name_of(folders.data),
    )


class _GivenLabels:
    """The files of labels that a site has."""

    def __init__(self, folders: SiteFolders, classes: ClassNames, copied: Collection[str]) -> None:
        self._folders = folders
        self._classes = classes
        self._copied = copied
        self._path = folders.data / LABELS
        self._unknown: dict[str, str] = {}

    def bound(self, ids: Mapping[str, int]) -> Collection[int]:
        """Return the ids that a label was asked or given for: all, where nobody knows."""
        asked = asked_or_labelled(self._folders.state)
        if asked is None or str(self._path) in self._copied:
            return set(ids.values())
        return asked | labelled_ids(self._path, self._classes, ids)

    def read(
        self, found: Survey, set_aside: Mapping[str, str]
    ) -> tuple[dict[str, dict[int, int]], dict[str, str]]:
        """Return the labels by who gave them, and what is set aside; take skipped images out."""
        if not self._path.exists():
            return {}, {}
        if str(self._path) in self._copied:
            return {}, {LABELS: COPIED}
        lines, passed_over, self._unknown = read_site_labels(
            self._path, self._classes, found.samples, set_aside
        )
        given: dict[str, dict[int, int]] = {}
        for line in lines:
            if line.label is not None:
                given.setdefault(line.annotator, {})[line.sample] = line.label
            elif line.sample in found.usable:
                passed_over[found.usable.pop(line.sample).name] = f"{SKIP}, says {LABELS}"
        return {
            by: {s: c for s, c in labels.items() if s in found.usable}
            for by, labels in given.items()
        }, passed_over

    def suggestions(self, found: Survey) -> dict[str, str]:
        """Return which names the first few lines may mean that name no image of the site."""
        names = SampleNames(found.samples)
        few = list(self._unknown.items())[:MOST_SUGGESTED]
        return {line: names.near(name) for line, name in few}

    def truth(self, found: Survey, rows: int) -> NDArray[np.int64]:
        """Return the labels that the simulated oracle gives, by id; -1 where there is none."""
        labels_N = np.full(rows, -1, np.int64)
        path = self._folders.truth
        if path is None:
            return labels_N
        if str(path) in self._copied:
            raise LabelFileError(f"{path}: {COPIED}")
        for line in read_site_labels(path, self._classes, found.samples, found.problems)[0]:
            labels_N[line.sample] = -1 if line.label is None else line.label
        return labels_N


def _called_like_classes(
    found: Survey, given: Mapping[str, Mapping[int, int]], class_names: Sequence[str]
) -> dict[str, str]:
    """Return folders that seem to label their images, which no folder of a site does."""
    names = {name.strip().casefold() for name in class_names}
    labelled = {sample for labels in given.values() for sample in labels}
    folders = {
        "/".join(parts[: depth + 1])
        for identity, image in found.usable.items()
        if identity not in labelled
        for parts in [image.name.split("/")[:-1]]
        for depth, part in enumerate(parts)
        if part.strip().casefold() in names
    }
    return {f"{folder}/": _NO_LABEL for folder in folders}


def _dataset(entry: Entry, labels_N: NDArray[np.int64], data_format: DataFormat) -> ImageDataset:
    images_NHWC: NDArray[np.uint8] | NDArray[np.float32] = np.asarray(entry.arrays["images"])
    return ImageDataset(
        name="site",
        train=Images(images_NHWC, labels_N),
        test=Images(images_NHWC[:0], labels_N[:0]),
        class_names=data_format.class_names,
        mean_C=data_format.mean_C,
        std_C=data_format.std_C,
        augmentation=data_format.augmentation,
        fingerprint=entry.description.fingerprint,
    )


def _nothing_usable(
    folders: SiteFolders, set_aside: Mapping[str, str], present: int, what: str
) -> DatasetError:
    report(folders.state / SET_ASIDE, set_aside, 0, what=what)
    return DatasetError(
        f"data={str(folders.data)!r}: none of {present} {what} can be used; "
        f"{folders.state / SET_ASIDE} says why"
    )
