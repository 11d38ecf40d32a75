"""The folder of a run: its name, and the only writer of its records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ahfal_app.config import Settings, expanded
from ahfal_app.errors import ConfigError
from ahfal_app.results.arrival_rows import merge_arrivals
from ahfal_app.results.reading import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    PARTITION,
    SUMMARY,
    read_lines,
    read_run,
)
from ahfal_app.results.records import CycleRecord, Record
from ahfal_app.results.selections import merge_selections
from ahfal_app.results.summary import build_summary
from ahfal_app.storage.files import append_bytes, write_bytes, write_json, write_text


def new_run_folder(settings: Settings) -> Path:
    """Create the folder of a new run.

    A given `name` is taken as it is. Without one the folder is called
    `<strategy>-<dataset>-seed<seed>`, with `-2`, `-3`, … appended where that is taken;
    two processes that start at the same time get different folders.

    Returns
    -------
    Path
        Absolute path of the empty folder.

    Raises
    ------
    ConfigError
        A folder with the given name exists already, or no folder can be made there.
    """
    parent = expanded("output-dir", settings.output_dir).absolute()
    if settings.name in {".", ".."}:
        raise ConfigError([f"name={settings.name!r}: allowed is the name of a folder"])
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if settings.name:
            return _explicit_folder(parent / settings.name)
        return _numbered_folder(parent, _default_name(settings))
    except OSError as error:
        raise ConfigError(
            [f"output-dir={settings.output_dir!r}: no folder can be made there ({error.strerror})"]
        ) from error


def free_run_name(settings: Settings) -> str:
    """Return the name that a new run's folder would get now, for a process that makes it later."""
    parent = expanded("output-dir", settings.output_dir).absolute()
    free = (name for name in _names(_default_name(settings)) if not (parent / name).exists())
    return settings.name or next(free)


def _explicit_folder(folder: Path) -> Path:
    try:
        folder.mkdir()
    except FileExistsError:
        raise ConfigError(
            [
                f"name={folder.name!r}: {folder} exists already; allowed is a new name, "
                f"or resume={str(folder)!r} to continue that run"
            ]
        ) from None
    return folder


def _numbered_folder(parent: Path, name: str) -> Path:
    for each in _names(name):
        try:
            (parent / each).mkdir()
        except FileExistsError:
            continue
        return parent / each
    raise AssertionError  # there is always another number


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _default_name(settings: Settings) -> str:
    dataset = Path(settings.dataset).name
    name = f"{settings.strategy}-{dataset}-seed{settings.seed}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")


class Recorder:
    """Writes a run's folder.

    Parameters
    ----------
    folder : Path
        The existing folder of a new or an interrupted run; what a crash left of a line in
        `metrics.jsonl` is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        self._metrics = self.folder / METRICS
        self._drop_torn_line()

    def start(
        self,
        settings: Settings,
        environment: Mapping[str, Any],
        partition: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what is known before the first round.

        It may be repeated once more is known; records that are there already stay.

        Parameters
        ----------
        settings : Settings
            All settings, resolved.
        environment : Mapping
            What `describe_environment` returns.
        partition : Mapping, optional
            What `describe_partition` returns; only where the server knows it (simulation).
        """
        write_text(self.folder / CONFIG, settings.to_yaml())
        write_json(self.folder / ENVIRONMENT, dict(environment))
        if partition is not None:
            write_json(self.folder / PARTITION, dict(partition))
        if not self._metrics.exists():
            write_bytes(self._metrics, b"")

    def record(self, record: Record) -> None:
        """Append one record; it is whole and on disk when this returns."""
        append_bytes(self._metrics, record.model_dump_json().encode() + b"\n")

    def truncate_after(self, cycle: int, round: int) -> list[Record]:
        """Drop all records after a round, to go on from there.

        Parameters
        ----------
        cycle : int
            Cycle of the last record to keep; only cycles before it keep their cycle record.
        round : int
            Last round of that cycle to keep; `truncate_after(cycle + 1, 0)` keeps all of
            `cycle` with its cycle record.

        Returns
        -------
        list[Record]
            The records that are kept.
        """
        lines = read_lines(self._metrics) if self._metrics.exists() else []
        kept = [(record, line) for record, line in lines if _is_until(record, cycle, round)]
        write_bytes(self._metrics, b"".join(line + b"\n" for _, line in kept))
        return [record for record, _ in kept]

    def finish(self, stopped: str = "") -> dict[str, Any]:
        """Merge the clients' selections, and what arrived, and write `summary.json`.

        Parameters
        ----------
        stopped : str
            Why the run ended early; empty if it did not.

        Returns
        -------
        dict
            What `summary.json` holds.
        """
        run = read_run(self.folder)
        merge_selections(self.folder, num_cycles=len(run.metrics.cycles))
        merge_arrivals(self.folder, run.settings, num_cycles=len(run.metrics.cycles))
        summary = build_summary(run, stopped)
        write_json(self.folder / SUMMARY, summary)
        return summary

    def _drop_torn_line(self) -> None:
        # What a crash left of a line would spoil the next one that is appended to it.
        if not self._metrics.exists():
            return
        content = self._metrics.read_bytes()
        if content and not content.endswith(b"\n"):
            write_bytes(self._metrics, content[: content.rfind(b"\n") + 1])


def _is_until(record: Record, cycle: int, round: int) -> bool:
    if isinstance(record, CycleRecord):
        return record.cycle < cycle
    return (record.cycle, record.round) <= (cycle, round)


def describe_partition(counts_KC: ArrayLike, fingerprint: str) -> dict[str, Any]:
    """Return what `partition.json` holds.

    Parameters
    ----------
    counts_KC : array_like, shape (clients, classes)
        Samples of each client and class, labelled or not.
    fingerprint : str
        `Partition.fingerprint`.
    """
    return {
        "fingerprint": fingerprint,
        "counts": np.asarray(counts_KC).astype(np.int64).tolist(),
    }
