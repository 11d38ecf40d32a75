"""A site with images of its own: can they be decoded, are labels valid, can the oracle be used."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from ahfal_app.client.node_config import at_site, oracle_folder, oracle_options, site_folders
from ahfal_app.config import SITES, Settings, parse_settings
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.files import files_below
from ahfal_app.data.folders import Folder
from ahfal_app.data.images import DataFormat
from ahfal_app.data.shown import picture
from ahfal_app.data.site import set_aside
from ahfal_app.data.site.loading import LABELS, SiteData, SiteFolders, load_site
from ahfal_app.data.vector_tables import length_of_vectors
from ahfal_app.data.vectors import VectorColumns
from ahfal_app.deployment.doctor.finding import Finding, failure, good, warning
from ahfal_app.deployment.doctor.validation import check_validation, classes_of_validation
from ahfal_app.errors import AhfalError, ConfigError, LabelFileError, OracleError
from ahfal_app.labels.names import SKIP
from ahfal_app.labels.spreadsheet import label_texts, read_csv
from ahfal_app.oracle import EncodedImage, Site, make_oracle

# Whether an image can be decoded does not depend on the size that it is scaled to.
_IMAGE_SHAPE = (32, 32, 3)
_SHOWN = 10


def check_site(node_config: Mapping[str, object], classes: str) -> Iterator[Finding]:
    """Decode the site's images and read its labels as a run would; nothing of it is kept.

    Parameters
    ----------
    node_config : Mapping[str, object]
        What the site says of itself; it has a key `data`.
    classes : str
        The run's setting `classes`; without it, labels are only counted.
    """
    try:
        settings, folders = _settings(node_config, classes)
    except ConfigError as error:
        yield from (failure("node-config", problem) for problem in error.problems)
        return
    known = settings.class_list or tuple(_classes_named(folders))
    with tempfile.TemporaryDirectory(prefix="ahfal-doctor-") as scratch:
        # A state of its own: that of the site begins with its first run.
        elsewhere = replace(folders, state=Path(scratch))
        try:
            with _unlogged():
                site = _loaded(elsewhere, known, settings)
        except LabelFileError as error:
            yield failure("labels", str(error))
            return
        except (AhfalError, OSError) as error:
            yield failure("data", str(error))
            return
        yield from _check_images(site, folders, read_csv(Path(scratch) / set_aside.SET_ASIDE)[1:])
        yield from _check_labels(site, known, given=bool(classes))
        yield _check_oracle(settings, site, known, node_config, Path(scratch))
        with _unlogged():
            yield from check_validation(elsewhere, site, settings, given=bool(classes))


def _loaded(folders: SiteFolders, classes: tuple[str, ...], settings: Settings) -> SiteData:
    """Load a site's images, or its vectors, as long as those of its first file."""
    files, problems = files_below(folders.data, "data") if folders.data.is_dir() else ([], {})
    numbers = length_of_vectors(Folder(folders.data, files, problems), settings.vector_column)
    data_format = _format(classes) if numbers is None else _vector_format(classes, numbers)
    columns = VectorColumns(settings.vector_column, settings.shown_column)
    cache = folders.state
    return load_site(folders, data_format, cache, settings.image_column, vectors=columns)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the log of loading back: it names files that are not there any more when it is read."""
    log = logging.getLogger(set_aside.__name__)
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def _settings(node_config: Mapping[str, object], classes: str) -> tuple[Settings, SiteFolders]:
    run = parse_settings({"partition": SITES, "oracle": "files", "classes": classes})
    settings = at_site(run, node_config)
    # None only where clients share a data set, which partition=sites excludes.
    return settings, cast(SiteFolders, site_folders(settings, node_config))


def _classes_named(folders: SiteFolders) -> list[str]:
    files = [folders.data / LABELS, *([folders.truth] if folders.truth else [])]
    texts = {text for path in files if path.is_file() for text in label_texts(path.read_bytes())}
    texts |= set(classes_of_validation(folders))
    return sorted(text for text in texts if text.casefold() != SKIP)


def _format(classes: tuple[str, ...]) -> DataFormat:
    channels = _IMAGE_SHAPE[2]
    return DataFormat(
        classes, _IMAGE_SHAPE, (0.5,) * channels, (0.25,) * channels, Augmentation(0, False)
    )


def _vector_format(classes: tuple[str, ...], numbers: int) -> DataFormat:
    moments = ((0.0,) * numbers, (1.0,) * numbers)
    return DataFormat(classes, (1, 1, numbers), *moments, Augmentation(0, False), vectors=True)


def _check_images(
    site: SiteData, folders: SiteFolders, set_aside: Sequence[Sequence[str]]
) -> Iterator[Finding]:
    what = "images"
    if site.dataset.holds_vectors:
        what = f"vectors of {site.dataset.image_shape[2]} numbers"
    yield good("data", f"{folders.data}: {len(site.ids_N)} {what} can be used")
    if site.dataset.holds_vectors:
        yield _check_shown(site)
    if set_aside:
        shown = [f"{file} ({reason})" for file, reason in set_aside[:_SHOWN]]
        more = [f"and {len(set_aside) - _SHOWN} more"] if len(set_aside) > _SHOWN else []
        yield warning("set aside", "; ".join([f"{len(set_aside)} are not used", *shown, *more]))


def _check_shown(site: SiteData) -> Finding:
    """See that people who label have something to look at, by one vector of each file."""
    samples = {image.path: identity for identity, image in site.images.items()}.values()
    without = sorted(site.names[sample] for sample in samples if not site.content(sample))
    if not without:
        return good("shown", "there is something to look at beside a vector")
    return warning(
        "shown",
        f"{without[0]} has nothing to look at, so that people who label see its name alone; "
        "shown-column says which column has text, a link or an image",
    )


def _check_labels(site: SiteData, classes: tuple[str, ...], *, given: bool) -> Iterator[Finding]:
    counts = Counter(label for labels in site.given.values() for label in labels.values())
    truth_N = site.dataset.train.labels_N
    counts += Counter(truth_N[site.ids_N][truth_N[site.ids_N] >= 0].tolist())
    if not classes:
        yield good("labels", f"none yet: there is no {LABELS}")
        return
    found = ", ".join(f"{name} {counts[index]}" for index, name in enumerate(classes))
    if given:
        yield good("labels", found)
    else:
        yield warning(
            "labels", f"{found}: give --classes, the names that the run has, to have them compared"
        )


def _check_oracle(
    settings: Settings,
    site: SiteData,
    classes: tuple[str, ...],
    node_config: Mapping[str, object],
    scratch: Path,
) -> Finding:
    def image(sample: int) -> EncodedImage:
        content, name = site.content(sample), site.names[sample]
        return EncodedImage(name, picture(content, name) if site.dataset.holds_vectors else content)

    truth = dict(enumerate(np.asarray(site.dataset.train.labels_N).tolist()))
    options = oracle_options(node_config)
    # Without one of its own, an oracle's folder is in the state of a run, which is to come.
    folder = oracle_folder(options) or scratch
    try:
        oracle = make_oracle(settings.oracle, Site(0, classes, truth, image, folder, options))
        better = oracle.check()
    except ConfigError as error:
        return failure("oracle", "; ".join(error.problems))
    except OracleError as error:
        return failure("oracle", str(error))
    said = "" if "oracle" in node_config else ", unless the run says another"
    found = f"{settings.oracle}{said}"
    return warning("oracle", f"{found}; {better}") if better else good("oracle", found)
