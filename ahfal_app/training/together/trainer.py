"""Trains several clients of a process as one tensor program.

What each client sees and gets is what it would see and get alone, up to rounding: its own
order of samples, augmentation, momentum, learning rate and batch-norm statistics.

Shapes: T steps, K clients, k of them at a step, B samples of a padded batch, C classes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ahfal_app.data.device import downloaded, uploaded
from ahfal_app.errors import DeviceMemoryExhausted
from ahfal_app.models import Classifier
from ahfal_app.query import SampleLoss
from ahfal_app.training.local_updates.kcfu import BalancedSoftmax, CompensatoryLoss
from ahfal_app.training.penalties import part_of
from ahfal_app.training.sgd import (
    LocalUpdate,
    Recipe,
    TrainingResult,
    TrainingState,
    train_locally,
)
from ahfal_app.training.together.cuda_graphs import Replayed, Step
from ahfal_app.training.together.linear_heads import LinearHeadsStep
from ahfal_app.training.together.rewinding import Rewinding
from ahfal_app.training.together.schedule import (
    Batches,
    Schedule,
    by_number_of_steps,
    schedules,
)
from ahfal_app.training.together.separable import (
    StackedLoss,
    StackedProximal,
    can_train_together,
    kind_of_loss,
    proximal_mu,
)
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.steps import (
    Batch,
    ClientConstants,
    MixedBatch,
    Teacher,
    TogetherStep,
)
from ahfal_app.training.together.vectors import ready_vectors


class TogetherTrainer:
    """Carries out the updates of several clients together, round after round.

    One group at a time, whichever thread brings it.

    Parameters
    ----------
    graphs : bool
        Whether steps are recorded as CUDA graphs and replayed; only on a GPU.
    threads : int
        Processor threads that the clients have together; 0: as the caller has.
    """

    def __init__(self, graphs: bool, threads: int = 0) -> None:
        self._graphs = graphs
        self._threads = threads
        self._program: _Program | None = None
        # What the device has turned out to have room for.
        self._most: int | None = None
        self._lock = threading.Lock()

    def __call__(self, updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
        """Train the models of all updates in place; updates share images and recipe.

        A single update, and losses that cannot be stacked, are trained one after the other. Where
        the device has not enough memory for all, they are trained in groups of half as many, in
        this round and in all that follow.

        Raises
        ------
        DeviceMemoryExhausted
            The device has not enough memory for a single one.
        """
        device = updates[0].images.device
        with self._lock, _current(device):
            if not can_train_together(updates):
                return [_alone(update) for update in updates]
            order = by_number_of_steps(updates)
            results: dict[int, TrainingResult] = {}
            waiting = order
            while waiting:
                group = waiting[: _even_share(len(waiting), self._most)]
                done = self._tried([updates[position] for position in group])
                if done is not None:
                    results |= dict(zip(group, done, strict=True))
                    waiting = waiting[len(group) :]
            return [results[position] for position in range(len(updates))]

    def _tried(self, updates: Sequence[LocalUpdate]) -> list[TrainingResult] | None:
        """Train a group; None, and nothing has happened, where it needs too much memory."""
        rewinding = Rewinding(updates)
        try:
            if len(updates) == 1:
                return [_alone(updates[0])]
            with _on_threads(self._threads):
                return self._program_for(updates).run(updates)
        except torch.OutOfMemoryError as error:
            self._program = None
            if len(updates) == 1:
                raise DeviceMemoryExhausted(
                    "training one client needs more memory than the device has; a smaller "
                    "batch-size, or a device that nothing else uses, may do"
                ) from error
        rewinding.rewind()
        self._most = -(-len(updates) // 2)
        if updates[0].images.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _program_for(self, updates: Sequence[LocalUpdate]) -> _Program:
        """Return the program of the last group where it fits, with its recorded steps."""
        key = _key(updates)
        program = self._program
        # Groups that are as even as can be differ by one; a place that is left over is cheap.
        if program is None or program.key != key or program.copies - len(updates) not in (0, 1):
            self._program = None  # Frees the old one's memory first.
            program = self._program = _Program(updates, key, self._graphs)
        return program


@contextmanager
def _on_threads(threads: int) -> Iterator[None]:
    """Compute on that many processor threads; 0: on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one that this thread means where it names none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _even_share(waiting: int, most: int | None) -> int:
    """Return how many of those who wait are in the next of groups of nearly equal size."""
    if most is None:
        return waiting
    groups = -(-waiting // most)
    return -(-waiting // groups)


def _alone(update: LocalUpdate) -> TrainingResult:
    """Train one client, on the device of its images wherever its model is."""
    model, device = update.model, update.images.device
    if next(model.parameters()).device.type == device.type:
        return train_locally(update)
    near = copy.deepcopy(model).to(device)
    result = train_locally(replace(update, model=near))
    trained = near.state_dict()
    for target, source in zip(
        model.state_dict().values(), downloaded(list(trained.values())), strict=True
    ):
        target.copy_(source)
    return result


@dataclass(frozen=True)
class _Key:
    """What a program is made for."""

    network: type[Classifier]
    shapes: tuple[torch.Size, ...]
    recipe: Recipe
    images: int
    teacher_in_training_mode: bool | None
    loss: object
    proximal_mu: float


def _key(updates: Sequence[LocalUpdate]) -> _Key:
    first = updates[0]
    losses = [part_of(u.objective.penalty, CompensatoryLoss) for u in updates]
    modes = [loss.how.teacher == "train" for loss in losses if loss is not None]
    return _Key(
        type(first.model),
        tuple(value.shape for value in first.model.parameters()),
        first.recipe,
        id(first.images),
        modes[0] if modes else None,
        kind_of_loss(first.objective.loss),
        proximal_mu(first),
    )


class _Program:
    """Networks, constants and teacher at fixed places in memory, and the step on them."""

    def __init__(self, updates: Sequence[LocalUpdate], key: _Key, graphs: bool) -> None:
        first = updates[0]
        self.key, self.copies = key, len(updates)
        self._images, self._recipe = first.images, first.recipe
        device = self._images.device
        self._vectors = ready_vectors(updates)
        self._network = StackedNetwork(
            first.model, self.copies, device, ready=self._vectors is not None
        )
        zeros_KC = torch.zeros(
            (self.copies, first.model.head.out_features),
            device=device,
            dtype=self._images.scale_C.dtype,
        )
        loss = first.objective.loss
        self._constants = ClientConstants(
            zeros_KC,
            zeros_KC.clone(),
            StackedLoss(loss, self.copies, zeros_KC) if isinstance(loss, SampleLoss) else None,
            StackedProximal(key.proximal_mu, self._network) if key.proximal_mu else None,
        )
        self._teacher: Teacher | None = None
        if key.teacher_in_training_mode is not None:
            self._teacher = (
                StackedNetwork(first.model, self.copies, device)
                if key.teacher_in_training_mode
                else copy.deepcopy(first.model).to(device).eval()
            )
        step: Step = TogetherStep(
            self._network,
            self._recipe,
            self._images,
            self._constants,
            self._teacher,
            self._vectors,
        )
        if self._vectors is not None and first.model.is_head_alone:
            step = LinearHeadsStep(self._network, self._recipe, self._constants, self._vectors)
        self._step = Replayed(step, self._changed_by_steps()) if graphs else step

    def run(self, updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
        """Train updates that are sorted by their number of steps, as many as copies or fewer."""
        with torch.no_grad():
            self._load(updates)
            if self._vectors is not None:
                self._vectors.make(torch.cat([update.rows_N for update in updates]))
        # While the device works on an epoch, the next one is drawn.
        losses_K, sizes = [], []
        for schedule in schedules(updates):
            losses_K.append(self._trained(schedule))
            sizes.append(schedule.labelled.sizes_TK * schedule.last_epoch_TK)
        return self._results(updates, losses_K, sizes)

    def _trained(self, schedule: Schedule) -> Tensor:
        """Take the steps of a schedule; return the losses, on the device. Shape (T, K)."""
        device = self._images.device
        losses_TK = torch.zeros(
            schedule.learning_rates_TK.shape, dtype=torch.float64, device=device
        )
        near = schedule.to(device)
        rates_TK = near.learning_rates_TK
        for step, (count, batch, mixed) in enumerate(_inputs(near)):
            losses_k = self._step(rates_TK[step, :count], batch, mixed)
            losses_TK[step, :count] = losses_k
        return losses_TK

    def _load(self, updates: Sequence[LocalUpdate]) -> None:
        self._network.load([u.model.state_dict() for u in updates], [u.state for u in updates])
        losses = [update.objective.loss for update in updates]
        penalties = [part_of(update.objective.penalty, CompensatoryLoss) for update in updates]
        if self._constants.loss is not None:
            self._constants.loss.load(losses)
        if self._constants.proximal is not None:
            self._constants.proximal.load(updates)
        zeros_C = torch.zeros(self._constants.rarity_KC.shape[1])
        _fill(
            self._constants.log_counts_KC,
            [x.log_counts_C if isinstance(x, BalancedSoftmax) else zeros_C for x in losses],
        )
        _fill(
            self._constants.rarity_KC,
            [zeros_C if x is None else x.weights_C for x in penalties],
        )
        self._load_teachers(penalties, updates)

    def _load_teachers(
        self, penalties: Sequence[CompensatoryLoss | None], updates: Sequence[LocalUpdate]
    ) -> None:
        teachers = [None if penalty is None else penalty.teacher for penalty in penalties]
        present = [teacher for teacher in teachers if teacher is not None]
        if isinstance(self._teacher, StackedNetwork):
            # Who has none gets a network whose outputs do not count.
            models = zip(teachers, updates, strict=True)
            self._teacher.load([(teacher or u.model).state_dict() for teacher, u in models])
        elif self._teacher is not None:
            # All clients of a round have the same.
            self._teacher.load_state_dict(present[0].state_dict())

    def _changed_by_steps(self) -> list[Tensor]:
        stacks = [self._network, self._teacher]
        return [
            tensor
            for stack in stacks
            if isinstance(stack, StackedNetwork)
            for tensor in stack.changing
        ]

    def _results(
        self, updates: Sequence[LocalUpdate], losses: Sequence[Tensor], sizes: Sequence[Tensor]
    ) -> list[TrainingResult]:
        recipe = self._recipe
        epochs = [recipe.local_epochs + (u.state.epochs if u.state else 0) for u in updates]
        with torch.no_grad():
            states = self._network.save([u.model.state_dict() for u in updates], epochs)
        if not recipe.momentum:
            states = [TrainingState({}, done) for done in epochs]
        totals_K = (torch.cat(tuple(losses)).cpu() * torch.cat(tuple(sizes))).sum(dim=0).tolist()
        return [
            TrainingResult(len(update.rows_N), total / len(update.rows_N), state)
            for update, total, state in zip(updates, totals_K, states, strict=True)
        ]


def _fill(target_KC: Tensor, rows: Sequence[Tensor]) -> None:
    """Write the first rows of a tensor on the device, in one transfer."""
    rows_kC = torch.stack(tuple(rows)).to(target_KC.dtype)
    target_KC[: len(rows)].copy_(uploaded(rows_kC, target_KC.device))


def _inputs(schedule: Schedule) -> Iterator[tuple[int, Batch, MixedBatch | None]]:
    """Yield for each step how many clients take it, and with what, cut to what is needed."""
    labelled, pool, mixtures = schedule.labelled, schedule.pool, schedule.mixtures
    counts, widths = schedule.counts(), labelled.widths()
    pool_widths = pool.widths() if pool else widths
    smallest = [
        int(sizes_K[:count].min()) for sizes_K, count in zip(labelled.sizes_TK, counts, strict=True)
    ]
    for step, (count, width) in enumerate(zip(counts, widths, strict=True)):
        rows = _rows(labelled, step, count, width)
        batch = Batch(
            *rows,
            schedule.labels_TKB[step, :count, :width],
            None if smallest[step] == width else labelled.counting_TKB[step, :count, :width],
        )
        mixed = None
        if pool is not None and mixtures is not None:
            cut = step, slice(count), slice(pool_widths[step])
            mixed = MixedBatch(
                *_rows(pool, step, count, pool_widths[step]),
                mixtures.weight_TKB[cut],
                mixtures.partner_TKB[cut],
                pool.counting_TKB[cut],
            )
        yield count, batch, mixed


def _rows(
    batches: Batches, step: int, count: int, width: int
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the fields of `Rows` of a step."""
    cut = step, slice(count), slice(width)
    offsets_T2KB, flip_TKB = batches.offsets_T2KB, batches.flip_TKB
    views_TKB = batches.views_TKB
    return (
        batches.rows_TKB[cut],
        None if offsets_T2KB is None else offsets_T2KB[step, :, :count, :width],
        None if flip_TKB is None else flip_TKB[cut],
        None if views_TKB is None else views_TKB[cut],
    )
