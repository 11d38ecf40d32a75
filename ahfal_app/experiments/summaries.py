"""`summaries.jsonl`: a line for each run of a sweep that is done, with all that its report needs.

The runs' folders are large and name the machine; this file is neither, and can be committed. Where
a run's folder is not there, its line stands for it: the sweep does not do the run again, and the
report counts it. A run is known by its settings but for places on a machine, and by the code;
the data set and the backbone may lie elsewhere, and must be the same by fingerprint and hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahfal_app.code_version import code_hash
from ahfal_app.config import Settings, recorded_settings
from ahfal_app.errors import AhfalError, ConfigError, SweepError
from ahfal_app.experiments.files import NOT_IDENTITY, PlannedRun
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import provenances, with_provenances
from ahfal_app.results.reading import Metrics, Run
from ahfal_app.results.records import CycleRecord, Seconds
from ahfal_app.storage.files import append_bytes, write_bytes

SUMMARIES = "summaries.jsonl"

#: Their places differ from machine to machine; what is there is compared by its hash.
_BY_CONTENT = ("dataset", "backbone-weights")

#: Settings that say what is loaded: data sets and backbones of equal ones are equal.
LOADED_BY = (
    *("dataset", "classes", "image-column", "label-column", "vector-column", "image-size"),
    *("test-fraction", "max-train-samples", "max-test-samples"),
    *("backbone", "backbone-weights", "backbone-size", "backbone-crop"),
)


class RoundSums(BaseModel):
    """What all rounds of a run have taken together."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rounds: int = Field(ge=0)
    seconds: dict[str, Seconds]
    bytes_down: int = Field(ge=0)
    bytes_up: int = Field(ge=0)
    failures: int = Field(ge=0)


class Line(BaseModel):
    """A run that is done.

    `identity` hashes settings, without places on a machine, and code. `settings` are flat, and of
    files and folders they have the names alone. `environment` and `partition` are the run's files,
    `summary` is without what is the metrics' already, and `cycles` are the records of its cycles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    run: str = Field(min_length=1)
    identity: str = Field(pattern="^[0-9a-f]{64}$")
    settings: dict[str, Scalar]
    environment: dict[str, Any]
    partition: dict[str, Any]
    summary: dict[str, Any]
    cycles: tuple[CycleRecord, ...] = Field(min_length=1)
    rounds: RoundSums

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its data set."""
        return str(self.environment.get("data", {}).get("fingerprint") or "")

    @property
    def backbone(self) -> str:
        """Hash of its backbone; empty where it has none."""
        return str(self.environment.get("backbone", {}).get("sha256", ""))


@dataclass(frozen=True)
class SummedMetrics(Metrics):
    """Metrics of a run of whose rounds the sums alone are known."""

    sums: RoundSums

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds per phase over the whole run."""
        total = dict(self.sums.seconds)
        for phase, seconds in super().seconds.items():
            total[phase] = total.get(phase, 0.0) + seconds
        return total

    @property
    def bytes_down(self) -> int:
        """Bytes sent to clients over the whole run."""
        return self.sums.bytes_down + super().bytes_down

    @property
    def bytes_up(self) -> int:
        """Bytes sent by clients over the whole run."""
        return self.sums.bytes_up + super().bytes_up

    @property
    def num_failures(self) -> int:
        """Number of messages answered by an error or not at all."""
        return self.sums.failures + super().num_failures


class Summaries:
    """The lines of a sweep's folder.

    Parameters
    ----------
    out : Path
        The sweep's folder.

    Raises
    ------
    SweepError
        The file cannot be read, or a line that was written whole is none of a run.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / SUMMARIES
        self._lines = {line.run: line for line in _read(self._path)}
        self._same = _SameContent()

    def run(self, name: str) -> Run | None:
        """Return a run by its name, or None."""
        line = self._lines.get(name)
        return None if line is None else _as_run(line, self._path.parent)

    def standing_for(self, planned: Iterable[PlannedRun]) -> dict[str, str]:
        """Return which planned runs are done by these lines: names of planned runs, of lines."""
        found: dict[str, str] = {}
        for run in planned:
            candidates = self._by_identity.get(identity(run), [])
            for line in sorted(candidates, key=lambda line: line.run != run.name):
                if self._same(run, line):
                    found[run.name] = line.run
                    break
        return found

    def add(self, planned: PlannedRun, run: Run) -> None:
        """Write down a run that is done; it is on disk when this returns."""
        line = _line(planned, run)
        if self._lines.get(line.run) == line:
            return
        _cut_off_half(self._path)
        append_bytes(self._path, (line.model_dump_json() + "\n").encode())
        self._lines[line.run] = line
        self.__dict__.pop("_by_identity", None)

    def has_same_content(self, planned: PlannedRun, run: Run) -> bool:
        """Return whether a run that is done has had the data and the backbone that are here now.

        What is not here cannot be compared, and counts as the same.
        """
        return self._same(planned, _line(planned, run))

    def has(self, name: str) -> bool:
        """Return whether there is a line of a run of this name."""
        return name in self._lines

    def drop(self, names: Iterable[str]) -> None:
        """Forget runs that are to be done again."""
        gone = set(names) & self._lines.keys()
        if not gone:
            return
        self._lines = {name: line for name, line in self._lines.items() if name not in gone}
        self.__dict__.pop("_by_identity", None)
        text = "".join(line.model_dump_json() + "\n" for line in self._lines.values())
        write_bytes(self._path, text.encode())

    @cached_property
    def _by_identity(self) -> dict[str, list[Line]]:
        found: dict[str, list[Line]] = {}
        for line in self._lines.values():
            found.setdefault(line.identity, []).append(line)
        return found


def identity(planned: PlannedRun) -> str:
    """Return a hash of a run's settings, but for places on a machine, and of the code it uses."""
    flat = planned.settings.to_flat()
    code = with_provenances(code_hash(), provenances(flat))
    kept = {k: v for k, v in flat.items() if k not in NOT_IDENTITY and k not in _BY_CONTENT}
    return hashlib.sha256(json.dumps([kept, code], sort_keys=True).encode()).hexdigest()


class _SameContent:
    """Whether a planned run would load the data and the backbone that a line's run has had."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Scalar, ...], tuple[str, str] | None] = {}

    def __call__(self, planned: PlannedRun, line: Line) -> bool:
        flat = planned.settings.to_flat()
        if all(_is_same_name(flat[key], line.settings.get(key)) for key in _BY_CONTENT):
            return True
        if not any(Path(str(flat[key])).is_absolute() for key in _BY_CONTENT) and not any(
            _is_place(line.settings.get(key)) for key in _BY_CONTENT
        ):
            # Two names, and not the same.
            return False
        key = tuple(flat[name] for name in LOADED_BY)
        if key not in self._loaded:
            self._loaded[key] = _content(planned.settings)
        content = self._loaded[key]
        if content is None:
            # What is not here cannot be compared: it is the same if it lies in the same place.
            return planned.name == line.run
        return content == (line.fingerprint, line.backbone)


def _content(settings: Settings) -> tuple[str, str] | None:
    """Return the data set's fingerprint and the backbone's hash; None where one is not here."""
    from ahfal_app.training.resources import Resources

    try:
        loaded = Resources(settings)
        backbone = loaded.backbone
    except AhfalError:
        return None
    return loaded.dataset.fingerprint, backbone.digest if backbone is not None else ""


#: What a place on a machine is written down as, before its last name.
_PLACE = "…/"


def _is_place(value: object) -> bool:
    return isinstance(value, str) and value.startswith(_PLACE)


def _is_same_name(value: Scalar, told: object) -> bool:
    return value == told and not Path(str(value)).is_absolute()


def _without_places(value: Any) -> Any:
    """Return a value of JSON in which of each absolute path only the last name is left."""
    if isinstance(value, Mapping):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(each) for each in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return _PLACE + Path(value).name
    return value


def _line(planned: PlannedRun, run: Run) -> Line:
    kept = {key: each for key, each in run.settings.to_flat().items() if key not in NOT_IDENTITY}
    rounds = Metrics(run.metrics.rounds, ())
    return Line(
        run=planned.name,
        identity=identity(planned),
        settings=_without_places(kept),
        environment=_without_places(run.environment),
        partition=_without_places(run.partition),
        summary=_without_places(run.summary),
        cycles=run.metrics.cycles,
        rounds=RoundSums(
            rounds=len(rounds.rounds),
            seconds=rounds.seconds,
            bytes_down=rounds.bytes_down,
            bytes_up=rounds.bytes_up,
            failures=rounds.num_failures,
        ),
    )


def _as_run(line: Line, out: Path) -> Run:
    return Run(
        folder=out / line.run,
        settings=recorded_settings(line.settings),
        metrics=SummedMetrics((), line.cycles, line.rounds),
        environment=line.environment,
        partition=line.partition,
        summary=line.summary,
    )


def _read(path: Path) -> list[Line]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SweepError(f"{path}: cannot be read ({error.strerror})") from error
    # What follows the last newline was torn in the middle of a write.
    complete, _, _ = content.rpartition(b"\n")
    return [_parsed(path, number, text) for number, text in enumerate(complete.splitlines(), 1)]


def _parsed(path: Path, number: int, text: bytes) -> Line:
    try:
        line = Line.model_validate_json(text)
        recorded_settings(line.settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SweepError(
            f"{path}, line {number}: {where}: {first['msg']}; allowed are lines that this version "
            "of `ahfal sweep` has written: remove the file to do its runs again"
        ) from None
    except ConfigError as error:
        raise SweepError(f"{path}, line {number}: {error}") from None
    return line


def _cut_off_half(path: Path) -> None:
    """Cut off what a killed process has not finished."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rpartition(b"\n")[0]
    if content and not content.endswith(b"\n"):
        write_bytes(path, whole + b"\n" if whole else b"")
