"""The AHFAL paper: its protocol (section 5.1), where runs depart from it, and its numbers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahfal_app.errors import ConfigError
from ahfal_app.experiments.grid import SEED, Axes
from ahfal_app.parameters import Scalar, suggestion

#: What the paper states for all data sets. Weight decay and the drop of the learning rate are not
#: in it: what it leaves open does not count as a departure.
_EVERYWHERE: dict[str, Scalar] = {
    "max-train-samples": 0,
    "max-test-samples": 0,
    "num-clients": 10,
    "partition": "dirichlet-balanced",
    "batch-size": 128,
    "learning-rate": 0.1,
    "momentum": 0.9,
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "tau": 12.0,
    "aggregation": "fedavg",
    "client-fraction": 1.0,
    "privacy": "none",
}

_LONG: dict[str, Scalar] = {"rounds": 100, "local-epochs": 5}
_SHORT: dict[str, Scalar] = {"rounds": 10, "local-epochs": 10}

#: What it states for each of its data sets, by short name.
_BY_DATASET: dict[str, dict[str, Scalar]] = {
    "cifar10": {**_LONG, "target-fraction": 0.35},
    "cifar100": {**_LONG, "target-fraction": 0.35},
    "svhn": {**_LONG, "target-fraction": 0.4},
    "mnist": {**_SHORT, "target-fraction": 0.4},
}

# A number alone would not say that 0 stands for all of them.
_ALL = frozenset({"max-train-samples", "max-test-samples"})


class PaperNumber(BaseModel):
    """A number that the paper reports for one point of the grid, in percent.

    Its other keys are the point's labels on the axes.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    accuracy: float = Field(ge=0, le=100)
    std: float | None = Field(default=None, ge=0, le=100)

    @property
    def labels(self) -> dict[str, Scalar]:
        """The point's labels on the axes."""
        return dict(self.model_extra or {})


def read_paper_numbers(file: Path, content: object, axes: Axes) -> tuple[PaperNumber, ...]:
    """Return the numbers of an experiment file.

    Parameters
    ----------
    file : Path
        The file.
    content : object
        What it has under `paper`.
    axes : Axes
        All axes of the file.

    Raises
    ------
    ConfigError
        An entry has no number in percent, or is not about exactly one place of the grid.
    """
    if not isinstance(content, list):
        raise ConfigError([f"{file}: paper={content!r}: allowed is a list of numbers"])
    numbers, problems = [], []
    for place, entry in enumerate(content, start=1):
        try:
            number = PaperNumber.model_validate(entry)
        except ValidationError as error:
            found = [
                f"{'.'.join(['paper', *map(str, d['loc'])])}={d['input']!r}: {d['msg']}"
                for d in error.errors()
            ]
        else:
            found = _problems(number, axes)
            numbers.append(number)
        problems += [f"{file}: {problem} (entry {place})" for problem in found]
    problems += [] if problems else [f"{file}: {problem}" for problem in _overlaps(numbers)]
    if problems:
        raise ConfigError(problems)
    return tuple(numbers)


def _problems(number: PaperNumber, axes: Axes) -> list[str]:
    problems = []
    if 0 < number.accuracy <= 1:
        problems.append(
            f"paper.accuracy={number.accuracy!r}: allowed is percent, above 1 up to 100; this "
            "looks like a share"
        )
    allowed = [name for name in axes if name != SEED]
    for name, label in number.labels.items():
        if name not in allowed:
            near = suggestion(name, (*allowed, "accuracy", "std"))
            names = ", ".join(("accuracy", "std", *allowed))
            problems.append(f"paper.{name}={label!r}: allowed are {names}{near}")
        elif not isinstance(label, Scalar) or label not in axes[name]:
            labels = [str(known) for known in axes[name]]
            near = suggestion(str(label), labels)
            problems.append(f"paper.{name}={label!r}: allowed is {' | '.join(labels)}{near}")
    return problems


def _overlaps(numbers: list[PaperNumber]) -> list[str]:
    """Refuse two numbers for one point of the grid."""
    problems = []
    for (i, one), (j, other) in combinations(enumerate(numbers, start=1), 2):
        a, b = one.labels, other.labels
        if all(a[name] == b[name] for name in a.keys() & b.keys()):
            problems.append(f"paper: entries {i} and {j} are about the same point; allowed is one")
    return problems


def departures(
    dataset: str, settings: Iterable[Mapping[str, Any]], studied: Container[str]
) -> list[str]:
    """Say where runs on one data set depart from the paper's protocol.

    Parameters
    ----------
    dataset : str
        Its short name.
    settings : Iterable[Mapping[str, Any]]
        The runs' flat settings.
    studied : Container[str]
        Keys that are the experiment's subject; they are left out.

    Returns
    -------
    list[str]
        One phrase each; empty where nothing departs.
    """
    if dataset not in _BY_DATASET:
        return [f"the paper has no results on {dataset}"]
    found: dict[str, list[str]] = {}
    for run in settings:
        for key, stated in {**_EVERYWHERE, **_BY_DATASET[dataset]}.items():
            if key not in studied and run[key] != stated:
                values = found.setdefault(f"{key} (paper: {_words(key, stated)})", [])
                values.extend({_words(key, run[key])} - set(values))
    return [f"{key}: {', '.join(values)}" for key, values in found.items()]


def _words(key: str, value: Scalar) -> str:
    return "all" if key in _ALL and value == 0 else str(value)
