"""Comparing runs that were not made by one sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ahfal_app.code_version import code_hash
from ahfal_app.config import setting_fields
from ahfal_app.errors import ReportError
from ahfal_app.experiments.files import NOT_IDENTITY
from ahfal_app.experiments.grid import SEED
from ahfal_app.experiments.results import (
    ExperimentResults,
    RunResult,
    compared_by,
    read_done,
)
from ahfal_app.experiments.scales import Scale
from ahfal_app.parameters import Scalar

# What is compared, if these settings are among those that differ.
_METHOD_FIRST = ("strategy", "local-update", "aggregation", "privacy", "align", "model")

#: The axis of runs whose settings do not tell them apart.
RUN = "run"


def compare_runs(folders: Sequence[Path], metric: str = "") -> ExperimentResults:
    """Return runs as an experiment whose axes are the settings in which they differ.

    Parameters of a component that is among these are part of its label.

    Parameters
    ----------
    folders : Sequence[Path]
        At least two runs' folders.
    metric : str
        What they are compared by; empty: their setting `metric`, where it is the same in all, and
        else the accuracy.

    Raises
    ------
    ReportError
        A folder holds no run that has come to its end, there are fewer than two, or one has no
        such metric.
    """
    if len(folders) < 2:
        raise ReportError(f"{len(folders)} run to compare; at least 2 are needed")
    runs = []
    for folder in folders:
        run = read_done(folder)
        if run is None:
            raise ReportError(f"{folder}: not the folder of a run that has come to its end")
        runs.append(run)
    flats = [run.settings.to_flat() for run in runs]
    keys = [key for flat in flats for key in flat]
    differing = [
        key
        for key in dict.fromkeys(keys)
        if key not in NOT_IDENTITY and len({flat.get(key) for flat in flats}) > 1
    ]
    differing.sort(key=lambda key: (_rank(key), key == SEED))
    places = [_place(differing, flat) for flat in flats]
    if len({tuple(place.values()) for place in places}) < len(runs):
        names = _distinct_names([run.folder for run in runs])
        places = [{RUN: name, **place} for name, place in zip(names, places, strict=True)]
    results = ExperimentResults(
        title="Comparison of runs",
        file=f"{len(runs)} runs",
        scale=Scale.PAPER,
        axes={axis: _labels(axis, places) for axis in places[0]},
        overrides={},
        paper=(),
        runs=tuple(RunResult(place, run) for place, run in zip(places, runs, strict=True)),
        missing=(),
        failures={},
        other_code=any(run.summary.get("code_hash") != code_hash() for run in runs),
    )
    return compared_by(metric, results)


def refuse_repetitions(folders: Sequence[Path]) -> None:
    """Refuse to compare a run with itself, under whatever name.

    Raises
    ------
    ReportError
        A folder is there twice.
    """
    first: dict[Path, Path] = {}
    for folder in folders:
        if (same := folder.resolve()) in first:
            raise ReportError(f"{folder}: the same run as {first[same]}; allowed is each once")
        first[same] = folder


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return what tells folders apart: their names, with as many parents as that takes."""
    parts = [folder.resolve().parts for folder in folders]
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    counts = Counter[str]()
    for place, name in enumerate(names):
        counts[name] += 1
        names[place] = name if counts[name] == 1 else f"{name} ({counts[name]})"
    return names


def _place(differing: Sequence[str], flat: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a run's label on each axis.

    What only some components of an axis have is no axis of its own, or two of them would never be
    at the same place: a strategy's parameters are part of its label, and so is the budget of a
    protection.
    """
    place: dict[str, Scalar] = {}
    for key in differing:
        axis = key.split(".")[0]
        if axis == key or axis not in differing:
            place[key] = flat.get(key, "")
    for key in differing:
        axis, value = key.split(".")[0], flat.get(key, "")
        if key not in place and value != _default(key):
            place[axis] = f"{place[axis]} {key}={value}"
    return place


def _default(key: str) -> Scalar:
    """Return what stands where nobody says a setting or a component's parameter."""
    field = setting_fields().get(key)
    return "" if field is None else field.default


def _rank(key: str) -> int:
    return _METHOD_FIRST.index(key) if key in _METHOD_FIRST else len(_METHOD_FIRST)


def _labels(axis: str, places: Sequence[dict[str, Scalar]]) -> tuple[Scalar, ...]:
    return tuple(dict.fromkeys(place[axis] for place in places))
