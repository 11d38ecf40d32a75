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
    paper:                          # what the paper reports, in percent
      - {strategy: ahfal, alpha: 0.1, accuracy: 66.15, std: 0.94}

All other keys are settings, as in the run config.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahfal_app.code_version import code_hash
from ahfal_app.config import COMPONENTS, DEFAULT_NUM_CLIENTS, Settings
from ahfal_app.config_sources import read_yaml
from ahfal_app.errors import ConfigError
from ahfal_app.experiments.scales import Scale, seeds_at, settings_at
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import provenances, with_provenances

#: The axis whose values are repetitions of the same experiment.
SEED = "seed"

#: Where a run lies and is shown, and how long it waits, does not change what comes out.
NOT_IDENTITY = frozenset(
    {"name", "output-dir", "resume", "data-dir", "start-timeout", "round-timeout", "tracker"}
)


class PaperNumber(BaseModel):
    """A number that the paper reports for one point of the grid, in percent.

    Its other keys are the point's labels on the axes.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    accuracy: float = Field(ge=0, le=100)
    std: float | None = Field(default=None, ge=0)

    @property
    def labels(self) -> dict[str, Scalar]:
        """The point's labels on the axes."""
        return dict(self.model_extra or {})


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
    """A file's grid of runs, at a scale."""

    title: str
    file: Path
    scale: Scale
    axes: dict[str, tuple[Scalar, ...]]
    runs: tuple[PlannedRun, ...]
    paper: tuple[PaperNumber, ...] = ()
    overrides: dict[str, object] = field(default_factory=dict)


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
    title = values.pop("title", file.stem)
    paper = _paper_numbers(file, values.pop("paper", []))
    overrides = dict(overrides or {})
    axes = _axes(file, values.pop("sweep", {}))
    axes = {name: points for name, points in axes.items() if name not in overrides}
    if SEED in axes:
        axes[SEED] = {label: axes[SEED][label] for label in seeds_at(scale, axes[SEED])}
    runs = _runs(values, axes, scale, overrides)
    return Experiment(
        title=str(title),
        file=file.absolute(),
        scale=scale,
        axes={name: tuple(points) for name, points in axes.items()},
        runs=runs,
        paper=paper,
        overrides=overrides,
    )


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


_Axes = dict[str, dict[Scalar, dict[str, object]]]


def _inherited(file: Path, below: Sequence[Path]) -> dict[str, Any]:
    """Return a file's content over that of its bases; `sweep` axis by axis."""
    file = file.absolute()
    if file in below:
        chain = " -> ".join(str(path) for path in (*below, file))
        raise ConfigError([f"base: files inherit from each other: {chain}"])
    values: dict[str, Any] = read_yaml(file)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError([f"{file}: base={base!r}: allowed is a file's path"])
    inherited = _inherited(file.parent / base, (*below, file))
    # A base's numbers are those of another experiment.
    inherited = {k: v for k, v in inherited.items() if k not in ("title", "paper")}
    if isinstance(inherited.get("sweep"), dict) and isinstance(values.get("sweep"), dict):
        values["sweep"] = inherited["sweep"] | values["sweep"]
    return inherited | values


def _axes(file: Path, sweep: object) -> _Axes:
    if not isinstance(sweep, dict):
        raise ConfigError([f"{file}: sweep={sweep!r}: allowed is a mapping of axes"])
    problems = []
    axes: _Axes = {}
    for name, points in sweep.items():
        if isinstance(points, list) and points and all(isinstance(p, Scalar) for p in points):
            axes[str(name)] = {point: {str(name): point} for point in points}
        elif isinstance(points, dict) and points and _are_groups(points):
            axes[str(name)] = {label: dict(group or {}) for label, group in points.items()}
        else:
            problems.append(
                f"{file}: sweep.{name}={points!r}: allowed is a list of values of that setting, or "
                "a mapping of labels to settings"
            )
    if problems:
        raise ConfigError(problems)
    return axes


def _are_groups(points: dict[Any, Any]) -> bool:
    return all(group is None or isinstance(group, dict) for group in points.values())


def _paper_numbers(file: Path, content: object) -> tuple[PaperNumber, ...]:
    if not isinstance(content, list):
        raise ConfigError([f"{file}: paper={content!r}: allowed is a list of numbers"])
    try:
        return tuple(PaperNumber.model_validate(entry) for entry in content)
    except ValidationError as error:
        problems = [(detail["loc"], detail["input"], detail["msg"]) for detail in error.errors()]
        raise ConfigError(
            [
                f"{file}: paper.{'.'.join(map(str, loc))}={value!r}: {why}"
                for loc, value, why in problems
            ]
        ) from error


def _runs(
    values: dict[str, object], axes: _Axes, scale: Scale, overrides: dict[str, object]
) -> tuple[PlannedRun, ...]:
    from ahfal_app.server.preflight import check_settings, with_absolute_paths

    runs = []
    problems: dict[str, str] = {}
    for point in itertools.product(*axes.values()):
        labels = dict(zip(axes, point, strict=True))
        merged = dict(values)
        for name, label in labels.items():
            merged |= axes[name][label]
        merged = settings_at(scale, merged) | overrides
        if not merged.get("num-clients"):
            merged["num-clients"] = DEFAULT_NUM_CLIENTS
        merged = _own_parameters(merged)
        try:
            runs.append(PlannedRun(labels, with_absolute_paths(check_settings(merged))))
        except ConfigError as error:
            where = " ".join(f"{name}={label}" for name, label in labels.items())
            # A problem of many points of the grid is told once, with the first of them.
            for problem in error.problems:
                problems.setdefault(problem, where)
    if problems:
        raise ConfigError(
            [f"{problem} (at {where})" if where else problem for problem, where in problems.items()]
        )
    return tuple(runs)


def _own_parameters(values: dict[str, object]) -> dict[str, object]:
    """Return settings without empty parameters, which stand for their defaults."""
    return {
        key: value
        for key, value in values.items()
        if not (key.partition(".")[0] in COMPONENTS and "." in key and value == "")
    }


def _word(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text) or "-"
