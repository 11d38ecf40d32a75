"""What several clients see at each step, drawn as each of them would draw it alone.

Batches are padded to one size by repeating a row; sizes tell what counts. It is drawn in pieces, so
that a device works on one while the next is drawn.

Shapes: T steps, K clients, B samples of a padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from ahfal_app.data.device import AugmentationDraws, draw_augmentation, uploaded
from ahfal_app.training.local_updates.kcfu import CompensatoryLoss
from ahfal_app.training.penalties import part_of
from ahfal_app.training.sgd import LocalUpdate

# Unequal batches are padded to a multiple of this: each size is recorded anew.
_SIZES = 16


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
    offsets_T2KB, flip_TKB, views_TKB : Tensor | None
        The draws of the augmentation, int64, bool and int64.
    """

    rows_TKB: Tensor
    sizes_TK: Tensor
    counting_TKB: Tensor
    offsets_T2KB: Tensor | None
    flip_TKB: Tensor | None
    views_TKB: Tensor | None

    def widths(self) -> list[int]:
        """Return for each step the samples that its batches are padded to.

        As many as they have where all that there are have equally many: then all count.
        """
        most_T = self.sizes_TK.amax(dim=1)
        are_equal_T = ((self.sizes_TK == most_T[:, None]) | (self.sizes_TK == 0)).all(dim=1)
        padded_T = (most_T + _SIZES - 1).div(_SIZES, rounding_mode="floor") * _SIZES
        width_T = torch.where(are_equal_T, most_T, padded_T.clamp_max(self.rows_TKB.shape[2]))
        return [int(width) for width in width_T.clamp_min(1)]

    def to(self, device: torch.device) -> Batches:
        """Return a copy on a device, but for the sizes, which stay on the CPU."""
        return Batches(
            uploaded(self.rows_TKB, device),
            self.sizes_TK,
            uploaded(self.counting_TKB, device),
            None if self.offsets_T2KB is None else uploaded(self.offsets_T2KB, device),
            None if self.flip_TKB is None else uploaded(self.flip_TKB, device),
            None if self.views_TKB is None else uploaded(self.views_TKB, device),
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
        return Mixtures(uploaded(self.weight_TKB, device), uploaded(self.partner_TKB, device))


@dataclass(frozen=True, eq=False)
class Schedule:
    """What the clients train on in some steps, sorted by their number of steps, most first.

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

    def to(self, device: torch.device) -> Schedule:
        """Return a copy on a device, but for what says that it stays on the CPU."""
        mixtures = self.mixtures
        return replace(
            self,
            labelled=self.labelled.to(device),
            labels_TKB=uploaded(self.labels_TKB, device),
            learning_rates_TK=uploaded(self.learning_rates_TK, device),
            pool=self.pool.to(device) if self.pool else None,
            mixtures=mixtures.to(device) if mixtures else None,
        )

    def counts(self) -> list[int]:
        """Return for each step how many clients, the first ones, have a batch."""
        return [int(count) for count in (self.labelled.sizes_TK > 0).sum(dim=1)]


@dataclass(frozen=True, eq=False)
class _Step:
    """One client's batch."""

    positions_B: Tensor
    draws: AugmentationDraws
    epoch: int


def by_number_of_steps(updates: Sequence[LocalUpdate]) -> list[int]:
    """Return the positions of updates by their number of steps, most first."""
    return sorted(range(len(updates)), key=lambda position: -_steps_of_epoch(updates[position]))


def schedules(updates: Sequence[LocalUpdate]) -> Iterator[Schedule]:
    """Draw the steps of updates that are sorted by their number of steps, an epoch at a time.

    The epochs are those of the client with the most samples.

    Parameters
    ----------
    updates : Sequence[LocalUpdate]
        Of equal recipe; their generators are used up as training alone would use them.
    """
    steps = [_steps(update) for update in updates]
    for _ in range(updates[0].recipe.local_epochs):
        num_steps = _steps_of_epoch(updates[0])
        yield _schedule(updates, [list(islice(each, num_steps)) for each in steps], num_steps)


def _schedule(
    updates: Sequence[LocalUpdate], drawn: Sequence[Sequence[_Step]], num_steps: int
) -> Schedule:
    recipe = updates[0].recipe
    sizes_TK = torch.zeros((num_steps, len(updates)), dtype=torch.int64)
    rates_TK = torch.zeros(sizes_TK.shape, dtype=torch.float64)
    last_TK = torch.zeros(sizes_TK.shape, dtype=torch.bool)
    rows, labels = [], []
    for client, (update, steps) in enumerate(zip(updates, drawn, strict=True)):
        last = _epochs_done(update) + recipe.local_epochs - 1
        count = len(steps)
        sizes_TK[:count, client] = torch.tensor([len(s.positions_B) for s in steps]).long()
        rates_TK[:count, client] = torch.tensor(
            [recipe.learning_rate_at(s.epoch) for s in steps], dtype=torch.float64
        )
        last_TK[:count, client] = torch.tensor([s.epoch == last for s in steps]).bool()
        positions_n = _joined([step.positions_B for step in steps])
        rows.append(update.rows_N[positions_n])
        labels.append(update.labels_N.cpu()[positions_n])
    padding = _Padding(sizes_TK)
    labelled = _batches(padding, rows, [[step.draws for step in steps] for steps in drawn])
    return Schedule(
        labelled,
        padding.padded(labels, fill_first=True),
        rates_TK,
        last_TK,
        *_pool(updates, sizes_TK),
    )


def _steps_of_epoch(update: LocalUpdate) -> int:
    return -(-len(update.rows_N) // update.recipe.batch_size)


def _epochs_done(update: LocalUpdate) -> int:
    return update.state.epochs if update.state is not None else 0


def _steps(update: LocalUpdate) -> Iterator[_Step]:
    recipe = update.recipe
    done = _epochs_done(update)
    for epoch in range(done, done + recipe.local_epochs):
        order_N = torch.randperm(len(update.rows_N), generator=update.generator)
        for positions_B in torch.split(order_N, recipe.batch_size):
            draws = draw_augmentation(len(positions_B), recipe.augmentation, update.generator)
            yield _Step(positions_B, draws, epoch)


def _pool(
    updates: Sequence[LocalUpdate], sizes_TK: Tensor
) -> tuple[Batches | None, Mixtures | None]:
    """Draw the unlabelled batches of KCFU; clients without its loss have none; None without any."""
    losses = [part_of(update.objective.penalty, CompensatoryLoss) for update in updates]
    if not any(losses):
        return None, None
    drawn = [
        [loss.draw() for _ in range(int((sizes_TK[:, client] > 0).sum()))]
        if loss is not None
        else []
        for client, loss in enumerate(losses)
    ]
    if not any(drawn):
        # Those who have unlabelled samples have no steps left.
        return None, None
    pool_sizes_TK = torch.zeros_like(sizes_TK)
    for client, batches in enumerate(drawn):
        sizes = torch.tensor([len(batch.rows_B) for batch in batches]).long()
        pool_sizes_TK[: len(batches), client] = sizes
    padding = _Padding(pool_sizes_TK)
    pool = _batches(
        padding,
        [_joined([batch.rows_B for batch in batches]) for batches in drawn],
        [[batch.draws for batch in batches] for batches in drawn],
    )
    weights = [_joined([batch.weight_B for batch in batches]).float() for batches in drawn]
    partners = [_joined([batch.partner_B for batch in batches]) for batches in drawn]
    return pool, Mixtures(padding.padded(weights), padding.padded(partners))


def _batches(
    padding: _Padding, rows: Sequence[Tensor], draws: Sequence[Sequence[AugmentationDraws]]
) -> Batches:
    """Return batches of rows by client; of the draws all have the same kinds."""
    offsets = [[d.offsets_2B for d in each if d.offsets_2B is not None] for each in draws]
    flips = [[d.flip_B for d in each if d.flip_B is not None] for each in draws]
    views = [[d.views_B for d in each if d.views_B is not None] for each in draws]
    sides = []
    if any(offsets):
        sides = [
            padding.padded([_joined([each[side] for each in drawn]) for drawn in offsets])
            for side in range(2)
        ]
    return Batches(
        padding.padded(rows, fill_first=True),
        padding.sizes_TK,
        padding.counting_TKB,
        torch.stack(sides, dim=1) if sides else None,
        padding.padded([_joined(each).bool() for each in flips]) if any(flips) else None,
        padding.padded([_joined(each) for each in views]) if any(views) else None,
    )


def _joined(batches: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(batches)) if batches else torch.zeros(0, dtype=torch.int64)


class _Padding:
    """Puts batches of unequal size into one tensor.

    Parameters
    ----------
    sizes_TK : Tensor
        Samples in each batch.
    """

    def __init__(self, sizes_TK: Tensor) -> None:
        self.sizes_TK = sizes_TK
        self._most = int(sizes_TK.max())
        self.counting_TKB = torch.arange(self._most) < sizes_TK[:, :, None]
        # By client, then by step, as the values of `padded` come.
        self._counting_KTB = self.counting_TKB.transpose(0, 1)

    def padded(self, values: Sequence[Tensor], fill_first: bool = False) -> Tensor:
        """Return each client's values, joined over its steps, as (T, K, B).

        Padded with zeros, or with the first value of the batch.
        """
        joined_n = torch.cat(tuple(values))
        padded_KTB = torch.zeros(self._counting_KTB.shape, dtype=joined_n.dtype)
        padded_KTB[self._counting_KTB] = joined_n
        if fill_first:
            padded_KTB = torch.where(self._counting_KTB, padded_KTB, padded_KTB[:, :, :1])
        return padded_KTB.transpose(0, 1).contiguous()
