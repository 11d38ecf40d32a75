"""One run from settings to report, on any grid: what the ServerApp and the CLI both call."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid
from safetensors.numpy import save_file

from ahfal_app.checkpoint import Arrays, Checkpoint, Position, read_checkpoint, write_checkpoint
from ahfal_app.code_version import code_hash
from ahfal_app.config import Settings
from ahfal_app.errors import AhfalError, ConfigError, ResumeError
from ahfal_app.joining import Membership
from ahfal_app.preflight import check_data, check_settings, with_absolute_paths
from ahfal_app.protocol import Order
from ahfal_app.resources import Resources, resources
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.progress import Progress
from ahfal_app.results.report import write_report
from ahfal_app.results.run_folder import Recorder, describe_partition, new_run_folder
from ahfal_app.strategy import FederatedActiveLearning, Hooks
from ahfal_app.training import Evaluation, evaluate

_CHECKPOINTS = "checkpoint"
_MODEL = "model.safetensors"

#: Settings that a resumed run may be given anew, since they do not change its result.
_FREE_ON_RESUME = frozenset(
    {"resume", "name", "output-dir", "data-dir", "start-timeout", "round-timeout"}
)


@dataclass(frozen=True)
class Start:
    """Where a run begins: settings, folder, position and model."""

    settings: Settings
    loaded: Resources
    folder: Path
    position: Position
    arrays: ArrayRecord


def prepare(values: Mapping[str, object]) -> Start:
    """Check everything and open the run's folder; nothing is trained or bought yet.

    Raises
    ------
    ConfigError, ResumeError, CheckpointError
        The run cannot be started, or not be continued.
    """
    settings = with_absolute_paths(check_settings(values))
    if settings.resume:
        return _resumed(settings)
    loaded = check_data(settings)
    folder = new_run_folder(settings)
    settings = settings.model_copy(update={"name": folder.name, "output_dir": str(folder.parent)})
    arrays = _fresh_arrays(loaded, 0)
    position = Position(secrets.token_hex(8), 0, 0)
    Recorder(folder).start(settings, _environment(loaded, None))
    _write_checkpoint(folder, position, arrays)
    return Start(settings, loaded, folder, position, arrays)


def execute(start: Start, grid: Grid, progress: Progress) -> Path:
    """Run what is left of a run, and write its report.

    Returns
    -------
    Path
        The run's folder.

    Raises
    ------
    AhfalError
        The run had to stop; the folder holds what there is, and `resume` goes on from it.
    """
    recorder = Recorder(start.folder)
    recorder.truncate_after(start.position.cycle, start.position.round)
    settings = start.settings
    order = Order(settings, start.position.run, str(start.folder), code_hash())
    strategy = FederatedActiveLearning(
        order,
        _hooks(start, recorder),
        progress,
        start.position.cycle,
        start.position.round,
    )
    try:
        with progress:
            result = strategy.start(grid, start.arrays, timeout=settings.round_timeout)
    except AhfalError as error:
        recorder.finish(stopped=f"{type(error).__name__}: {error}")
        write_report(start.folder)
        raise
    arrays = result.arrays if len(result.arrays) else start.arrays
    save_file(_to_numpy(arrays), start.folder / _MODEL)
    recorder.finish()
    write_report(start.folder)
    return start.folder


def _resumed(given: Settings) -> Start:
    folder = Path(given.resume)
    config = folder / "config.yaml"
    if not config.is_file():
        raise ResumeError(f"resume={given.resume!r}: allowed is the folder of a run")
    stored = check_settings(yaml.safe_load(config.read_text()))
    _refuse_changes(given, stored)
    checkpoint = read_checkpoint(folder / _CHECKPOINTS)
    free = {"data_dir", "start_timeout", "round_timeout"}
    update = {name: getattr(given, name) for name in free if name in given.model_fields_set}
    settings = stored.model_copy(update=update)
    arrays = ArrayRecord({name: Array(value) for name, value in checkpoint.arrays.items()})
    return Start(settings, check_data(settings), folder, checkpoint.position, arrays)


def _refuse_changes(given: Settings, stored: Settings) -> None:
    """Refuse settings that are neither the default nor what the run was started with."""
    defaults = Settings().to_flat()
    before = stored.to_flat()
    problems = [
        f"{key}={value!r}: the run was started with {before.get(key)!r}; allowed on resume is the "
        "same or nothing"
        for key, value in given.to_flat().items()
        if key not in _FREE_ON_RESUME and value != before.get(key) and value != defaults.get(key)
    ]
    if problems:
        raise ConfigError(problems)


def _hooks(start: Start, recorder: Recorder) -> Hooks:
    def checkpoint(cycle: int, round_: int, arrays: ArrayRecord) -> None:
        _write_checkpoint(start.folder, Position(start.position.run, cycle, round_), arrays)

    def joined(membership: Membership) -> None:
        _describe_partition(start, recorder, membership)

    return Hooks(
        new_arrays=lambda cycle: _fresh_arrays(start.loaded, cycle),
        evaluate=lambda arrays: _evaluate(start.loaded, arrays),
        record=recorder.record,
        checkpoint=checkpoint,
        joined=joined,
    )


def _describe_partition(start: Start, recorder: Recorder, membership: Membership) -> None:
    """Write the resolved settings and the partition, once the clients are known.

    Raises
    ------
    ConfigError
        The clients have other data than the server.
    """
    loaded = start.loaded
    if membership.data_fingerprint != loaded.dataset.fingerprint:
        raise ConfigError(
            [
                f"dataset={start.settings.dataset!r}: the clients' data has the fingerprint "
                f"{membership.data_fingerprint[:12]}, the server's "
                f"{loaded.dataset.fingerprint[:12]}"
            ]
        )
    labels_N = loaded.dataset.train.labels_N
    partition = resources(membership.settings).partition
    counts = [
        np.bincount(labels_N[rows_N], minlength=loaded.num_classes).tolist()
        for rows_N in partition.indices
    ]
    recorder.start(
        membership.settings,
        _environment(loaded, membership.partition_fingerprint),
        describe_partition(counts, membership.partition_fingerprint),
    )


def _environment(loaded: Resources, partition_fingerprint: str | None) -> dict[str, object]:
    return describe_environment(
        class_names=loaded.dataset.class_names,
        data_fingerprint=loaded.dataset.fingerprint,
        partition_fingerprint=partition_fingerprint,
    )


def _fresh_arrays(loaded: Resources, cycle: int) -> ArrayRecord:
    return ArrayRecord(loaded.new_model(cycle).state_dict())


def _evaluate(loaded: Resources, arrays: ArrayRecord) -> Evaluation:
    model = loaded.model()
    model.load_state_dict(arrays.to_torch_state_dict())
    return evaluate(model, loaded.test_images, loaded.num_classes)


def _to_numpy(arrays: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in arrays.items()}


def _write_checkpoint(folder: Path, position: Position, arrays: ArrayRecord) -> None:
    write_checkpoint(folder / _CHECKPOINTS, Checkpoint(position, _to_numpy(arrays)))
