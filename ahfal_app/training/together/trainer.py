"""Trains several clients of a process as one tensor program.

What each client sees and gets is what it would see and get alone, up to rounding: its own
order of samples, augmentation, momentum, learning rate and batch-norm statistics.

Shapes: T steps, K clients, k of them at a step, B samples of a padded batch, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.errors import DeviceMemoryExhausted
from ahfal_app.models import Classifier
from ahfal_app.training.local_updates.kcfu import BalancedSoftmax, CompensatoryLoss
from ahfal_app.training.sgd import (
    LocalUpdate,
    Recipe,
    TrainingResult,
    TrainingState,
    train_locally,
)
from ahfal_app.training.together.cuda_graphs import Replayed, Step
from ahfal_app.training.together.schedule import (
    Batches,
    Schedule,
    by_number_of_steps,
    make_schedule,
)
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.steps import (
    Batch,
    ClientConstants,
    MixedBatch,
    Teacher,
    TogetherStep,
)


def can_train_together(updates: Sequence[LocalUpdate]) -> bool:
    """Return whether these updates have losses that are known to be separable by client.

    Nor can those be trained together whose epochs somebody watches.
    """
    return all(
        update.after_epoch is None
        and (
            update.objective.loss is cross_entropy
            or isinstance(update.objective.loss, BalancedSoftmax)
        )
        and (
            update.objective.penalty is None
            or isinstance(update.objective.penalty, CompensatoryLoss)
        )
        for update in updates
    )


class TogetherTrainer:
    """Carries out the updates of several clients together, round after round.

    Parameters
    ----------
    graphs : bool
        Whether steps are recorded as CUDA graphs and replayed; only on a GPU.
    """

    def __init__(self, graphs: bool) -> None:
        self._graphs = graphs
        self._program: _Program | None = None

    def __call__(self, updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
        """Train the models of all updates in place; updates share images and recipe.

        A single update, and losses that cannot be stacked, are trained one after the other.

        Raises
        ------
        DeviceMemoryExhausted
            The device has not enough memory for all of them.
        """
        if len(updates) == 1 or not can_train_together(updates):
            return [train_locally(update) for update in updates]
        try:
            return self._train(updates)
        except torch.OutOfMemoryError as error:
            self._program = None
            raise DeviceMemoryExhausted(
                f"{len(updates)} clients that train together need more memory than the device has; "
                "client-batching=never trains them one after the other"
            ) from error

    def _train(self, updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
        order = by_number_of_steps(updates)
        sorted_updates = [updates[position] for position in order]
        schedule = make_schedule(sorted_updates)
        program = self._program_for(sorted_updates)
        results = program.run(sorted_updates, schedule)
        by_position = dict(zip(order, results, strict=True))
        return [by_position[position] for position in range(len(updates))]

    def _program_for(self, updates: Sequence[LocalUpdate]) -> _Program:
        """Return the program of the last round where it fits, with its recorded steps."""
        key = _key(updates)
        if self._program is None or self._program.key != key:
            self._program = None  # Frees the old one's memory first.
            self._program = _Program(updates, key, self._graphs)
        return self._program


@dataclass(frozen=True)
class _Key:
    """What a program is made for."""

    network: type[Classifier]
    shapes: tuple[torch.Size, ...]
    copies: int
    recipe: Recipe
    images: int
    teacher_in_training_mode: bool | None


def _key(updates: Sequence[LocalUpdate]) -> _Key:
    first = updates[0]
    losses = [u.objective.penalty for u in updates]
    modes = [loss.how.teacher == "train" for loss in losses if isinstance(loss, CompensatoryLoss)]
    return _Key(
        type(first.model),
        tuple(value.shape for value in first.model.parameters()),
        len(updates),
        first.recipe,
        id(first.images),
        modes[0] if modes else None,
    )


class _Program:
    """Networks, constants and teacher at fixed places in memory, and the step on them."""

    def __init__(self, updates: Sequence[LocalUpdate], key: _Key, graphs: bool) -> None:
        first = updates[0]
        self.key = key
        self._images, self._recipe = first.images, first.recipe
        self._network = StackedNetwork(first.model, len(updates))
        shape = (len(updates), first.model.head.out_features)
        zeros_KC = torch.zeros(shape, device=self._images.device, dtype=self._images.scale_C.dtype)
        self._constants = ClientConstants(zeros_KC, zeros_KC.clone())
        self._teacher: Teacher | None = None
        if key.teacher_in_training_mode is not None:
            self._teacher = (
                StackedNetwork(first.model, len(updates))
                if key.teacher_in_training_mode
                else copy.deepcopy(first.model).eval()
            )
        scale_C, shift_C = self._images.scale_C, self._images.shift_C
        step = TogetherStep(
            self._network, self._recipe, scale_C, shift_C, self._constants, self._teacher
        )
        self._step: Step = Replayed(step, self._changed_by_steps()) if graphs else step

    def run(self, updates: Sequence[LocalUpdate], schedule: Schedule) -> list[TrainingResult]:
        """Train all updates, sorted as the schedule is."""
        with torch.no_grad():
            self._load(updates)
        device = self._images.device
        inputs = _Inputs(schedule.to(device), self._images, self._recipe.augmentation)
        losses_TK = torch.zeros(
            schedule.learning_rates_TK.shape, dtype=torch.float64, device=device
        )
        for step in range(schedule.num_steps):
            count = schedule.clients_at(step)
            rates_k = inputs.schedule.learning_rates_TK[step, :count]
            losses_k = self._step(rates_k, inputs.labelled(step, count), inputs.pool(step, count))
            losses_TK[step, :count] = losses_k
        return self._results(updates, schedule, losses_TK.cpu())

    def _load(self, updates: Sequence[LocalUpdate]) -> None:
        for position, update in enumerate(updates):
            state = update.state
            self._network.load(
                position, update.model.state_dict(), state.momentum if state else None
            )
            loss, penalty = update.objective.loss, update.objective.penalty
            shift_C = self._constants.log_counts_KC[position]
            if isinstance(loss, BalancedSoftmax):
                shift_C.copy_(loss.log_counts_C)
            else:
                shift_C.zero_()
            if isinstance(penalty, CompensatoryLoss):
                self._constants.rarity_KC[position].copy_(penalty.weights_C)
                self._load_teacher(position, penalty.teacher)

    def _load_teacher(self, position: int, teacher: Classifier) -> None:
        if isinstance(self._teacher, StackedNetwork):
            self._teacher.load(position, teacher.state_dict(), None)
        elif self._teacher is not None:
            # All clients of a round have the same.
            self._teacher.load_state_dict(teacher.state_dict())

    def _changed_by_steps(self) -> list[Tensor]:
        stacks = [self._network, self._teacher]
        return [
            tensor
            for stack in stacks
            if isinstance(stack, StackedNetwork)
            for tensor in (stack.weights_KP, stack.momentum_KP, *stack.buffers.values())
        ]

    def _results(
        self, updates: Sequence[LocalUpdate], schedule: Schedule, losses_TK: Tensor
    ) -> list[TrainingResult]:
        counted_TK = schedule.labelled.sizes_TK * schedule.last_epoch_TK
        totals_K = (losses_TK * counted_TK).sum(dim=0).tolist()
        results = []
        for position, update in enumerate(updates):
            momentum = self._network.save(position, update.model.state_dict())
            epochs = self._recipe.local_epochs + (update.state.epochs if update.state else 0)
            state = TrainingState(momentum if self._recipe.momentum else {}, epochs)
            num_examples = len(update.rows_N)
            results.append(TrainingResult(num_examples, totals_K[position] / num_examples, state))
        return results


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Makes the batches of a schedule on the device."""

    schedule: Schedule
    images: DeviceImages
    augmentation: Augmentation

    def labelled(self, step: int, count: int) -> Batch:
        """Return the labelled samples of the first clients."""
        batches = self.schedule.labelled
        counting_kB = batches.counting_TKB[step, :count]
        return Batch(
            self._images(batches, step, count),
            self.schedule.labels_TKB[step, :count],
            None if batches.are_full(step, count) else counting_kB,
        )

    def pool(self, step: int, count: int) -> MixedBatch | None:
        """Return the unlabelled samples of the first clients, in KCFU."""
        batches, mixtures = self.schedule.pool, self.schedule.mixtures
        if batches is None or mixtures is None:
            return None
        return MixedBatch(
            self._images(batches, step, count),
            mixtures.weight_TKB[step, :count],
            mixtures.partner_TKB[step, :count],
            batches.counting_TKB[step, :count],
        )

    def _images(self, batches: Batches, step: int, count: int) -> Tensor:
        rows_kB = batches.rows_TKB[step, :count]
        draws = batches.draws_at(step, count)
        images_BHWC = self.images.transformed(rows_kB.flatten(), self.augmentation, draws)
        return images_BHWC.view(*rows_kB.shape, *images_BHWC.shape[1:])
