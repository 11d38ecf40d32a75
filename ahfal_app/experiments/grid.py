"""An experiment's grid: its axes, its points, and whether their labels say what is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahfal_app.config import setting_fields
from ahfal_app.errors import ConfigError
from ahfal_app.experiments.scales import Scale
from ahfal_app.parameters import Scalar

#: The axis whose values are repetitions of the same experiment.
SEED = "seed"

#: What a label of an axis sets, by axis and label.
Axes = dict[str, dict[Scalar, dict[str, object]]]


@dataclass(frozen=True)
class Point:
    """A point of a grid, and what is run there.

    Attributes
    ----------
    labels : Mapping[str, Scalar]
        Its label on each axis.
    full, scaled : Mapping[str, object]
        What the file says there, and what the scale makes of it: flat settings.
    run : str
        What identifies the run.
    """

    labels: Mapping[str, Scalar]
    full: Mapping[str, object]
    scaled: Mapping[str, object]
    run: str


def read_axes(file: Path, sweep: object) -> Axes:
    """Return the axes that a file describes.

    Raises
    ------
    ConfigError
        An axis is neither a list of values nor a mapping of labels to settings, or a value is
        there twice.
    """
    if not isinstance(sweep, dict):
        raise ConfigError([f"{file}: sweep={sweep!r}: allowed is a mapping of axes"])
    problems = []
    axes: Axes = {}
    for key, points in sweep.items():
        name = str(key)
        if isinstance(points, list) and points and all(isinstance(p, Scalar) for p in points):
            values = [_typed(name, point) for point in points]
            problems += [
                f"{file}: sweep.{name}: {value!r} is there twice; allowed is once"
                for place, value in enumerate(values)
                if value in values[:place]
            ]
            axes[name] = {value: {name: value} for value in values}
        elif isinstance(points, dict) and points and _are_groups(points):
            axes[name] = {
                label: {str(k): value for k, value in (group or {}).items()}
                for label, group in points.items()
            }
        else:
            problems.append(
                f"{file}: sweep.{name}={points!r}: allowed is a list of values of that setting, or "
                "a mapping of labels to settings"
            )
    if problems:
        raise ConfigError(problems)
    return axes


def points_of(axes: Axes) -> Iterator[tuple[dict[str, Scalar], dict[str, object]]]:
    """Yield the labels of each point of a grid, and what they set together."""
    for point in itertools.product(*axes.values()):
        labels = dict(zip(axes, point, strict=True))
        settings: dict[str, object] = {}
        for name, label in labels.items():
            settings |= axes[name][label]
        yield labels, settings


def clashes(axes: Axes, overrides: Mapping[str, object]) -> list[str]:
    """Return why labels could not say what is run: another axis, or an override, says it, too.

    Parameters
    ----------
    axes : Axes
        Those that are swept.
    overrides : Mapping[str, object]
        Settings that replace those of all points.
    """
    problems = []
    keys = {
        name: {key for group in points.values() for key in group} for name, points in axes.items()
    }
    for first, second in itertools.combinations(axes, 2):
        problems += [
            f"sweep.{first} and sweep.{second} both set {key}; allowed is one axis for a setting"
            for key in sorted(keys[first] & keys[second])
        ]
    for name, points in axes.items():
        for key in sorted(keys[name] & overrides.keys()):
            said = {label: group[key] for label, group in points.items() if key in group}
            if any(value != overrides[key] for value in said.values()):
                shown = ", ".join(f"{label}: {value!r}" for label, value in said.items())
                problems.append(
                    f"{key}={overrides[key]!r}: sweep.{name} sets it, too ({shown}); allowed is a "
                    "setting that no label stands for"
                )
    return problems


def untrue_names(
    axes: Axes, points: Sequence[Point], is_value: Callable[[str, Scalar], bool]
) -> list[str]:
    """Return where a group of settings is called as a value that its points do not have.

    Parameters
    ----------
    axes : Axes
        Those that are swept.
    points : Sequence[Point]
        All points of the grid.
    is_value : Callable[[str, Scalar], bool]
        Whether a label would be a value of the setting that an axis is called as.
    """
    found: dict[str, None] = {}
    for axis in axes.keys() & setting_fields().keys():
        values = {label for label in axes[axis] if is_value(axis, label)}
        for point in points:
            said = _with_default(point.full, axis)
            if (label := point.labels[axis]) in values and said != label:
                found[f"sweep.{axis}: {label!r} stands for {axis}={said!r}"] = None
    return [f"{problem}; allowed is another name" for problem in found]


def scale_problems(axes: Axes, points: Sequence[Point], scale: Scale) -> list[str]:
    """Return where labels do not say what a scale runs.

    A value must be what is run; two groups of settings, which have names of their own, must still
    differ. The smallest scale gives no results, so that nothing is refused there.
    """
    if scale is not Scale.SMALL:
        return []
    found: dict[str, None] = {}
    for axis, groups in axes.items():
        are_values = all(group == {axis: label} for label, group in groups.items())
        for same_elsewhere in _along(axis, points):
            if are_values:
                untrue = [p for p in same_elsewhere if p.scaled[axis] != p.labels[axis]]
                problems = [f"{p.scaled[axis]!r} is run for {p.labels[axis]!r}" for p in untrue]
            else:
                problems = [
                    f"{key}={one.scaled[key]!r} is run for {one.labels[axis]!r} and "
                    f"{other.labels[axis]!r}"
                    for one, other in itertools.combinations(same_elsewhere, 2)
                    if (key := _collapsed(groups, one, other, axis))
                ]
            found |= dict.fromkeys(f"sweep.{axis}: {problem}" for problem in problems)
    return [
        f"{problem} at --scale {scale.value}; allowed is what this scale keeps apart"
        for problem in found
    ]


def repetitions(points: Sequence[Point]) -> list[str]:
    """Return warnings of points that are one and the same run."""
    by_run: dict[str, list[Point]] = {}
    for point in points:
        by_run.setdefault(point.run, []).append(point)
    places: dict[str, dict[str, None]] = {}
    for same in by_run.values():
        if len(same) < 2:
            continue
        apart = [a for a in same[0].labels if len({point.labels[a] for point in same}) > 1]
        who = " and ".join(_words(point.labels, apart) for point in same)
        rest = [axis for axis in same[0].labels if axis not in (*apart, SEED)]
        place = _words(same[0].labels, rest)
        places.setdefault(who, {})[place] = None
    warnings = []
    for who, where in places.items():
        first, more = next(iter(where)), len(where) - 1
        at = f" (at {first}{f' and {more} more' if more else ''})" if first else ""
        warnings.append(f"{who}: one run under several labels{at}")
    return warnings


def _along(axis: str, points: Sequence[Point]) -> Iterable[list[Point]]:
    """Return the points that differ on one axis alone, together."""
    found: dict[tuple[Scalar, ...], list[Point]] = {}
    for point in points:
        elsewhere = tuple(label for name, label in point.labels.items() if name != axis)
        found.setdefault(elsewhere, []).append(point)
    return found.values()


def _collapsed(
    groups: Mapping[Scalar, Mapping[str, object]], one: Point, other: Point, axis: str
) -> str:
    """Return a setting in which two labels of an axis differed, where none does any more."""
    keys = groups[one.labels[axis]].keys() | groups[other.labels[axis]].keys()
    apart = sorted(
        key for key in keys if _with_default(one.full, key) != _with_default(other.full, key)
    )
    if not apart or any(one.scaled.get(key) != other.scaled.get(key) for key in apart):
        return ""
    return apart[0]


def _with_default(settings: Mapping[str, object], key: str) -> object:
    field = setting_fields().get(key)
    return settings.get(key, field.default if field is not None else None)


def _words(labels: Mapping[str, Scalar], axes: Iterable[str]) -> str:
    return " ".join(f"{axis}={labels[axis]}" for axis in axes)


def _are_groups(points: dict[Any, Any]) -> bool:
    return all(group is None or isinstance(group, dict) for group in points.values())


def _typed(name: str, value: Scalar) -> Scalar:
    """Return a value of a setting as the setting has it, so that its label says the same."""
    field = setting_fields().get(name)
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if field is not None and field.annotation is int and is_whole else value
