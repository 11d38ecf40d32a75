"""A benchmark's protocol: a file of data sets, splits, seeds, budgets and training that is fixed.

    title: AHFAL's benchmark, quick
    version: 1
    settings: {rounds: 5, precision: fp32}        # of all runs
    problems:                                     # data sets, each with settings of its own
      digits: {dataset: digits, num-clients: 10}
    splits:
      skewed: {alpha: 0.1}
    seeds: [0, 1, 2, 3, 4]
    reference: random                             # what the others are compared with
    baselines: [random, entropy]                  # strategies whose results are kept
    places: []                                    # settings that say where a file lies
    free: []                                      # settings of a run that belong to a method
    cached: ../../results/benchmark/quick.jsonl   # the baselines' results, from this file

What is measured is all of it but the title, the baselines and where things lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ahfal_app.benchmark.text import LONGEST_NAME, Text, Value
from ahfal_app.config import Settings, setting_fields
from ahfal_app.config_sources import read_yaml
from ahfal_app.errors import ConfigError
from ahfal_app.experiments.files import checked_settings
from ahfal_app.parameters import Scalar

#: What a problem, a split or the protocol itself may be called.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,39}$")]

STRATEGY, SEED, DATA_DIR = "strategy", "seed", "data-dir"

_VALUE: TypeAdapter[Scalar] = TypeAdapter(Value)

#: Settings that can say where a file lies; its content is compared by fingerprint or hash.
PLACES = ("dataset", "backbone-weights")


class Case(NamedTuple):
    """What every method is run on: a data set, how it is split, and the seed of both and more."""

    problem: str
    split: str
    seed: int

    def __str__(self) -> str:
        """Return it as messages name it."""
        return f"{self.problem}, {self.split}, seed {self.seed}"


class Protocol(BaseModel):
    """What a protocol's file says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str = Field(min_length=1, max_length=200)
    version: int = Field(ge=1)
    settings: dict[str, Scalar]
    problems: dict[Name, dict[str, Scalar]] = Field(min_length=1)
    splits: dict[Name, dict[str, Scalar]] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1)
    reference: str
    baselines: list[str] = Field(min_length=1)
    places: list[str] = Field(default_factory=list)
    free: list[str] = Field(default_factory=list)
    cached: str = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Protocol:
        if self.reference not in self.baselines:
            raise ValueError(f"reference={self.reference!r}: allowed is one of the baselines")
        for name in ("seeds", "baselines"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: allowed is each value once")
        if odd := [key for key in self.places if key not in PLACES]:
            raise ValueError(f"places: {odd[0]!r}: allowed is {' | '.join(PLACES)}")
        said = {key for part in (*self._parts(), dict.fromkeys(self.free)) for key in part}
        if own := sorted(said & {STRATEGY, SEED, DATA_DIR}):
            raise ValueError(f"{own[0]!r}: allowed is what no method, no seed and no machine says")
        if both := sorted(set(self.free) & {key for part in self._parts() for key in part}):
            raise ValueError(f"free: {both[0]!r}: allowed is what the protocol does not set itself")
        if unknown := sorted(set(self.free) - setting_fields().keys()):
            raise ValueError(f"free: {unknown[0]!r}: allowed is the name of a setting")
        return self

    def _parts(self) -> list[Mapping[str, Scalar]]:
        return [self.settings, *self.problems.values(), *self.splits.values()]

    @property
    def measured(self) -> dict[str, Any]:
        """What makes two protocols the same benchmark, as JSON knows it."""
        return self.model_dump(exclude={"title", "baselines", "reference", "cached"})

    def cases(self) -> list[Case]:
        """Return what every method is run on, in the order of the file."""
        found = itertools.product(self.problems, self.splits, self.seeds)
        return [Case(*each) for each in found]


@dataclass(frozen=True)
class Method:
    """What takes part: a strategy, its parameters, and settings that are its own affair.

    `name` is what tables call it.
    """

    name: str
    strategy: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)


#: Where files lie on this machine, by problem and setting; `data-dir` for all of them.
Places = Mapping[str, Mapping[str, Scalar]]


def read_protocol(file: Path) -> Protocol:
    """Read a protocol's file.

    Raises
    ------
    ConfigError
        It cannot be read, or says what none can say.
    """
    values = read_yaml(file)
    try:
        return Protocol.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            [
                f"{file}: {'.'.join(map(str, each['loc'])) or 'protocol'}: {each['msg']}"
                for each in error.errors(include_url=False)
            ]
        ) from None


def settings_of(protocol: Protocol, case: Case, method: Method, places: Places) -> Settings:
    """Return the settings of a method's run.

    Raises
    ------
    ConfigError
        They cannot be used.
    """
    values: dict[str, object] = {
        **protocol.settings,
        **protocol.problems[case.problem],
        **protocol.splits[case.split],
        **places.get(case.problem, {}),
        **method.settings,
        STRATEGY: method.strategy,
        SEED: case.seed,
    }
    return checked_settings(values)


def method_and_places(
    protocol: Protocol, values: Mapping[str, object], name: str = ""
) -> tuple[Method | None, dict[str, dict[str, Scalar]]]:
    """Sort what the command line sets: a method's own affairs, and where files lie.

    Parameters
    ----------
    protocol : Protocol
        The benchmark.
    values : Mapping[str, object]
        `strategy`, `strategy.<parameter>`, free settings, `data-dir` and `<problem>.<place>`.
    name : str
        What the method is to be called; empty: by its strategy and what it sets.

    Returns
    -------
    tuple[Method | None, dict[str, dict[str, Scalar]]]
        The method, None where no strategy is named; places by problem.

    Raises
    ------
    ConfigError
        A setting would change what is measured, or no submission may have the name or a value.
    """
    of_places = {f"{problem}.{key}" for problem in protocol.problems for key in protocol.places}
    is_own = {
        key: key in protocol.free or key.startswith(f"{STRATEGY}.")
        for key in values
        if key != STRATEGY
    }
    allowed = [STRATEGY, f"{STRATEGY}.<parameter>", *protocol.free, DATA_DIR, *sorted(of_places)]
    problems = [
        f"{key}={values[key]!r}: would change what is measured; allowed is {', '.join(allowed)}"
        for key, own in is_own.items()
        if not own and key != DATA_DIR and key not in of_places
    ]
    own = {key: values[key] for key, is_one in is_own.items() if is_one}
    if own and STRATEGY not in values:
        problems.append(f"{next(iter(own))}: allowed with strategy=NAME alone, whose affair it is")
    if problems:
        raise ConfigError(problems)
    everywhere = {DATA_DIR: values[DATA_DIR]} if DATA_DIR in values else {}
    places = {
        problem: _scalars(
            everywhere
            | {
                key: values[f"{problem}.{key}"]
                for key in protocol.places
                if f"{problem}.{key}" in values
            }
        )
        for problem in protocol.problems
    }
    if STRATEGY not in values:
        return None, places
    strategy = str(values[STRATEGY])
    said = " ".join([strategy, *(f"{key}={value}" for key, value in own.items())])
    if len(said) > LONGEST_NAME:
        said = f"{strategy}, {len(own)} settings of its own"
    return Method(_checked_name(name or said), strategy, _checked_values(_scalars(own))), places


def _checked_values(values: dict[str, Scalar]) -> dict[str, Scalar]:
    """Refuse what no submission may have as settings, before anything is run."""
    problems = []
    for key, value in values.items():
        try:
            _VALUE.validate_python(value)
        except ValidationError as error:
            problems.append(f"{key}={value!r}: {error.errors()[0]['msg']}")
    if problems:
        raise ConfigError(problems)
    return values


def _checked_name(name: str) -> str:
    """Refuse what no submission may be called, before anything is run."""
    try:
        return TypeAdapter(Text).validate_python(name)
    except ValidationError as error:
        raise ConfigError([f"--name={name!r}: {error.errors()[0]['msg']}"]) from None


def _scalars(values: Mapping[str, object]) -> dict[str, Scalar]:
    return {
        key: value if isinstance(value, Scalar) else str(value) for key, value in values.items()
    }


def baseline(strategy: str) -> Method:
    """Return a baseline: a strategy with its defaults."""
    return Method(strategy, strategy)
