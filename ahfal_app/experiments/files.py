"""Experiment files: settings, inheritance by `base`, grids by `sweep`.

    title: Table 1: CIFAR-10 over heterogeneity
    base: ../cifar10.yaml
    sweep:
      strategy: [random, ahfal]
      alpha: [0.1, 1.0]
      variant:                      # an axis of named groups of settings
        full: {}
        without balance: {strategy.balance: none}
      seed: [0, 1, 2]
    reference: random               # what differences are to; else AHFAL, or the first method
    paper:                          # what the paper reports, in percent
      - {strategy: ahfal, alpha: 0.1, accuracy: 66.15, std: 0.94}

All other keys are settings, as in the run config.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ahfal_app.code_version import code_hash
from ahfal_app.config import DEFAULT_NUM_CLIENTS, OF_SERVER, Settings, expanded
from ahfal_app.config_sources import read_yaml
from ahfal_app.errors import ConfigError
from ahfal_app.experiments.grid import (
    SEED,
    Axes,
    Point,
    clashes,
    points_of,
    read_axes,
    repetitions,
    scale_problems,
    untrue_names,
)
from ahfal_app.experiments.paper import PaperNumber, read_paper_numbers
from ahfal_app.experiments.scales import Scale, seeds_at, settings_at
from ahfal_app.parameters import Scalar, suggestion
from ahfal_app.plugins import provenances, with_provenances

#: Where a run lies and is shown, how long it waits and what it is paid for does not change what
#: comes out.
NOT_IDENTITY = OF_SERVER | {
    *("name", "output-dir", "resume", "data-dir", "start-timeout", "round-timeout", "tracker"),
    *("label-cost", "round-cost", "currency"),
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes
    ----------
    labels : dict[str, Scalar]
        Its place on the axes, the seed included.
    settings : Settings
        Its settings, without a place for its folder.
    """

    labels: dict[str, Scalar]
    settings: Settings

    @property
    def key(self) -> str:
        """Return what identifies the run: a hash of its settings and of all code that it uses."""
        flat = {k: v for k, v in self.settings.to_flat().items() if k not in NOT_IDENTITY}
        code = with_provenances(code_hash(), provenances(flat))
        content = json.dumps([flat, code], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Return the name of its folder: words for people, and the key.

        The same for the same run in another experiment, so that it is done once.
        """
        dataset = _word(Path(self.settings.dataset).name)
        return f"{self.settings.strategy}-{dataset}-seed{self.settings.seed}-{self.key}"


@dataclass(frozen=True)
class Experiment:
    """A file's grid of runs, at a scale.

    `warnings` says what a reader of its results should know, `reference` which label of the first
    axis but the seed differences are to, where the file says it.
    """

    title: str
    file: Path
    scale: Scale
    axes: dict[str, tuple[Scalar, ...]]
    runs: tuple[PlannedRun, ...]
    paper: tuple[PaperNumber, ...] = ()
    overrides: dict[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reference: Scalar | None = None


def load_experiment(
    file: Path, scale: Scale = Scale.PAPER, overrides: Mapping[str, object] | None = None
) -> Experiment:
    """Read an experiment file and check every run of its grid.

    Parameters
    ----------
    file : Path
        A YAML file.
    scale : Scale
        How much of it is run.
    overrides : Mapping[str, object], optional
        Settings that replace the file's in all runs, such as a local `dataset`; an axis that
        is among them is not swept.

    Raises
    ------
    ConfigError
        The file, one that it inherits from, or the settings of a run cannot be used; all
        problems at once, with the point of the grid.
    """
    values = _inherited(file, ())
    title = values.pop("title", None) or file.stem
    overrides = dict(overrides or {})
    axes = read_axes(file, values.pop("sweep", {}))
    paper = read_paper_numbers(file, values.pop("paper", []), axes)
    reference = None
    if "reference" in values:
        reference = _reference(file, values.pop("reference"), axes, overrides)
    axes = {name: points for name, points in axes.items() if name not in overrides}
    if SEED in axes:
        axes[SEED] = {label: axes[SEED][label] for label in seeds_at(scale, axes[SEED])}
    if problems := clashes(axes, overrides):
        raise ConfigError([f"{file}: {problem}" for problem in problems])
    runs, warnings = _runs(file, values, axes, scale, overrides)
    return Experiment(
        title=str(title),
        file=file.absolute(),
        scale=scale,
        axes={name: tuple(points) for name, points in axes.items()},
        runs=runs,
        paper=paper,
        overrides=overrides,
        warnings=warnings,
        reference=reference,
    )


def _reference(
    file: Path, said: object, axes: Axes, overrides: Mapping[str, object]
) -> Scalar | None:
    """Return the label that differences are to; None where its axis is not swept."""
    axis = next((name for name in axes if name != SEED), None)
    labels = {str(label): label for label in axes[axis]} if axis is not None else {}
    if str(said) not in labels:
        allowed = f"a label of {axis}: {' | '.join(labels)}" if axis else "with an axis of `sweep`"
        hint = suggestion(str(said), labels)
        raise ConfigError([f"{file}: reference={said!r}: allowed is {allowed}{hint}"])
    return None if axis in overrides else labels[str(said)]


def load_experiments(
    files: Sequence[Path], scale: Scale = Scale.PAPER, overrides: Mapping[str, object] | None = None
) -> list[Experiment]:
    """Read experiment files, as `load_experiment` does each.

    Raises
    ------
    ConfigError
        There is no file, two have the same name, or one cannot be used; all problems at once.
    """
    problems = [] if files else ["no experiment: allowed is at least one YAML file"]
    first: dict[str, Path] = {}
    experiments = []
    for file in files:
        # The name is that of its plan, its tables and its report.
        other = first.setdefault(file.stem, file)
        if other is not file:
            problems.append(f"{file}: allowed is one file named {file.stem!r}; {other} is, too")
            continue
        try:
            experiments.append(load_experiment(file, scale, overrides))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return experiments


def _inherited(file: Path, below: Sequence[Path]) -> dict[str, Any]:
    """Return a file's content over that of its bases; `sweep` axis by axis."""
    # Not by `absolute` alone, by which a file that lies above and below would be ever another one.
    file = Path(os.path.normpath(expanded("file", file).absolute()))
    if file in below:
        chain = " -> ".join(str(path) for path in (*below, file))
        raise ConfigError([f"base: files inherit from each other: {chain}"])
    values: dict[str, Any] = read_yaml(file)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError([f"{file}: base={base!r}: allowed is a file's path"])
    inherited = _inherited(file.parent / expanded("base", base), (*below, file))
    # A base's numbers are those of another experiment.
    inherited = {k: v for k, v in inherited.items() if k not in ("title", "paper", "reference")}
    if isinstance(inherited.get("sweep"), dict) and isinstance(values.get("sweep", {}), dict):
        own = values.get("sweep", {})
        if unheard := sorted(values.keys() & inherited["sweep"].keys() - own.keys()):
            key = unheard[0]
            raise ConfigError(
                [
                    f"{file}: {key}={values[key]!r}: {base} sweeps it, and this would not be run; "
                    f"allowed is sweep: {{{key}: [{values[key]!r}]}}"
                ]
            )
        values["sweep"] = inherited["sweep"] | own
    return inherited | values


def _runs(
    file: Path,
    values: Mapping[str, object],
    axes: Axes,
    scale: Scale,
    overrides: Mapping[str, object],
) -> tuple[tuple[PlannedRun, ...], tuple[str, ...]]:
    """Return the runs of a grid, and what is to be known about them.

    Raises
    ------
    ConfigError
        The settings of a point cannot be used, or labels do not say what is run.
    """
    runs: list[PlannedRun] = []
    points: list[Point] = []
    problems: dict[str, str] = {}
    for labels, of_point in points_of(axes):
        full = {**values, **of_point}
        scaled = settings_at(scale, full)
        try:
            run = PlannedRun(labels, checked_settings({**scaled, **overrides}))
        except ConfigError as error:
            where = " ".join(f"{name}={label}" for name, label in labels.items())
            # A problem of many points of the grid is told once, with the first of them.
            for problem in error.problems:
                problems.setdefault(problem, where)
            continue
        runs.append(run)
        points.append(Point(labels, full, scaled, run.key))
    if problems:
        raise ConfigError(
            [f"{problem} (at {where})" if where else problem for problem, where in problems.items()]
        )
    untrue = untrue_names(axes, points, _is_value) + scale_problems(axes, points, scale)
    if untrue:
        raise ConfigError([f"{file}: {problem}" for problem in untrue])
    return tuple(runs), tuple(f"{file.name}: {warning}" for warning in repetitions(points))


def checked_settings(values: Mapping[str, object]) -> Settings:
    """Return a run's settings, such that equal runs have equal ones.

    Parameters
    ----------
    values : Mapping[str, object]
        Flat settings.

    Raises
    ------
    ConfigError
        They cannot be used.
    """
    from ahfal_app.server.preflight import check_settings, with_absolute_paths, without_defaults

    merged = dict(values)
    if not merged.get("num-clients"):
        merged["num-clients"] = DEFAULT_NUM_CLIENTS
    return with_absolute_paths(without_defaults(check_settings(merged)))


def _is_value(key: str, label: Scalar) -> bool:
    """Return whether a label could only be a value of a setting; free text could be a name."""
    from ahfal_app.server.preflight import check_settings

    def is_allowed(value: Scalar) -> bool:
        try:
            check_settings({key: value})
        except ConfigError as error:
            return not any(problem.startswith(f"{key}=") for problem in error.problems)
        return True

    return is_allowed(label) and not is_allowed("no-such-value")


def _word(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text) or "-"
