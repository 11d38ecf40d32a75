"""The data of one site: its images by ids that stay, the labels it has, what is set aside.

Shapes: N rows, one for each id; H height, W width, C channels.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.cache import Entry, cache_key, discard, open_or_build
from ahfal_app.data.images import DataFormat, ImageDataset, Images
from ahfal_app.data.site.decoding import can_be_decoded, decode_site
from ahfal_app.data.site.files import SiteImage, content, list_images
from ahfal_app.data.site.index import Known, SiteIndex
from ahfal_app.errors import DatasetError, LabelFileError
from ahfal_app.labels.spreadsheet import (
    SKIP,
    ClassNames,
    LabelLine,
    read_csv,
    read_label_lines,
    refusal,
    write_csv,
)

#: Labels that are there already.
LABELS = "labels.csv"

#: What is not used, and why: a file in the site's state folder.
SET_ASIDE = "set-aside.csv"

_INDEX = "images.sqlite"
_GONE = "gone; labels that it has are kept, and it is not trained on"
_CHANGED = "not what it was when it was first seen; give another image another name"

_log = logging.getLogger(__name__)


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
    """

    data: Path
    state: Path
    truth: Path | None = None


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
    image_column : str
        The setting of this name, for parquet files.
    """

    dataset: ImageDataset
    ids_N: NDArray[np.int64]
    names: Mapping[int, str]
    given: Mapping[str, Mapping[int, int]]
    images: Mapping[int, SiteImage]
    image_column: str

    def content(self, sample: int) -> bytes:
        """Return an image as the site has it.

        Raises
        ------
        DatasetError
            It cannot be read any more.
        """
        return content(self.images[sample], self.image_column)


def load_site(
    folders: SiteFolders, data_format: DataFormat, cache: Path, image_column: str
) -> SiteData:
    """Load a site's data; what cannot be used is reported in `set-aside.csv` of its state folder.

    Images are decoded once, and anew when a file was added, changed or removed. An image keeps
    its id as long as the state folder lives: ids follow the sorted paths when the folder is
    first seen, and the order of arrival from then on.

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

    Raises
    ------
    DatasetError
        The folder cannot be read, or holds no image that can be used.
    LabelFileError
        `labels.csv` cannot be read, or has a line that cannot be used.
    """
    if not folders.data.is_dir():
        raise DatasetError(f"data={str(folders.data)!r}: no such folder")
    others = [folders.data / LABELS] + ([folders.truth] if folders.truth else [])
    listed, set_aside = list_images(folders.data, image_column, others)
    if not listed:
        raise DatasetError(f"data={str(folders.data)!r}: there is no image in it")
    index = SiteIndex(folders.state / _INDEX)
    known = index.know([image.name for image in listed])
    entry = _decoded(folders, listed, known, data_format, cache, image_column)
    survey = _Survey(listed, known, entry)
    set_aside |= survey.problems
    index.note(survey.new_digests)

    classes = ClassNames(data_format.class_names)
    lines = _labels(folders.data / LABELS, classes, survey, set_aside, must_exist=False)
    given: dict[str, dict[int, int]] = {}
    for line in lines:
        if line.label is not None:
            given.setdefault(line.annotator, {})[line.sample] = line.label
        elif line.sample in survey.usable:
            set_aside[survey.usable.pop(line.sample).name] = f"{SKIP}, says {LABELS}"
    given = {
        by: {s: c for s, c in labels.items() if s in survey.usable} for by, labels in given.items()
    }
    labels_N = np.full(len(entry.arrays["images"]), -1, np.int64)
    if folders.truth is not None:
        for line in _labels(folders.truth, classes, survey, {}, must_exist=True):
            labels_N[line.sample] = -1 if line.label is None else line.label
    _report(folders, set_aside, len(survey.usable))
    if not survey.usable:
        raise DatasetError(
            f"data={str(folders.data)!r}: none of {len(listed)} images can be used; "
            f"{folders.state / SET_ASIDE} says why"
        )
    return SiteData(
        dataset=_dataset(entry, labels_N, data_format),
        ids_N=np.array(sorted(survey.usable), np.int64),
        names={identity: image.name for identity, image in survey.usable.items()},
        given=given,
        images=survey.usable,
        image_column=image_column,
    )


class _Survey:
    """Which images can be used, and why the others cannot."""

    def __init__(
        self, listed: Sequence[SiteImage], known: Mapping[str, Known], entry: Entry
    ) -> None:
        ids, texts = entry.arrays["problem-ids"], entry.arrays["problems"]
        undecodable = dict(zip(ids.tolist(), texts.tolist(), strict=True))
        digests_N32 = np.asarray(entry.arrays["digests"], np.uint8)
        self.problems: dict[str, str] = {}
        self.usable: dict[int, SiteImage] = {}
        self.new_digests: dict[int, bytes] = {}
        #: Id by name, of duplicates that of the image that is used.
        self.samples: dict[str, int] = {}
        first: dict[bytes, SiteImage] = {}
        for image in sorted(listed, key=lambda image: known[image.name].id):
            identity, digest_before = known[image.name].id, known[image.name].digest
            digest = digests_N32[identity].tobytes()
            if identity in undecodable:
                self.problems[image.name] = undecodable[identity]
            elif digest_before is not None and digest_before != digest:
                self.problems[image.name] = _CHANGED
            else:
                if digest_before is None:
                    self.new_digests[identity] = digest
                same = first.setdefault(digest, image)
                self.samples[image.name] = known[same.name].id
                if same is image:
                    self.usable[identity] = image
                else:
                    self.problems[image.name] = f"the same image as {same.name}"
        present = {image.name for image in listed}
        self.problems |= {
            name: _GONE
            for name, image in known.items()
            if name not in present and image.digest is not None
        }


def _decoded(
    folders: SiteFolders,
    listed: Sequence[SiteImage],
    known: Mapping[str, Known],
    data_format: DataFormat,
    cache: Path,
    image_column: str,
) -> Entry:
    ids = {image.name: known[image.name].id for image in listed}
    files = [(ids[i.name], i.name, i.size, i.modified_ns) for i in listed]
    key = cache_key(
        "site",
        folder=str(folders.data.resolve()),
        files=files,
        shape=data_format.image_shape,
        image_column=image_column,
    )
    shape = data_format.image_shape
    build = partial(decode_site, listed, ids, image_column, shape)
    entry = open_or_build(cache, key, build)
    problem_ids, passing = entry.arrays["problem-ids"], entry.arrays["passing"]
    away = set(problem_ids[passing.astype(np.bool_)].tolist())
    # One of each file: the rows of a parquet file come and go with it.
    tried = {image.path: image for image in reversed(listed) if ids[image.name] in away}
    if any(can_be_decoded(image, image_column, shape) for image in tried.values()):
        discard(cache, key)
        entry = open_or_build(cache, key, build)
    return entry


def _dataset(entry: Entry, labels_N: NDArray[np.int64], data_format: DataFormat) -> ImageDataset:
    images_NHWC = np.asarray(entry.arrays["images"], np.uint8)
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


def _labels(
    path: Path,
    classes: ClassNames,
    survey: _Survey,
    set_aside: dict[str, str],
    must_exist: bool,
) -> list[LabelLine]:
    """Return the labels of a file; lines about images that cannot be used are passed over.

    They are set aside like images, so that a mistyped name does not go unseen.
    """
    if not must_exist and not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error
    lines, problems = read_label_lines(content, classes, survey.samples, path.name)
    if wrong := [problem for problem in problems if not problem.unknown_file]:
        raise LabelFileError(refusal(path, wrong))
    set_aside |= {f"{path.name}, line {p.line}": p.reason for p in problems}
    return lines


def _told_before(path: Path) -> list[list[str]] | None:
    """Return what was set aside before; None where that file is missing, or a person saved it."""
    try:
        return read_csv(path)[1:]
    except (OSError, ValueError, csv.Error):
        return None


def _report(folders: SiteFolders, set_aside: Mapping[str, str], usable: int) -> None:
    """Write what is set aside, and tell how much; once for each change."""
    path = folders.state / SET_ASIDE
    rows = sorted(set_aside.items())
    if _told_before(path) == [list(row) for row in rows]:
        return
    write_csv(path, ("file", "reason"), rows)
    if rows:
        reasons = Counter(reason.split(":")[0].split(";")[0] for _, reason in rows)
        shown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
        _log.warning("%d images can be used, %d set aside (%s): %s", usable, len(rows), shown, path)
