"""Reading a run's folder, also while the run goes on or after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ahfal_app.config import Settings, recorded_settings
from ahfal_app.errors import ConfigError, ReportError
from ahfal_app.results.records import CycleRecord, Record, RoundRecord, parse_record
from ahfal_app.storage.yaml_text import load_yaml

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
PARTITION = "partition.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"
MODEL = "model.safetensors"
CHECKPOINT = "checkpoint"

#: The file in each checkpoint's folder that says how far the run was.
CHECKPOINT_STATE = "state.json"


@dataclass(frozen=True)
class Metrics:
    """All records of a run in the order of their writing."""

    rounds: tuple[RoundRecord, ...]
    cycles: tuple[CycleRecord, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """Rounds and cycles together."""
        return (*self.rounds, *self.cycles)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds per phase over the whole run."""
        total: dict[str, float] = {}
        for record in self.records:
            for phase, seconds in record.seconds.items():
                total[phase] = total.get(phase, 0.0) + seconds
        return total

    @property
    def bytes_down(self) -> int:
        """Bytes sent to clients over the whole run."""
        return sum(record.bytes_down for record in self.records)

    @property
    def bytes_up(self) -> int:
        """Bytes sent by clients over the whole run."""
        return sum(record.bytes_up for record in self.records)

    @property
    def epsilon_spent(self) -> float:
        """What the histograms have cost of a client's privacy budget so far."""
        return max((cycle.epsilon_spent or 0.0 for cycle in self.cycles), default=0.0)

    @property
    def num_failures(self) -> int:
        """Number of messages answered by an error or not at all."""
        return sum(len(record.failed) for record in self.records)


@dataclass(frozen=True)
class Run:
    """What a run's folder holds, apart from models and checkpoints.

    `environment`, `partition` and `summary` are empty where their file is not there (yet).
    """

    folder: Path
    settings: Settings
    metrics: Metrics
    environment: Mapping[str, Any]
    partition: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def is_complete(self) -> bool:
        """Whether all planned cycles are recorded, or a rule has ended the run before."""
        cycles = self.metrics.cycles
        return len(cycles) >= self.settings.num_cycles or bool(cycles and cycles[-1].stopped_by)

    @property
    def stopped(self) -> str:
        """Why the run ended early; empty if it did not, or if nobody knows."""
        return str(self.summary.get("stopped", ""))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers where `environment.json` has no names."""
        names = self.environment.get("data", {}).get("class_names", ())
        if names:
            return tuple(str(name) for name in names)
        cycles = self.metrics.cycles
        return tuple(
            str(number) for number in range(len(cycles[0].class_accuracy) if cycles else 0)
        )


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises
    ------
    ReportError
        `config.yaml` or `metrics.jsonl` is missing, or a file cannot be read.
    """
    folder = Path(folder).absolute()
    run = Run(
        folder=folder,
        settings=_read_settings(folder / CONFIG),
        metrics=read_metrics(folder),
        environment=_read_json(folder / ENVIRONMENT),
        partition=_read_json(folder / PARTITION),
        summary=_read_json(folder / SUMMARY),
    )
    _check_classes(run)
    return run


def _check_classes(run: Run) -> None:
    num_classes = len(run.class_names)
    for cycle in run.metrics.cycles:
        for values in (cycle.class_accuracy, cycle.mean, cycle.deviation, cycle.low):
            if values is not None and len(values) != num_classes:
                raise ReportError(
                    f"{run.folder / METRICS}: cycle {cycle.cycle} has {len(values)} classes; "
                    f"allowed is {num_classes}"
                )


def read_metrics(folder: Path) -> Metrics:
    """Read `metrics.jsonl`; a last line torn by a crash is left out.

    Raises
    ------
    ReportError
        The file is missing, or a line other than a torn last one is not a record.
    """
    records = [record for record, _ in read_lines(Path(folder) / METRICS)]
    return Metrics(
        rounds=tuple(record for record in records if isinstance(record, RoundRecord)),
        cycles=tuple(record for record in records if isinstance(record, CycleRecord)),
    )


def read_lines(path: Path) -> list[tuple[Record, bytes]]:
    """Read the records of a `metrics.jsonl` and the lines they were parsed from."""
    # What follows the last newline was torn by a crash in the middle of a write.
    complete, _, _ = _read(path).rpartition(b"\n")
    lines = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            lines.append((parse_record(line), line))
        except ValidationError as error:
            raise ReportError(
                f"{path}, line {number}: not a record: {error.errors()[0]['msg']}"
            ) from error
    return lines


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; is {path.parent} the folder of a run?") from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror})") from error


def _read_settings(path: Path) -> Settings:
    try:
        values = load_yaml(_read(path).decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path}: allowed is a mapping of settings")
    try:
        return recorded_settings(values)
    except ConfigError as error:
        raise ReportError(f"{path}: {error}") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise ReportError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: allowed is a JSON object")
    return value
