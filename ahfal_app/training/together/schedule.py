"""What several clients see at each step, drawn as each of them would draw it alone.

Batches are padded to one size by repeating a row; sizes tell what counts.

Shapes: T steps, K clients, B samples of a padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import AugmentationDraws, draw_augmentation
from ahfal_app.training.local_updates.kcfu import CompensatoryLoss
from ahfal_app.training.sgd import LocalUpdate


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of all clients and steps; clients that have no step left have size 0.

    Attributes
    ----------
    rows_TKB : Tensor
        Rows of the split, int64.
    sizes_TK : Tensor
        Samples that count, the first ones of a batch, int64, on the CPU.
    counting_TKB : Tensor
        Which samples these are, bool.
    offsets_TK2B, flip_TKB : Tensor | None
        The draws of the augmentation, int64 and bool.
    """

    rows_TKB: Tensor
    sizes_TK: Tensor
    counting_TKB: Tensor
    offsets_TK2B: Tensor | None
    flip_TKB: Tensor | None

    def are_full(self, step: int, clients: int) -> bool:
        """Return whether all samples of a step count, for the first clients."""
        return bool((self.sizes_TK[step, :clients] == self.rows_TKB.shape[2]).all())

    def draws_at(self, step: int, clients: int) -> AugmentationDraws:
        """Return the draws of a step for the first clients, flattened to one batch."""
        offsets = flip = None
        if self.offsets_TK2B is not None:
            offsets = self.offsets_TK2B[step, :clients].transpose(0, 1).flatten(1)
        if self.flip_TKB is not None:
            flip = self.flip_TKB[step, :clients].flatten()
        return AugmentationDraws(offsets, flip)

    def to(self, device: torch.device) -> Batches:
        """Return a copy on a device, but for the sizes, which stay on the CPU."""
        return Batches(
            self.rows_TKB.to(device),
            self.sizes_TK,
            self.counting_TKB.to(device),
            None if self.offsets_TK2B is None else self.offsets_TK2B.to(device),
            None if self.flip_TKB is None else self.flip_TKB.to(device),
        )


@dataclass(frozen=True, eq=False)
class Mixtures:
    """How the images of `Batches` are mixed in KCFU.

    Attributes
    ----------
    weight_TKB : Tensor
        Share of the image itself, float32.
    partner_TKB : Tensor
        Position in the batch of the other image, int64.
    """

    weight_TKB: Tensor
    partner_TKB: Tensor

    def to(self, device: torch.device) -> Mixtures:
        """Return a copy on a device."""
        return Mixtures(self.weight_TKB.to(device), self.partner_TKB.to(device))


@dataclass(frozen=True, eq=False)
class Schedule:
    """What the clients train on; clients are sorted by their number of steps, most first.

    Attributes
    ----------
    labelled : Batches
        Labelled samples.
    labels_TKB : Tensor
        Their labels, int64.
    learning_rates_TK : Tensor
        Float64.
    last_epoch_TK : Tensor
        Which steps belong to a client's last epoch, bool, on the CPU.
    pool : Batches | None
        Unlabelled samples of KCFU.
    mixtures : Mixtures | None
        How these are mixed.
    """

    labelled: Batches
    labels_TKB: Tensor
    learning_rates_TK: Tensor
    last_epoch_TK: Tensor
    pool: Batches | None
    mixtures: Mixtures | None

    @property
    def num_steps(self) -> int:
        """Steps of the client that has the most."""
        return len(self.learning_rates_TK)

    def to(self, device: torch.device) -> Schedule:
        """Return a copy on a device, but for what says that it stays on the CPU."""
        mixtures = self.mixtures
        return replace(
            self,
            labelled=self.labelled.to(device),
            labels_TKB=self.labels_TKB.to(device),
            learning_rates_TK=self.learning_rates_TK.to(device),
            pool=self.pool.to(device) if self.pool else None,
            mixtures=mixtures.to(device) if mixtures else None,
        )

    def clients_at(self, step: int) -> int:
        """Return how many clients, the first ones, have a batch at a step."""
        return int((self.labelled.sizes_TK[step] > 0).sum())


@dataclass(frozen=True, eq=False)
class _Step:
    """One client's batch."""

    positions_B: Tensor
    draws: AugmentationDraws
    epoch: int


def by_number_of_steps(updates: Sequence[LocalUpdate]) -> list[int]:
    """Return the positions of updates by their number of steps, most first."""
    steps = [-(-len(update.rows_N) // update.recipe.batch_size) for update in updates]
    return sorted(range(len(updates)), key=lambda position: -steps[position])


def make_schedule(updates: Sequence[LocalUpdate]) -> Schedule:
    """Draw the schedule of updates that are sorted by their number of steps.

    Parameters
    ----------
    updates : Sequence[LocalUpdate]
        Of equal recipe; their generators are used up as training alone would use them.
    """
    recipe = updates[0].recipe
    drawn = [list(_steps(update)) for update in updates]
    num_steps = len(drawn[0])
    sizes_TK = torch.zeros((num_steps, len(updates)), dtype=torch.int64)
    rates_TK = torch.zeros(sizes_TK.shape, dtype=torch.float64)
    last_TK = torch.zeros(sizes_TK.shape, dtype=torch.bool)
    rows: list[list[Tensor]] = []
    labels: list[list[Tensor]] = []
    for client, (update, steps) in enumerate(zip(updates, drawn, strict=True)):
        last_epoch = steps[-1].epoch
        for step, batch in enumerate(steps):
            sizes_TK[step, client] = len(batch.positions_B)
            rates_TK[step, client] = recipe.learning_rate_at(batch.epoch)
            last_TK[step, client] = batch.epoch == last_epoch
        rows.append([update.rows_N[batch.positions_B] for batch in steps])
        labels.append([update.labels_N.cpu()[batch.positions_B] for batch in steps])
    draws = [[batch.draws for batch in steps] for steps in drawn]
    labelled = _batches(rows, draws, sizes_TK, recipe.augmentation)
    return Schedule(
        labelled,
        _padded(labels, labelled.rows_TKB.shape, fill_first=True),
        rates_TK,
        last_TK,
        *_pool(updates, sizes_TK, recipe.augmentation),
    )


def _steps(update: LocalUpdate) -> Iterator[_Step]:
    recipe = update.recipe
    done = update.state.epochs if update.state is not None else 0
    for epoch in range(done, done + recipe.local_epochs):
        order_N = torch.randperm(len(update.rows_N), generator=update.generator)
        for positions_B in torch.split(order_N, recipe.batch_size):
            draws = draw_augmentation(len(positions_B), recipe.augmentation, update.generator)
            yield _Step(positions_B, draws, epoch)


def _pool(
    updates: Sequence[LocalUpdate], sizes_TK: Tensor, augmentation: Augmentation
) -> tuple[Batches | None, Mixtures | None]:
    """Draw the unlabelled batches of KCFU; clients without its loss have none."""
    losses = [update.objective.penalty for update in updates]
    if not any(isinstance(loss, CompensatoryLoss) for loss in losses):
        return None, None
    drawn = [
        [loss.draw() for _ in range(int((sizes_TK[:, client] > 0).sum()))]
        if isinstance(loss, CompensatoryLoss)
        else []
        for client, loss in enumerate(losses)
    ]
    pool_sizes_TK = torch.zeros_like(sizes_TK)
    for client, batches in enumerate(drawn):
        for step, batch in enumerate(batches):
            pool_sizes_TK[step, client] = len(batch.rows_B)
    pool = _batches(
        [[batch.rows_B for batch in batches] for batches in drawn],
        [[batch.draws for batch in batches] for batches in drawn],
        pool_sizes_TK,
        augmentation,
    )
    shape = pool.rows_TKB.shape
    weights = [[batch.weight_B for batch in batches] for batches in drawn]
    partners = [[batch.partner_B for batch in batches] for batches in drawn]
    return pool, Mixtures(_padded(weights, shape, torch.float32), _padded(partners, shape))


def _batches(
    rows: Sequence[Sequence[Tensor]],
    draws: Sequence[Sequence[AugmentationDraws]],
    sizes_TK: Tensor,
    augmentation: Augmentation,
) -> Batches:
    shape = (*sizes_TK.shape, int(sizes_TK.max()))
    offsets_TK2B = flip_TKB = None
    if augmentation.padding:
        tops, lefts = (
            _padded([[_offsets(d)[side] for d in each] for each in draws], shape)
            for side in range(2)
        )
        offsets_TK2B = torch.stack((tops, lefts), dim=2)
    if augmentation.flip:
        flips = [[d.flip_B for d in each if d.flip_B is not None] for each in draws]
        flip_TKB = _padded(flips, shape, torch.bool)
    counting_TKB = torch.arange(shape[2]) < sizes_TK[:, :, None]
    rows_TKB = _padded(rows, shape, fill_first=True)
    return Batches(rows_TKB, sizes_TK, counting_TKB, offsets_TK2B, flip_TKB)


def _offsets(draws: AugmentationDraws) -> Tensor:
    if draws.offsets_2B is None:
        raise ValueError("these draws have no offsets")
    return draws.offsets_2B


def _padded(
    values: Sequence[Sequence[Tensor]],
    shape: Sequence[int],
    dtype: torch.dtype = torch.int64,
    fill_first: bool = False,
) -> Tensor:
    """Return values by client and step as (T, K, B), padded with zeros or the batch's first."""
    padded_TKB = torch.zeros(tuple(shape), dtype=dtype)
    for client, batches in enumerate(values):
        for step, batch_B in enumerate(batches):
            if fill_first:
                padded_TKB[step, client] = batch_B[0]
            padded_TKB[step, client, : len(batch_B)] = batch_B
    return padded_TKB
