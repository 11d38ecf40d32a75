"""Vectors that heads train on, made ready once instead of in each step.

A step of heads on features is a handful of small products; to convert and normalise the vectors
anew takes longer. Where nothing changes them from step to step, that is done once for all rounds
that train on the same samples, and a step only gathers.

Shapes: N images of the split, M of them that are ready, k clients that take part, B samples of a
padded batch, D numbers of a vector, n = k B, F = k D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.device import DeviceImages
from ahfal_app.models.core.vectors import VectorInput
from ahfal_app.training.local_updates.kcfu import CompensatoryLoss
from ahfal_app.training.penalties import part_of
from ahfal_app.training.sgd import LocalUpdate

#: Bytes of vectors that are kept ready.
MOST_BYTES = 1 << 30

#: Rows that are made ready at once.
_AT_ONCE = 4096


class ReadyVectors:
    """Vectors of the rows that a group trains on, as the networks' first layer makes them.

    Parameters
    ----------
    images : DeviceImages
        The training split.
    layer : VectorInput
        That layer; it has no weights.
    dtype : torch.dtype | None
        What they are kept in; None: as the layer returns them.
    """

    def __init__(
        self, images: DeviceImages, layer: VectorInput, dtype: torch.dtype | None = None
    ) -> None:
        self._images, self._layer, self._dtype = images, layer, dtype
        self._rows_M: Tensor | None = None
        self._vectors_MD: Tensor | None = None
        self._position_N = torch.zeros(len(images), dtype=torch.int64)

    def make(self, rows_M: Tensor) -> None:
        """Make the vectors of these rows ready, unless they are the last ones, which are kept.

        Of more rows than the memory is meant for none are, and each step makes its own.
        """
        if self._rows_M is not None and torch.equal(rows_M, self._rows_M):
            return
        self._rows_M, self._vectors_MD = rows_M, None
        size = 4 * len(rows_M) * self._images.images_NHWC.shape[1:].numel()
        if size > MOST_BYTES:
            return
        self._vectors_MD = torch.cat([self._made(part) for part in torch.split(rows_M, _AT_ONCE)])
        self._position_N[rows_M] = torch.arange(len(rows_M))

    def side_by_side(self, rows_kB: Tensor) -> Tensor:
        """Return the vectors of all clients side by side, (B, F)."""
        return self._of(rows_kB.T.flatten()).view(rows_kB.shape[1], -1)

    def by_client(self, rows_kB: Tensor) -> Tensor:
        """Return the vectors of one client after the other, (k, B, D)."""
        return self._of(rows_kB.flatten()).view(*rows_kB.shape, -1)

    def _of(self, rows_n: Tensor) -> Tensor:
        if self._vectors_MD is None:
            return self._made(rows_n)
        return self._vectors_MD.index_select(0, self._position_N[rows_n])

    def _made(self, rows_B: Tensor) -> Tensor:
        vectors_BD: Tensor = self._layer(self._images.batch(rows_B))
        return vectors_BD if self._dtype is None else vectors_BD.to(self._dtype)


def ready_vectors(updates: Sequence[LocalUpdate]) -> ReadyVectors | None:
    """Return where the vectors of a group are made ready; None where each step has to do it.

    That is so for images, for vectors that are augmented or normalised by the batch, with KCFU
    at any client, and on a GPU, where it costs nothing.

    Parameters
    ----------
    updates : Sequence[LocalUpdate]
        The group, of equal recipe and network.
    """
    first = updates[0]
    layer = getattr(first.model, "vectors", None)
    if not isinstance(layer, VectorInput) or not layer.is_fixed:
        return None
    is_same_each_time = first.recipe.augmentation == NO_AUGMENTATION
    is_plain = not any(part_of(each.objective.penalty, CompensatoryLoss) for each in updates)
    if first.images.device.type != "cpu" or not is_same_each_time or not is_plain:
        return None
    # Autocast would convert them in each step.
    dtype = torch.bfloat16 if first.recipe.precision == "bf16" else None
    return ReadyVectors(first.images, layer, dtype)
