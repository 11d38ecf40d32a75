"""The images that a site tests with: can they be decoded, and has every class some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ahfal_app.config import Settings
from ahfal_app.data.site.loading import LABELS, SiteData, SiteFolders
from ahfal_app.data.site.validation import VALIDATION_SET_ASIDE, load_validation
from ahfal_app.data.vectors import VectorColumns
from ahfal_app.deployment.doctor.finding import Finding, failure, good, warning
from ahfal_app.errors import AhfalError
from ahfal_app.labels.names import SKIP
from ahfal_app.labels.spreadsheet import label_texts, read_csv

_SHOWN = 10


def check_validation(
    folders: SiteFolders, site: SiteData, settings: Settings, *, given: bool
) -> Iterator[Finding]:
    """Load what a site tests with as a run would, and tell how many images each class has.

    Parameters
    ----------
    folders : SiteFolders
        Where the site keeps what, with a state folder that is written to.
    site : SiteData
        Its images for training.
    settings : Settings
        The run's settings, with those of the site.
    given : bool
        Whether the names of the classes are those of the run.
    """
    if folders.validation is None:
        return
    columns = VectorColumns(settings.vector_column, settings.shown_column)
    data = site.dataset.format
    try:
        found = load_validation(
            folders, data, folders.state, settings.image_column, site, vectors=columns
        )
    except (AhfalError, OSError) as error:
        yield failure("validation", str(error))
        return
    counts_C = np.bincount(found.images.labels_N, minlength=len(data.class_names)).tolist()
    counted = [f"{name} {n}" for name, n in zip(data.class_names, counts_C, strict=True)]
    what = "vectors" if data.vectors else "images"
    said = f"{folders.validation}: {len(found.images)} {what} can be tested with"
    yield good("validation", f"{said}: {', '.join(counted)}")
    missing = [name for name, n in zip(data.class_names, counts_C, strict=True) if not n]
    if given and missing:
        yield warning("validation", f"none of {', '.join(missing)}, so that nothing tests these")
    if set_aside := read_csv(folders.state / VALIDATION_SET_ASIDE)[1:]:
        shown = [f"{file} ({reason})" for file, reason in set_aside[:_SHOWN]]
        more = [f"and {len(set_aside) - _SHOWN} more"] if len(set_aside) > _SHOWN else []
        text = "; ".join([f"{len(set_aside)} are not tested with", *shown, *more])
        yield warning("validation", text)


def classes_of_validation(folders: SiteFolders) -> Sequence[str]:
    """Return the classes that the folder names: in its `labels.csv`, or by its folders."""
    folder = folders.validation
    if folder is None or not folder.is_dir():
        return ()
    if (folder / LABELS).is_file():
        texts = label_texts((folder / LABELS).read_bytes())
        return [text for text in texts if text.casefold() != SKIP]
    return [each.name for each in folder.iterdir() if each.is_dir() and each.name[0] != "."]
