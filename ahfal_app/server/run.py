"""One run from settings to report, on any grid: what the ServerApp and the CLI both call."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from safetensors import SafetensorError
from safetensors.numpy import load_file, save, save_file

from ahfal_app.config import Settings, too_few_for_secure_aggregation
from ahfal_app.config_sources import read_yaml
from ahfal_app.data.partition import Partition
from ahfal_app.errors import AhfalError, ConfigError, ResumeError
from ahfal_app.messages.arrays import held_record, own_arrays
from ahfal_app.messages.protocol import Order
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import FAMILIES, shared_code_hash
from ahfal_app.query.core.server_side import HeldOut
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.identity import mark
from ahfal_app.results.kept import kept_model
from ahfal_app.results.model_card import CARD, write_model_card
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import CHECKPOINT, ENVIRONMENT, MODEL, read_metrics, read_run
from ahfal_app.results.records import CycleRecord, RoundRecord
from ahfal_app.results.report import write_report
from ahfal_app.results.run_folder import Recorder, describe_partition, new_run_folder
from ahfal_app.results.stopping import cycle_results, purchase_before
from ahfal_app.server.aggregation import Aggregation
from ahfal_app.server.arrivals import KnownArrivals, simulated_arrivals
from ahfal_app.server.candidates import Candidates
from ahfal_app.server.checkpoint import (
    Arrays,
    Checkpoint,
    Position,
    ordered,
    read_checkpoint,
    write_checkpoint,
)
from ahfal_app.server.drift import ReferenceModels
from ahfal_app.server.events import Events, make_events
from ahfal_app.server.extension import RAISED, extended, making_up, on_resume, reopened
from ahfal_app.server.federation import Federation
from ahfal_app.server.initial_model import ModelFacts, initial_standardisation, with_initial
from ahfal_app.server.loop import FederatedActiveLearning, Hooks
from ahfal_app.server.membership import Membership
from ahfal_app.server.preflight import (
    check_clients,
    check_data,
    check_settings,
    labelled_whole,
    planned_labels,
    with_absolute_paths,
)
from ahfal_app.server.shared_budget import SharedBudget
from ahfal_app.server.standardising import keep_standardisation
from ahfal_app.server.strategy_side import StrategySide
from ahfal_app.server.watch import StatusKeeper
from ahfal_app.stop_set import Observation
from ahfal_app.stopping import CycleResult, make_rules, why_stopped
from ahfal_app.trackers import TrackedRun, Tracking, open_tracking
from ahfal_app.training.flat import FlatTensors
from ahfal_app.training.model_use import METADATA, ModelUse, describe_use
from ahfal_app.training.prediction import Evaluation, evaluate, predict
from ahfal_app.training.resources import Resources, computing_threads, resources

_CANDIDATES = "candidates"
_BUDGET = "budget.json"
_REFERENCES = "references"

_log = logging.getLogger(__name__)

#: Settings that a resumed run takes over if they are given anew: they do not change its result.
_ANEW_ON_RESUME = (
    "data_dir",
    "start_timeout",
    "round_timeout",
    "tracker",
    "stopping",
    "stopping_mode",
    "stop_set",
    "label_cost",
    "round_cost",
    "currency",
    "on_event",
    "on_event_after_hours",
)

#: Settings that may be given on resume; without effect, where they say where the run lies.
_FREE_ON_RESUME = frozenset(
    {"resume", "name", "output-dir", *RAISED, *(name.replace("_", "-") for name in _ANEW_ON_RESUME)}
)


@dataclass(frozen=True)
class Start:
    """Where a run begins: settings, folder, position and model; and what runs its clients.

    `at_once` clients, or batches of the evaluation, are computed at the same time.
    `extended_from` has the numbers of cycles that the run had before it was given more, `warning`
    what people should know of these.
    """

    settings: Settings
    loaded: Resources
    folder: Path
    checkpoint: Checkpoint
    engine: Mapping[str, object] = field(default_factory=dict)
    at_once: int = 1
    extended_from: tuple[int, ...] = ()
    warning: str = ""


def prepare(values: Mapping[str, object]) -> Start:
    """Check everything and open the run's folder; nothing is trained or bought yet.

    Raises
    ------
    ConfigError, ResumeError, CheckpointError
        The run cannot be started, or not be continued.
    """
    values = on_resume(values, _stored)
    settings = with_absolute_paths(check_settings(values))
    if settings.resume:
        return _resumed(settings)
    loaded, is_given = _loaded(settings)
    folder = new_run_folder(settings)
    resolved = {"name": folder.name, "output_dir": str(folder.parent), "model": loaded.model_name}
    settings = settings.model_copy(update=resolved)
    position = Position(secrets.token_hex(8), 0, 0)
    checkpoint = Checkpoint(position, _to_numpy(_fresh_arrays(loaded, settings, 0)))
    Recorder(folder).start(settings, _environment(loaded, settings, None))
    if is_given and settings.has_sites:
        keep_standardisation(folder, loaded.dataset.format)
    write_checkpoint(folder / CHECKPOINT, checkpoint)
    return Start(settings, loaded, folder, checkpoint)


def _loaded(settings: Settings) -> tuple[Resources, bool]:
    """Load the data, and tell whether an initial model says how they are standardised.

    Images are normalised as it says where there is no test set, whose own moments they have else.
    """
    loaded = check_data(settings)
    own = loaded.dataset.format
    if not settings.initial_model or (own.is_measured and not own.vectors):
        return loaded, False
    found = initial_standardisation(settings.initial_model, own, settings.standardise)
    if found is None:
        return loaded, False
    return resources(settings, replace(own, mean_C=found[0], std_C=found[1])), True


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
    lock = FileLock(start.folder / ".lock")
    try:
        with lock.acquire(blocking=False):
            return _execute(start, grid, progress)
    except Timeout:
        raise ResumeError(f"{start.folder}: another process is at this run") from None


def _execute(start: Start, grid: Grid, progress: Progress) -> Path:
    data = start.loaded.dataset.format
    if start.settings.has_sites and (data.vectors or not data.is_measured):
        # It will be standardised as this run's sites are, and as no other run's.
        start = replace(start, loaded=copy.copy(start.loaded))
    recorder = Recorder(start.folder)
    position = start.checkpoint.position
    before = _left(start.folder)
    # Before any client is asked to write there.
    mark(start.folder, position.run)
    history = recorder.truncate_after(position.cycle, position.round)
    for reason in start.checkpoint.skipped:
        progress.warn(f"a newer checkpoint cannot be used: {reason}")
    candidates = Candidates(start.folder / _CANDIDATES, start.settings, history)
    aggregation = Aggregation(
        start.settings, start.loaded.trainable_names, start.checkpoint.aggregation
    )
    dataset = start.loaded.dataset
    tracked = TrackedRun(position.run, start.folder, start.settings.rounds, dataset.class_names)
    tracking = open_tracking(
        start.settings.tracker,
        tracked,
        history,
        progress.warn,
        start.settings.parameters_of("tracker"),
    )
    timeout = start.settings.round_timeout
    # A message must outlive the slowest exchange, a site's labels any single message.
    federation = Federation(grid, timeout, time_to_live=timeout + 60.0)
    events = make_events(start.settings, position.run, start.folder, progress.warn)
    keeper = StatusKeeper(start.folder, position.run, federation, progress.warn, events.looked)
    known = KnownArrivals(start.loaded.global_counts_C)
    side = StrategySide(functools.partial(_held_out, start), start.checkpoint.policy)
    learning = FederatedActiveLearning(
        Order(
            start.settings,
            position.run,
            str(start.folder),
            shared_code_hash(start.settings.to_flat()),
            data=dataset.format if _is_format_told(start) else None,
            proximal_mu=aggregation.proximal_mu,
            backbone=_facts(start.loaded, start.settings).backbone,
        ),
        _hooks(
            start,
            recorder,
            progress,
            aggregation,
            tracking,
            candidates,
            keeper,
            events,
            known,
            side,
        ),
        progress,
        federation,
        aggregation,
        start.loaded.num_classes,
        position.cycle,
        position.round,
        start.checkpoint.bought,
        None if start.settings.has_sites else known.class_counts,
        SharedBudget(start.settings, start.folder / _BUDGET)
        if start.settings.has_global_budget
        else None,
        side,
    )
    if start.extended_from and position.round == start.settings.rounds:
        progress.note(
            f"the run goes on: {start.settings.num_cycles} cycles in place of "
            f"{start.extended_from[-1]}"
        )
    if start.warning:
        progress.warn(start.warning)
    arrays = held_record(start.checkpoint.arrays, start.loaded.layout)
    with events, keeper, tracking:
        try:
            with progress:
                last = _to_numpy(learning.run(arrays))
                final = candidates.chosen(last)
        except AhfalError as error:
            stopped = f"{type(error).__name__}: {error}"
            recorder.finish(stopped)
            tracking.finish(write_report(start.folder), stopped)
            raise
        metadata = _facts(start.loaded, start.settings).to_metadata(
            _use(start).model_dump(mode="json")
        )
        save_file(final, start.folder / MODEL, metadata)
        # People may have filled in the card of a run that had ended.
        now = (len(read_metrics(start.folder).cycles), _digest(final))
        if now == before and (start.folder / CARD).exists():
            progress.note(f"{CARD} stays as it is: neither cycle nor model is new")
        else:
            write_model_card(start.folder)
        recorder.finish()
        tracking.finish(write_report(start.folder))
        if start.settings.has_sites:
            learning.deliver(held_record(final), metadata[METADATA])
    return start.folder


def _left(folder: Path) -> tuple[int, str] | None:
    """Return how many cycles a run has come to its end with, and the digest of what it left.

    None where it never has, or where that cannot be read.
    """
    summary = read_run(folder).summary
    if not summary.get("complete") or summary.get("stopped"):
        return None
    try:
        return len(summary["accuracy_per_cycle"]), _digest(load_file(folder / MODEL))
    except (OSError, SafetensorError):
        return None


def _digest(arrays: Arrays) -> str:
    return hashlib.sha256(save(ordered(arrays))).hexdigest()


def _resumed(given: Settings) -> Start:
    folder = Path(given.resume)
    stored = _stored(given.resume)
    if stored.client_state == "memory":
        raise ResumeError(
            f"resume={given.resume!r}: its clients have lost labels, which client-state='memory' "
            "keeps no longer than a run lives; allowed is a run with client-state='disk'"
        )
    _refuse_changes(given, stored)
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    said = {name: getattr(given, name) for name in _ANEW_ON_RESUME if _was_said(given, name)}
    said["parameters"] = _parameters_on_resume(given, stored, said)
    flat = given.to_flat()
    raised = {key: flat[key] for key in RAISED if _was_said(given, key.replace("-", "_"))}
    settings = extended(stored, raised).model_copy(update=said)
    had = _extended_from(folder)
    if settings.num_cycles > stored.num_cycles:
        had = (*had, stored.num_cycles)
    checkpoint = reopened(checkpoint, settings, read_metrics(folder).cycles)
    loaded = _loaded(settings)[0]
    if not settings.has_sites:
        _refuse_other_data(folder, settings, loaded.dataset.fingerprint)
    return Start(
        settings,
        loaded,
        folder,
        checkpoint,
        extended_from=had,
        warning=making_up(checkpoint.position.cycle, stored, settings),
    )


def _parameters_on_resume(
    given: Settings, stored: Settings, said: Mapping[str, object]
) -> dict[str, Scalar]:
    """Return the parameters of components: of one that is chosen anew, those that it is given."""
    anew = tuple(f"{key}." for key in FAMILIES if key in said)
    kept = {key: value for key, value in stored.parameters.items() if not key.startswith(anew)}
    return kept | {key: value for key, value in given.parameters.items() if key.startswith(anew)}


def _stored(resume: str) -> Settings:
    """Return the settings of the run in a folder."""
    config = Path(resume) / "config.yaml"
    if not config.is_file():
        raise ResumeError(f"resume={resume!r}: allowed is the folder of a run")
    return check_settings(read_yaml(config))


def _refuse_other_data(folder: Path, settings: Settings, fingerprint: str) -> None:
    """Refuse data in which the rows that clients have labelled are other samples."""
    before = str(_kept_environment(folder).get("data", {}).get("fingerprint") or fingerprint)
    if before != fingerprint:
        raise ResumeError(
            f"dataset={settings.dataset!r}: its fingerprint is {fingerprint[:12]}, the run was "
            f"started with {before[:12]}; allowed on resume are the same data"
        )


def _extended_from(folder: Path) -> tuple[int, ...]:
    return tuple(_kept_environment(folder).get("extended_from", ()))


def _kept_environment(folder: Path) -> dict[str, Any]:
    environment = folder / ENVIRONMENT
    content: dict[str, Any] = json.loads(environment.read_text()) if environment.exists() else {}
    return content


def _refuse_changes(given: Settings, stored: Settings) -> None:
    """Refuse settings that are not what the run was started with."""
    before, defaults = stored.to_flat(), Settings().to_flat()
    names = {field.alias or name: name for name, field in Settings.model_fields.items()}
    problems = [
        f"{key}={value!r}: the run was started with {before.get(key)!r}; allowed on resume is the "
        "same or nothing"
        for key, value in given.to_flat().items()
        if key not in _FREE_ON_RESUME
        and value != before.get(key)
        and (value != defaults.get(key) or _was_said(given, names.get(key, key)))
    ]
    if problems:
        raise ConfigError(problems)


def _was_said(given: Settings, name: str) -> bool:
    """Tell whether a person has given a setting on resume."""
    return name in given.model_fields_set


def _hooks(
    start: Start,
    recorder: Recorder,
    progress: Progress,
    aggregation: Aggregation,
    tracking: Tracking,
    candidates: Candidates,
    keeper: StatusKeeper,
    events: Events,
    known: KnownArrivals,
    side: StrategySide,
) -> Hooks:
    run = start.checkpoint.position.run
    references = ReferenceModels(start.folder / _REFERENCES, start.settings)

    def tested(record: RoundRecord | CycleRecord, arrays: ArrayRecord) -> None:
        candidates.tested(record, lambda: _to_numpy(arrays))
        if isinstance(record, CycleRecord):
            references.tested(record.cycle, lambda: _to_numpy(arrays))

    def record(record: RoundRecord | CycleRecord) -> None:
        recorder.record(record)
        tracking.recorded(record)
        keeper.recorded(record)
        if isinstance(record, CycleRecord):
            events.cycle_done(record)
            events.drifted(record)

    def checkpoint(
        cycle: int, round_: int, arrays: ArrayRecord, bought: dict[int, int], is_end: bool
    ) -> None:
        position = Position(run, cycle, round_)
        state = Checkpoint(
            position, _to_numpy(arrays), bought, aggregation.state, side.state, is_end
        )
        write_checkpoint(start.folder / CHECKPOINT, state)
        candidates.committed()
        tracking.committed()

    def joined(membership: Membership) -> None:
        _joined(start, recorder, progress, membership, known)
        tracking.log_settings(membership.settings.to_tell())
        keeper.joined(membership)

    return Hooks(
        new_arrays=lambda cycle: _fresh_arrays(start.loaded, start.settings, cycle),
        evaluate=lambda arrays: _evaluate(start, arrays),
        record=record,
        checkpoint=checkpoint,
        joined=joined,
        standardised=lambda data: start.loaded.standardise(data.mean_C, data.std_C),
        stops=functools.partial(_stops, start),
        tested=tested,
        watch=keeper,
        arrived=known.arrived,
        arrivals=known.facts,
        reference=references.before,
    )


def _joined(
    start: Start,
    recorder: Recorder,
    progress: Progress,
    membership: Membership,
    known: KnownArrivals,
) -> None:
    """Check that clients and server have the same data, if any, and write down what is known.

    Raises
    ------
    ConfigError
        A client has other data, or another split of it, the budget buys nothing, or the clients
        are too few for secure aggregation.
    """
    loaded, settings = start.loaded, membership.settings
    if problems := too_few_for_secure_aggregation(settings):
        raise ConfigError(problems)
    sizes = {member.name: member.num_samples for member in membership.members.values()}
    check_clients(settings, list(sizes.values()))
    if not settings.has_sites:
        known.joined(simulated_arrivals(settings, resources(settings), start.folder))
    last = settings.num_cycles - 1
    sizes = {
        member.name: known.arrived(client, member.num_samples, last)
        for client, member in membership.members.items()
    }
    if smaller := labelled_whole(settings, sizes):
        progress.note(
            f"target-labels={settings.target_labels}: {len(smaller)} clients have fewer samples "
            f"and are labelled whole, such as {smaller[0]} with {sizes[smaller[0]]}"
        )
    devices = {member.device for member in membership.members.values()}
    if devices != {loaded.device.type}:
        progress.warn(
            f"clients compute on {', '.join(sorted(devices))}, the server on "
            f"{loaded.device.type}; Flower's simulation gives clients a GPU only by "
            "client-resources-num-gpus"
        )
    planned = planned_labels(settings, list(sizes.values()))
    if settings.has_sites:
        _record_start(start, recorder, settings, planned)
        return
    partition = resources(settings).partition
    _check_same_data(loaded, partition, membership)
    labels_N = loaded.dataset.train.labels_N
    counts = [
        np.bincount(labels_N[rows_N], minlength=loaded.num_classes).tolist()
        for rows_N in partition.indices
    ]
    described = describe_partition(counts, partition.fingerprint) | known.describe()
    _record_start(start, recorder, settings, planned, described)


def _check_same_data(loaded: Resources, partition: Partition, membership: Membership) -> None:
    """Refuse clients that hold another data set than the one that is split over all."""
    expected = (loaded.dataset.fingerprint, partition.fingerprint)
    others = [m for m in membership.members.values() if (m.data, m.partition) != expected]
    if others:
        raise ConfigError(
            [
                f"dataset={membership.settings.dataset!r}: {m.name} has data and "
                f"partition with the fingerprints {m.data[:12]} and {m.partition[:12]}, the "
                f"server {expected[0][:12]} and {expected[1][:12]}"
                for m in others
            ]
        )


def _record_start(
    start: Start,
    recorder: Recorder,
    settings: Settings,
    planned: int,
    partition: Mapping[str, object] | None = None,
) -> None:
    fingerprint = str(partition["fingerprint"]) if partition else None
    environment = _environment(start.loaded, settings, fingerprint)
    environment["labels"] = {"planned": planned}
    if start.extended_from:
        environment["extended_from"] = list(start.extended_from)
    recorder.start(settings, environment | {"engine": dict(start.engine)}, partition)


def _environment(
    loaded: Resources, settings: Settings, partition_fingerprint: str | None
) -> dict[str, object]:
    recipe = loaded.recipe(settings)
    environment = describe_environment(
        class_names=loaded.dataset.class_names,
        data_fingerprint=loaded.dataset.fingerprint or None,
        partition_fingerprint=partition_fingerprint,
        settings=settings.to_flat(),
    )
    environment["data"] |= {
        "name": loaded.dataset.name,
        "kind": "vectors" if loaded.dataset.holds_vectors else "images",
        "train": len(loaded.dataset.train),
        "test": len(loaded.dataset.test),
        "not_used": [asdict(line) for line in loaded.dataset.not_used],
        "notes": list(loaded.dataset.notes),
    }
    environment["resolved"] = {
        "model": loaded.model_name,
        "device": str(loaded.device),
        "precision": recipe.precision,
        "compile": recipe.compile,
        "augmentation": asdict(recipe.augmentation),
    }
    if loaded.backbone is not None:
        environment["backbone"] = {
            "name": loaded.backbone.name,
            "sha256": loaded.backbone.digest,
            "features": loaded.backbone.features,
            "views": settings.feature_views,
            "preprocessing": asdict(loaded.backbone.preprocessing),
            # Of what was computed by this process; the rest was there.
            "extracted": {
                split: {"images": images, "seconds": seconds}
                for split, (images, seconds) in loaded.extracted.items()
            },
        }
    return environment


def _fresh_arrays(loaded: Resources, settings: Settings, cycle: int) -> ArrayRecord:
    """Return the model that a cycle starts from: a fresh one, or the initial one that is set."""
    state = loaded.new_model(cycle).state_dict()
    fresh = {name: tensor.numpy() for name, tensor in state.items()}
    if settings.initial_model:
        fresh = with_initial(settings.initial_model, fresh, _facts(loaded, settings), _log.warning)
    return held_record(fresh, loaded.layout)


def _is_format_told(start: Start) -> bool:
    """Tell whether clients cannot know alone what their data are like."""
    settings = start.settings
    by_model = bool(settings.initial_model) and start.loaded.dataset.holds_vectors
    return settings.has_sites or by_model


def _facts(loaded: Resources, settings: Settings) -> ModelFacts:
    backbone, dataset = loaded.backbone, loaded.dataset
    return ModelFacts(
        dataset.class_names,
        backbone.digest if backbone is not None else "",
        dataset.holds_vectors,
        settings.parameters_of("model"),
    )


def _stops(start: Start, labels: int, evaluation: Evaluation, observed: Observation | None) -> str:
    """Return why the run ends after a cycle that was just tested; empty where it goes on."""
    settings, tests = start.settings, evaluation.sums.num_samples
    before = read_metrics(start.folder).cycles
    # At the sites each cycle may be tested with more samples than the one before.
    sizes = [each.tests[0].samples if each.tests else tests for each in before]
    right = int(evaluation.confusion_CC.trace())
    last = CycleResult(labels, right, tests, observed, *purchase_before(before))
    history = [*cycle_results(before, sizes), last]
    rules = make_rules(settings.stopping, settings.parameters_of("stopping"))
    return why_stopped(rules, settings.stopping_mode, history)


def _use(start: Start) -> ModelUse:
    kept = kept_model(read_metrics(start.folder), start.settings)
    return describe_use(start.loaded, start.settings, kept)


def _evaluate(start: Start, arrays: ArrayRecord) -> Evaluation:
    loaded = start.loaded
    torch.set_num_threads(computing_threads(start.settings))
    model = loaded.model_with(FlatTensors.copy_of(own_arrays(arrays)))
    at_once = start.at_once if loaded.device.type == "cpu" else 1
    return evaluate(model, loaded.test_images, loaded.num_classes, at_once)


def _held_out(start: Start, arrays: ArrayRecord) -> HeldOut | None:
    """Return what a model makes of the held-out test samples, if there are any."""
    loaded = start.loaded
    images = loaded.held_out_images
    if images is None:
        return None
    torch.set_num_threads(computing_threads(start.settings))
    model = loaded.model_with(FlatTensors.copy_of(own_arrays(arrays)))
    at_once = start.at_once if loaded.device.type == "cpu" else 1
    logits_MC = predict(model, images, torch.arange(len(images)), at_once=at_once).logits_NC
    return HeldOut(logits_MC.float().cpu().numpy(), images.labels_N.cpu().numpy())


def _to_numpy(arrays: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in arrays.items()}
