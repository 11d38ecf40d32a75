"""One run from settings to report, on any grid: what the ServerApp and the CLI both call."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from safetensors import SafetensorError
from safetensors.numpy import load_file, save, save_file

from ahfal_app.config import Settings, too_few_for_secure_aggregation
from ahfal_app.data.partition import Partition
from ahfal_app.errors import AhfalError, ConfigError, ResumeError
from ahfal_app.messages.arrays import held_record, own_arrays
from ahfal_app.messages.protocol import Order
from ahfal_app.plugins import shared_code_hash
from ahfal_app.query.core.server_side import HeldOut
from ahfal_app.results.arrivals import statistics_warning
from ahfal_app.results.identity import mark
from ahfal_app.results.kept import kept_model
from ahfal_app.results.model_card import CARD, write_model_card
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import CHECKPOINT, MODEL, read_metrics, read_run
from ahfal_app.results.records import CycleRecord, RoundRecord
from ahfal_app.results.report import write_report
from ahfal_app.results.run_folder import Recorder, describe_partition
from ahfal_app.results.stopping import cycle_results, purchase_before
from ahfal_app.server.aggregation import Aggregation
from ahfal_app.server.arrivals import KnownArrivals, simulated_arrivals
from ahfal_app.server.candidates import Candidates
from ahfal_app.server.checkpoint import (
    Arrays,
    Checkpoint,
    Position,
    ordered,
    write_checkpoint,
)
from ahfal_app.server.drift import ReferenceModels
from ahfal_app.server.events import Events, make_events
from ahfal_app.server.federation import Federation
from ahfal_app.server.loop import FederatedActiveLearning, Hooks
from ahfal_app.server.membership import Membership
from ahfal_app.server.preflight import (
    check_clients,
    labelled_whole,
    planned_labels,
)
from ahfal_app.server.shared_budget import SharedBudget
from ahfal_app.server.start import Start, environment_of, fresh_arrays, model_facts, to_numpy
from ahfal_app.server.strategy_side import StrategySide
from ahfal_app.server.watch import StatusKeeper
from ahfal_app.stop_set import Observation
from ahfal_app.stopping import CycleResult, make_rules, why_stopped
from ahfal_app.trackers import TrackedRun, Tracking, open_tracking
from ahfal_app.training.choices import computing_threads
from ahfal_app.training.flat import FlatTensors
from ahfal_app.training.model_use import METADATA, ModelUse, describe_use
from ahfal_app.training.prediction import Evaluation, evaluate, predict
from ahfal_app.training.resources import Resources, resources

_CANDIDATES = "candidates"
_BUDGET = "budget.json"
_REFERENCES = "references"

_log = logging.getLogger(__name__)


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
            backbone=model_facts(start.loaded, start.settings).backbone,
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
                last = to_numpy(learning.run(arrays))
                final = candidates.chosen(last)
        except AhfalError as error:
            stopped = f"{type(error).__name__}: {error}"
            recorder.finish(stopped)
            tracking.finish(write_report(start.folder), stopped)
            raise
        metadata = model_facts(start.loaded, start.settings).to_metadata(
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
        candidates.tested(record, lambda: to_numpy(arrays))
        if isinstance(record, CycleRecord):
            references.tested(record.cycle, lambda: to_numpy(arrays))

    def record(record: RoundRecord | CycleRecord) -> None:
        recorder.record(record)
        tracking.recorded(record)
        keeper.recorded(record)
        if isinstance(record, CycleRecord):
            events.cycle_done(record)
            events.drifted(record)
            if warning := statistics_warning(record, start.settings):
                progress.warn(warning)
                events.doubted(record, warning)

    def checkpoint(
        cycle: int, round_: int, arrays: ArrayRecord, bought: dict[int, int], is_end: bool
    ) -> None:
        position = Position(run, cycle, round_)
        state = Checkpoint(
            position, to_numpy(arrays), bought, aggregation.state, side.state, is_end
        )
        write_checkpoint(start.folder / CHECKPOINT, state)
        candidates.committed()
        tracking.committed()

    def joined(membership: Membership) -> None:
        _joined(start, recorder, progress, membership, known)
        tracking.log_settings(membership.settings.to_tell())
        keeper.joined(membership)

    return Hooks(
        new_arrays=lambda cycle: fresh_arrays(start.loaded, start.settings, cycle),
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
            f"{settings.target_key}={settings.to_flat()[settings.target_key]}: {len(smaller)} "
            f"clients have fewer samples and are labelled whole, such as {smaller[0]} with "
            f"{sizes[smaller[0]]}"
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
    environment = environment_of(start.loaded, settings, fingerprint)
    environment["labels"] = {"planned": planned}
    if start.extended_from:
        environment["extended_from"] = list(start.extended_from)
    recorder.start(settings, environment | {"engine": dict(start.engine)}, partition)


def _is_format_told(start: Start) -> bool:
    """Tell whether clients cannot know alone what their data are like."""
    settings = start.settings
    by_model = bool(settings.initial_model) and start.loaded.dataset.holds_vectors
    return settings.has_sites or by_model


def _stops(start: Start, labels: int, evaluation: Evaluation, observed: Observation | None) -> str:
    """Return why the run ends after a cycle that was just tested; empty where it goes on."""
    settings, tests = start.settings, evaluation.sums.num_samples
    rules = make_rules(settings.stopping, settings.parameters_of("stopping"))
    if not rules:
        return ""  # To read what there was before would take longer with each cycle.
    before = read_metrics(start.folder).cycles
    # At the sites each cycle may be tested with more samples than the one before.
    sizes = [each.tests[0].samples if each.tests else tests for each in before]
    right = int(evaluation.confusion_CC.trace())
    growth = settings.purchase_growth(len(before))
    last = CycleResult(labels, right, tests, observed, *purchase_before(before), growth)
    history = [*cycle_results(before, sizes, settings), last]
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
