"""What the folders of a data set mean: splits by exact names at the top, then classes.

Nothing is guessed from parts of names. What leaves a choice is refused, with what may be meant.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ahfal_app.data.not_used import shown_names as shown
from ahfal_app.errors import DatasetError

TRAIN, TEST = "train", "test"
_VALIDATION = "validation"

#: Names of splits, in any case. Where there is no split for testing, validation serves.
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    TRAIN: ("train", "training"),
    TEST: ("test", "testing"),
    _VALIDATION: ("validation", "valid", "val"),
}

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_WORDS = re.compile("|".join(sorted(_SPLIT_OF, key=len, reverse=True)), re.IGNORECASE)

# `train`, `train-0`, `train-00000-of-00005`; other names count with both numbers alone.
_PART = re.compile(r"(?P<name>.+?)([-_]\d+)?(?P<of>-of-\d+(-[0-9a-f]+)?)?")


@dataclass
class Layout:
    """Which of the files found are used for what.

    Attributes
    ----------
    splits : dict[str, list[int]]
        Positions of the files of `train`, and of `test` where there is such a split.
    not_used : dict[int, str]
        Why the others are not used, by position.
    notes : list[str]
        What may be meant otherwise.
    """

    splits: dict[str, list[int]]
    not_used: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split_of(name: str) -> str | None:
    """Return the split that a name stands for as a whole, or None."""
    return _SPLIT_OF.get(name.casefold())


def chosen_splits(names: Iterable[str], where: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the names of the splits for training and testing, and why others are not used.

    Parameters
    ----------
    names : Iterable[str]
        All splits by their own names. A single one is for training, whatever it is called.
    where : str
        What they are splits of, for messages.

    Raises
    ------
    DatasetError
        None of several is for training.
    """
    names = sorted(names)
    if len(names) == 1:
        return {TRAIN: names}, {}
    by_split: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if split := split_of(name):
            by_split[split].append(name)
    if TRAIN not in by_split:
        if len(by_split) == 1 and len(next(iter(by_split.values()))) == len(names):
            return {TRAIN: names}, {}
        raise DatasetError(f"{where}: no split `train` among {', '.join(names)}")
    tests = by_split[TEST] or by_split[_VALIDATION]
    chosen = {TRAIN: by_split[TRAIN]} | ({TEST: tests} if tests else {})
    used = {name for group in chosen.values() for name in group}
    instead = f"; testing is done with {shown(tests)}" if tests else ""
    return chosen, {
        name: f"of the split {name}, which is not used{instead}"
        for name in names
        if name not in used
    }


def image_layout(names: Sequence[str], where: str) -> tuple[Layout, dict[int, str]]:
    """Return what image files are for, and the class of each that is used.

    Parameters
    ----------
    names : Sequence[str]
        Paths below the data set's folder, with `/`.
    where : str
        The data set, for messages.

    Raises
    ------
    DatasetError
        Folders of splits stand beside others, or there are no two classes.
    """
    parts = [name.split("/") for name in names]
    tops = {part[0] for part in parts if len(part) > 1}
    split_tops = {top for top in tops if split_of(top)}
    if not split_tops:
        layout = Layout({TRAIN: [i for i, part in enumerate(parts) if len(part) > 1]})
        layout.not_used = {i: _NO_CLASS for i, part in enumerate(parts) if len(part) == 1}
        classes = {i: parts[i][0] for i in layout.splits[TRAIN]}
        _check_classes(set(classes.values()), parts, where)
        layout.notes = _notes_on_classes(parts)
        return layout, classes
    _check_all_splits(split_tops, tops, where)
    layout = _by_top(parts, *chosen_splits(tops, where), _NO_CLASS)
    for positions in layout.splits.values():
        flat = [i for i in positions if len(parts[i]) == 2]
        layout.not_used |= dict.fromkeys(flat, _NO_CLASS)
        positions[:] = [i for i in positions if len(parts[i]) > 2]
    classes = {i: parts[i][1] for positions in layout.splits.values() for i in positions}
    for split, positions in layout.splits.items():
        if not positions:
            raise DatasetError(
                f"{where}: no image of the split `{split}` lies in the folder of a class; allowed "
                f"are {_EXAMPLES}"
            )
    _check_classes({classes[i] for i in layout.splits[TRAIN]}, parts, where)
    layout.notes = _notes_on_splits(layout, classes)
    return layout, classes


def parquet_layout(names: Sequence[str], where: str) -> Layout:
    """Return what parquet files are for: by exact folders at the top, or by exact file names.

    Parameters
    ----------
    names : Sequence[str]
        Paths below the data set's folder, with `/`.
    where : str
        The data set, for messages.

    Raises
    ------
    DatasetError
        Files of splits stand beside others, or lie deeper.
    """
    parts = [name.split("/") for name in names]
    tops = {part[0] for part in parts if len(part) > 1}
    split_tops = {top for top in tops if split_of(top)}
    if split_tops:
        _check_all_splits(split_tops, tops, where)
        if beside := [name for name, part in zip(names, parts, strict=True) if len(part) == 1]:
            raise DatasetError(
                f"{where}: {shown(beside)} beside the folders of splits {shown(split_tops)}; "
                "move them into one, or elsewhere"
            )
        return _by_top(parts, *chosen_splits(tops, where), "")
    if deeper := sorted({"/".join(p[:-1]) for p in parts if any(map(split_of, p[1:-1]))}):
        raise DatasetError(
            f"{where}: {shown(deeper)} are called like splits, but lie below another folder; "
            f"name the folder that they lie in"
        )
    return _by_file(names, parts, where)


_NO_CLASS = "in no folder of a class"
_EXAMPLES = "class/image.png, or train/class/image.png and test/class/image.png"


def _by_top(
    parts: Sequence[Sequence[str]],
    chosen: Mapping[str, Sequence[str]],
    unused: Mapping[str, str],
    at_top: str,
) -> Layout:
    of = {top: split for split, tops in chosen.items() for top in tops}
    layout = Layout({split: [] for split in chosen})
    for position, part in enumerate(parts):
        if len(part) == 1:
            layout.not_used[position] = at_top
        elif part[0] in of:
            layout.splits[of[part[0]]].append(position)
        else:
            layout.not_used[position] = unused[part[0]]
    return layout


def _by_file(names: Sequence[str], parts: Sequence[Sequence[str]], where: str) -> Layout:
    found = [_split_of_file(part[-1]) for part in parts]
    if not any(split_of(split) for split in found if split):
        notes = []
        if suspicious := [n for n, p in zip(names, parts, strict=True) if _WORDS.search(p[-1])]:
            notes.append(
                f"{shown(suspicious)}: no splits by their names, and used like all others; a "
                f"split is called {_allowed()}"
            )
        return Layout({TRAIN: list(range(len(names)))}, notes=notes)
    folders = sorted({"/".join(part[:-1]) for part in parts})
    if len(folders) > 1:
        named = shown([folder or "the folder itself" for folder in folders])
        raise DatasetError(
            f"{where}: parquet files of splits in several folders, {named}; name one"
        )
    if others := [n for n, split in zip(names, found, strict=True) if split is None]:
        raise DatasetError(
            f"{where}: {shown(others)} beside files that are called like splits; move them "
            f"elsewhere, or call all of them {_allowed()}, or none"
        )
    splits = [split for split in found if split is not None]
    as_tops = [(split, part[-1]) for split, part in zip(splits, parts, strict=True)]
    return _by_top(as_tops, *chosen_splits(set(splits), where), "")


def _split_of_file(name: str) -> str | None:
    """Return the split that a parquet file's name stands for, or None."""
    match = _PART.fullmatch(name.rpartition(".")[0])
    if match is None:
        return None
    if split_of(match["name"]) or match["of"]:
        return match["name"]
    return None


def _check_all_splits(split_tops: set[str], tops: set[str], where: str) -> None:
    if others := tops - split_tops:
        raise DatasetError(
            f"{where}: {shown(split_tops)} and {shown(others)} lie side by side, but only some "
            "are called like splits: move the others elsewhere; or, if all are classes, put all "
            "of them into one folder `train`"
        )


def _check_classes(classes: set[str], parts: Sequence[Sequence[str]], where: str) -> None:
    if len(classes) > 1:
        return
    found = f"all images lie in {shown(classes)}" if classes else "images lie in no folder"
    # Such as an archive that was unpacked into a folder of its own.
    below = {part[1] for part in parts if len(part) > 2 and part[0] in classes}
    hint = f"; is {shown(classes)} the folder to be named?" if len(below) > 1 else ""
    raise DatasetError(
        f"{where}: {len(classes)} class, at least 2 are needed: {found}, and classes are the "
        f"folders that images lie in: {_EXAMPLES}{hint}"
    )


def _notes_on_classes(parts: Sequence[Sequence[str]]) -> list[str]:
    below: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        if len(part) > 1:
            below[part[0]].add(part[1] if len(part) > 2 else "")
    notes = _notes_on_case(below)
    if like := [f"{top}/{n}" for top, names in below.items() for n in names if split_of(n)]:
        notes.append(
            f"{shown(like)}: no splits, since they lie below classes; all of their images are used"
        )
    first, *others = below.values()
    if len(first - {""}) > 1 and all(names == first for names in others):
        notes.append(
            f"the classes are {shown(below)}, the first folders; that the same folders lie below "
            f"each of them ({shown(first)}) is not looked at"
        )
    return notes


def _notes_on_splits(layout: Layout, classes: Mapping[int, str]) -> list[str]:
    of = {split: {classes[i] for i in rows} for split, rows in layout.splits.items()}
    notes = _notes_on_case(set().union(*of.values()))
    return notes


def _notes_on_case(classes: Iterable[str]) -> list[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        alike[name.strip().casefold()].append(name)
    return [
        f"classes of their own, though they differ by case or spaces alone: {shown(names)}"
        for names in alike.values()
        if len(names) > 1
    ]


def _allowed() -> str:
    return "train or test, with a number or without, such as test-00000-of-00002"
