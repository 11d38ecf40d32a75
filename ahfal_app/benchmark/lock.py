"""What a protocol's data, splits, budgets and settings must come to, kept beside its file.

`quick.lock.json` beside `quick.yaml` holds fingerprints and numbers. They are computed anew and
compared before anything runs: other data, a library that splits otherwise, or another default of a
setting would measure something else under the same name.

Shapes: T cycles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahfal_app.benchmark.protocol import (
    PLACES,
    SEED,
    STRATEGY,
    Case,
    Places,
    Protocol,
    baseline,
    settings_of,
)
from ahfal_app.config import Settings
from ahfal_app.errors import AhfalError, BenchmarkError, ConfigError
from ahfal_app.experiments.files import NOT_IDENTITY
from ahfal_app.parameters import Scalar
from ahfal_app.results.environment import package_versions
from ahfal_app.training.resources import Resources

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

SUFFIX = ".lock.json"


class LockedProblem(BaseModel):
    """A data set: its fingerprint, the hash of its backbone, samples to test with, settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    data: Digest
    backbone: Digest | Literal[""]
    test: int = Field(ge=1)
    settings: dict[str, Scalar]


class LockedSplit(BaseModel):
    """A split of a seed: its fingerprint, and the labels (T) that each cycle is trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    split: str
    seed: int
    partition: Digest
    labels: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)

    @property
    def case(self) -> Case:
        """What it is a split of."""
        return Case(self.problem, self.split, self.seed)


class Lock(BaseModel):
    """All of a protocol; `versions` says which libraries it was computed with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    versions: dict[str, str]
    problems: dict[str, LockedProblem]
    splits: tuple[LockedSplit, ...]

    @property
    def by_case(self) -> dict[Case, LockedSplit]:
        """The splits by what they are splits of."""
        return {split.case: split for split in self.splits}


def lock_file(protocol_file: Path) -> Path:
    """Return where the lock of a protocol lies."""
    return protocol_file.with_name(protocol_file.stem + SUFFIX)


def read_lock(protocol_file: Path, protocol: Protocol) -> Lock:
    """Read the lock beside a protocol's file.

    Raises
    ------
    BenchmarkError
        It is missing, cannot be read, or is of other data sets, splits or seeds.
    """
    path = lock_file(protocol_file)
    try:
        lock = Lock.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BenchmarkError(
            [f"{path}: missing; `ahfal benchmark {protocol_file} --lock` writes it"]
        ) from None
    except OSError as error:
        raise BenchmarkError([f"{path}: cannot be read ({error.strerror})"]) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BenchmarkError([f"{path}: {where}: {first['msg']}"]) from None
    if list(lock.by_case) != protocol.cases() or lock.problems.keys() != protocol.problems.keys():
        raise BenchmarkError(
            [f"{path}: its data sets, splits or seeds are not those of {protocol_file}"]
        )
    return lock


def protocol_hash(protocol: Protocol, lock: Lock) -> str:
    """Return a SHA-256 of all that is measured; results of the same can be compared."""
    told = lock.model_dump(mode="json", exclude={"versions"})
    content = json.dumps([protocol.measured, told], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def make_lock(protocol: Protocol, places: Places) -> Lock:
    """Load all data, split them as every run would, and write down what it comes to.

    Raises
    ------
    ConfigError, DatasetError, PartitionError
        A run's settings, its data or its split cannot be had.
    """
    problems: dict[str, LockedProblem] = {}
    splits: list[LockedSplit] = []
    for case in protocol.cases():
        settings = settings_of(protocol, case, baseline(protocol.reference), places)
        loaded = Resources(settings)
        if case.problem not in problems:
            problems[case.problem] = LockedProblem(
                data=loaded.dataset.fingerprint,
                backbone="" if loaded.backbone is None else loaded.backbone.digest,
                test=len(loaded.dataset.test),
                settings=_kept(protocol, settings),
            )
        splits.append(
            LockedSplit(
                problem=case.problem,
                split=case.split,
                seed=case.seed,
                partition=loaded.partition.fingerprint,
                labels=labels_of(settings, [len(rows) for rows in loaded.partition.indices]),
            )
        )
    _refuse_other_cycles(splits)
    return Lock(versions=dict(package_versions()), problems=problems, splits=tuple(splits))


def _refuse_other_cycles(splits: Sequence[LockedSplit]) -> None:
    """Refuse splits of a data set with different numbers of budgets, which have no mean curve."""
    first: dict[str, LockedSplit] = {}
    problems = []
    for split in splits:
        other = first.setdefault(split.problem, split)
        if len(split.labels) != len(other.labels):
            problems.append(
                f"{split.case}: {len(split.labels)} budgets; allowed are {len(other.labels)}, as "
                f"of {other.case}"
            )
    if problems:
        raise ConfigError(problems)


def labels_of(settings: Settings, sizes: list[int]) -> tuple[int, ...]:
    """Return the labels (T) that all clients have together as each cycle is trained.

    Parameters
    ----------
    settings : Settings
        A run's settings.
    sizes : list[int]
        Samples of each client.
    """
    wholes = [sum(sizes)] if settings.has_global_budget else sizes
    return tuple(
        sum(settings.labels_due(cycle, size) for size in wholes)
        for cycle in range(settings.num_cycles)
    )


def check_lock(protocol: Protocol, lock: Lock, places: Places) -> None:
    """Refuse to measure something else than what a protocol's lock says.

    Raises
    ------
    BenchmarkError
        Everything that differs, by name.
    ConfigError, DatasetError, PartitionError
        As of `make_lock`.
    """
    try:
        here = make_lock(protocol, places)
    except AhfalError as error:
        raise BenchmarkError([f"the protocol cannot be run here: {error}"]) from error
    if problems := list(_differences(lock, here)):
        made = ", ".join(f"{name} {version}" for name, version in lock.versions.items())
        raise BenchmarkError(
            [*problems, f"the protocol was fixed with {made}; allowed is what gives the same"]
        )


def _differences(lock: Lock, here: Lock) -> Iterator[str]:
    for name, locked in lock.problems.items():
        found = here.problems[name]
        for what in ("data", "backbone"):
            expected, got = getattr(locked, what), getattr(found, what)
            if expected != got:
                kind = "the data set" if what == "data" else "the backbone"
                yield (
                    f"{name}: {kind} has the fingerprint {_short(got)}; allowed is "
                    f"{_short(expected)}"
                )
        if locked.test != found.test:
            yield f"{name}: {found.test} samples to test with; allowed is {locked.test}"
        for key, value in locked.settings.items():
            # A setting that came later, with a default, changes nothing that was there.
            if found.settings.get(key) != value:
                yield f"{name}: {key}={found.settings.get(key)!r}; allowed is {value!r}"
    for case, split in lock.by_case.items():
        here_split = here.by_case[case]
        if split.partition != here_split.partition:
            yield (
                f"{case}: the split has the fingerprint {_short(here_split.partition)}; allowed is "
                f"{_short(split.partition)}"
            )
        if split.labels != here_split.labels:
            yield f"{case}: labels {list(here_split.labels)}; allowed is {list(split.labels)}"


def _kept(protocol: Protocol, settings: Settings) -> dict[str, Scalar]:
    """Return the settings of a problem that no method, split, seed or machine changes."""
    of_splits = {key for values in protocol.splits.values() for key in values}
    left_out = NOT_IDENTITY | {*PLACES, STRATEGY, SEED} | of_splits | set(protocol.free)
    flat = settings.to_flat()
    return {
        key: value
        for key, value in flat.items()
        if key not in left_out and not key.startswith(f"{STRATEGY}.")
    }


def _short(digest: str) -> str:
    return f"{digest[:16]}…" if digest else "none"
