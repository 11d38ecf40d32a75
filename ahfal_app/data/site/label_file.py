"""Files of labels at a site, whose lines may be about images that are not used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ahfal_app.errors import LabelFileError
from ahfal_app.labels.names import ClassNames
from ahfal_app.labels.spreadsheet import LabelLine, read_label_lines, refusal


def read_site_labels(
    path: Path,
    classes: ClassNames,
    samples: Mapping[str, int],
    set_aside: Mapping[str, str],
) -> tuple[list[LabelLine], dict[str, str], dict[str, str]]:
    """Return the labels of a file, and which lines are about no image that is used.

    Parameters
    ----------
    path : Path
        The file.
    classes : ClassNames
        The classes.
    samples : Mapping[str, int]
        Ids of the images that can be used, by name.
    set_aside : Mapping[str, str]
        Why others cannot, by name.

    Returns
    -------
    list[LabelLine]
        The labels of images that can be used.
    dict[str, str]
        By the file's name and the line's number, why a line is passed over.
    dict[str, str]
        By the same, what the lines name that are about no image of the site at all.

    Raises
    ------
    LabelFileError
        The file cannot be read, or a line has a mistake other than the name of its image.
    """
    # Below the ids, which start at 0: their lines are read, and told from names that are wrong.
    away = {-1 - i: name for i, name in enumerate(set_aside) if name not in samples}
    known = {**samples, **{name: place for place, name in away.items()}}
    lines, problems = read_label_lines(_content(path), classes, known, path.name)
    if wrong := [problem for problem in problems if not problem.unknown_file]:
        raise LabelFileError(refusal(path, wrong))
    unknown = {f"{path.name}, line {p.line}": p.unknown_file for p in problems}
    passed_over = {f"{path.name}, line {p.line}": p.reason for p in problems}
    for line in lines:
        if line.sample in away:
            name = away[line.sample]
            passed_over[f"{path.name}, line {line.number}"] = (
                f"about an image that is set aside: {name}, {set_aside[name]}"
            )
    return [line for line in lines if line.sample not in away], passed_over, unknown


def labelled_ids(path: Path, classes: ClassNames, ids: Mapping[str, int]) -> set[int]:
    """Return the ids that a file has a label for, by name; of lines with mistakes it has none."""
    if not path.exists():
        return set()
    lines, _ = read_label_lines(_content(path), classes, ids, path.name)
    return {line.sample for line in lines}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error
