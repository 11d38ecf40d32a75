"""A site's images for testing alone: labelled, and never trained on, asked for or in its pool.

Shapes: N images that can be used, M rows of the cache, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.cache import Entry
from ahfal_app.data.images import DataFormat, Images
from ahfal_app.data.not_used import summary, told
from ahfal_app.data.site.entries import cache_name_of, decoded, forget
from ahfal_app.data.site.files import Columns, SiteImage, list_images
from ahfal_app.data.site.index import SiteIndex
from ahfal_app.data.site.label_file import read_site_labels
from ahfal_app.data.site.loading import LABELS, SiteData, SiteFolders
from ahfal_app.data.site.set_aside import report
from ahfal_app.data.site.settling import COPIED, still_copied
from ahfal_app.data.vectors import VectorColumns
from ahfal_app.errors import ConfigError, DatasetError, LabelFileError
from ahfal_app.labels.names import SKIP, ClassNames

#: What is not tested with, and why: a file in the site's state folder.
VALIDATION_SET_ASIDE = "validation-set-aside.csv"

_INDEX = "validation.sqlite"

_IN_DATA = "in data as well, where it may be trained on"
_TWO_LABELS = "two labels that differ"
_NO_FOLDER = f"in no folder of a class, and there is no {LABELS}"
_NO_LABEL = f"no label in {LABELS}"


@dataclass(frozen=True, eq=False)
class Validation:
    """What a site tests with.

    Attributes
    ----------
    images : Images
        The images that can be used, with their labels.
    fingerprint : str
        SHA-256 in hexadecimal of which images these are.
    cache_name : str
        What the names of all that is kept of them in the cache start with.
    """

    images: Images
    fingerprint: str
    cache_name: str


def load_validation(
    folders: SiteFolders,
    data_format: DataFormat,
    cache: Path,
    image_column: str,
    site: SiteData,
    room: int | None = None,
    vectors: VectorColumns | None = None,
) -> Validation:
    """Load what a site tests with; what cannot be used is in `validation-set-aside.csv`.

    Images are found and decoded as those of `data` are, and set aside for the same reasons. Their
    labels are those of the folder's `labels.csv`; where there is none, the first folders are
    called like the classes. An image that `data` has as well is set aside: an image by its bytes,
    a vector by its numbers.

    Parameters
    ----------
    folders : SiteFolders
        Where the site keeps what; it has a folder for validation.
    data_format, cache, image_column, room, vectors
        As of `load_site`.
    site : SiteData
        What that has returned.

    Raises
    ------
    DatasetError
        The folder cannot be read, a folder in it is called like no class, or no image can be used.
    PolicyRefused
        Decoded images would take more than there is room for.
    LabelFileError
        `labels.csv` cannot be read, or has a line that cannot be used.
    """
    folder = folders.validation
    if folder is None or not folder.is_dir():
        raise DatasetError(f"validation={str(folder)!r}: no such folder")
    check_place(folder, folders.data)
    columns: Columns = (vectors or VectorColumns()) if data_format.vectors else image_column
    labels_file = folder / LABELS
    present, set_aside = list_images(folder, columns, [labels_file], "validation")
    copied = still_copied(
        {*(image.path for image in present), str(labels_file)}, SiteIndex(folders.state / _INDEX)
    )
    if str(labels_file) in copied:
        raise LabelFileError(f"{labels_file}: {COPIED}")
    set_aside |= {image.name: COPIED for image in present if image.path in copied}
    listed = [image for image in present if image.path not in copied]
    usable: dict[int, int] = {}
    if listed:
        ids = {image.name: row for row, image in enumerate(listed)}
        entry = decoded(folder, listed, ids, data_format, cache, columns, room)
        classes = ClassNames(data_format.class_names)
        choice = _Choice(listed, entry, set_aside, data_format.vectors)
        usable = choice.labelled(folder, classes, site)
    else:
        forget(cache, folder)
    path = folders.state / VALIDATION_SET_ASIDE
    what = "vectors" if data_format.vectors else "images"
    report(path, set_aside, len(usable), what=f"{what} for validation")
    if not usable:
        besides = f": {told(summary(set_aside))}" if set_aside else ""
        raise DatasetError(
            f"validation={str(folder)!r}: none of {len(present)} {what} can be used{besides}"
        )
    return _taken(entry, usable, cache_name_of(folder))


def check_place(folder: Path, data: Path) -> None:
    """Refuse a folder for validation that shares images with the folder `data`.

    Raises
    ------
    ConfigError
        It is that folder, in it or above it.
    """
    own, other = folder.resolve(), data.resolve()
    if own == other or own in other.parents or other in own.parents:
        raise ConfigError(
            [
                f"validation={str(folder)!r}: allowed in --node-config is a folder that is neither "
                f"in data={str(data)!r} nor above it, since samples there may be trained on"
            ]
        )


@dataclass(frozen=True, eq=False)
class _Choice:
    """Finds out which images can be used; why others cannot is added to `set_aside`."""

    listed: Sequence[SiteImage]
    entry: Entry
    set_aside: dict[str, str]
    holds_vectors: bool

    def labelled(self, folder: Path, classes: ClassNames, site: SiteData) -> dict[int, int]:
        """Return the class of each image that can be used, by its row."""
        ids, texts = self.entry.arrays["problem-ids"], self.entry.arrays["problems"]
        undecodable = dict(zip(ids.tolist(), texts.tolist(), strict=True))
        self.set_aside.update({self.listed[row].name: text for row, text in undecodable.items()})
        rows = [row for row in range(len(self.listed)) if row not in undecodable]
        if (folder / LABELS).exists():
            labels = self._by_file(folder / LABELS, classes, rows)
        else:
            labels = self._by_folder(folder, classes, rows)
        if not self.holds_vectors:
            labels = self._without_copies(labels)
        return self._without(labels, self._in_data(site, labels), _IN_DATA)

    def _by_file(self, path: Path, classes: ClassNames, rows: Collection[int]) -> dict[int, int]:
        samples = {self.listed[row].name: row for row in rows}
        lines, passed_over, _ = read_site_labels(path, classes, samples, self.set_aside)
        said: dict[int, set[int | None]] = defaultdict(set)
        for line in lines:
            said[line.sample].add(line.label)
        self.set_aside.update(passed_over)
        labels: dict[int, int] = {}
        for row in rows:
            match list(said[row]):
                case [int(label)]:
                    labels[row] = label
                case [None]:
                    self.set_aside[self.listed[row].name] = f"{SKIP}, says {LABELS}"
                case []:
                    self.set_aside[self.listed[row].name] = _NO_LABEL
                case _:
                    self.set_aside[self.listed[row].name] = _TWO_LABELS
        return labels

    def _by_folder(self, folder: Path, classes: ClassNames, rows: Iterable[int]) -> dict[int, int]:
        labels: dict[int, int] = {}
        for row in rows:
            name = self.listed[row].name
            top, below, _ = name.partition("/")
            label = classes.index(top) if below else None
            if label is not None:
                labels[row] = label
            elif below:
                raise DatasetError(
                    f"validation={str(folder)!r}: the folder {top!r}: {classes.refusal(top)}"
                )
            else:
                self.set_aside[name] = _NO_FOLDER
        return labels

    def _without_copies(self, labels: Mapping[int, int]) -> dict[int, int]:
        """Leave out the same image a second time; altogether, where its labels differ."""
        digests = self._digests(labels)
        first: dict[bytes, int] = {}
        classes: dict[bytes, set[int]] = defaultdict(set)
        for row, digest in digests.items():
            first.setdefault(digest, row)
            classes[digest].add(labels[row])
        kept = dict(labels)
        for row, digest in digests.items():
            name = self.listed[row].name
            if len(classes[digest]) > 1:
                self.set_aside[name] = _TWO_LABELS
            elif first[digest] != row:
                self.set_aside[name] = f"the same image as {self.listed[first[digest]].name}"
            else:
                continue
            del kept[row]
        return kept

    def _in_data(self, site: SiteData, rows: Collection[int]) -> set[int]:
        """Return the rows whose image, or vector, the site has among those that it trains on."""
        if not self.holds_vectors:
            theirs = {digest.tobytes() for digest in site.digests_N32}
            return {row for row, digest in self._digests(rows).items() if digest in theirs}
        own_MD = _flat(self.entry.arrays["images"])
        site_MD = _flat(site.dataset.train.images_NHWC)[site.ids_N]
        # Few can be equal: those whose first number is.
        likely_KD = site_MD[np.isin(site_MD[:, 0], own_MD[:, 0])]
        theirs = {vector.tobytes() for vector in likely_KD}
        return {row for row in rows if own_MD[row].tobytes() in theirs}

    def _digests(self, rows: Iterable[int]) -> dict[int, bytes]:
        digests_M32 = self.entry.arrays["digests"]
        return {row: digests_M32[row].tobytes() for row in rows}

    def _without(
        self, labels: Mapping[int, int], rows: Collection[int], reason: str
    ) -> dict[int, int]:
        self.set_aside.update({self.listed[row].name: reason for row in rows})
        return {row: label for row, label in labels.items() if row not in rows}


def _taken(entry: Entry, labels: Mapping[int, int], cache_name: str) -> Validation:
    rows_N = np.array(sorted(labels), np.int64)
    images_MHWC: NDArray[np.uint8] | NDArray[np.float32] = np.asarray(entry.arrays["images"])
    # Memory-mapped, where nothing is set aside.
    whole = len(rows_N) == len(images_MHWC)
    labels_N = np.array([labels[row] for row in rows_N.tolist()], np.int64)
    content = entry.description.fingerprint.encode() + rows_N.tobytes()
    return Validation(
        Images(images_MHWC if whole else images_MHWC[rows_N], labels_N),
        hashlib.sha256(content).hexdigest(),
        cache_name,
    )


def _flat(images_MHWC: NDArray[np.generic]) -> NDArray[np.generic]:
    return images_MHWC.reshape(len(images_MHWC), -1)
