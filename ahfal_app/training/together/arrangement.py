"""Where the numbers of several copies of a network lie in one flat tensor.

Tensor by tensor, and in each of them copy by copy: the first k copies of a tensor are one piece of
memory, which a grouped operator takes as it is. Kernels of convolutions lie in channels_last.

Shapes: K copies, n numbers of all copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Arrangement:
    """The place of each tensor of K copies.

    Parameters
    ----------
    shapes : Mapping[str, Sequence[int]]
        Shape of each tensor of one copy, by name.
    copies : int
        K.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], copies: int) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._copies = copies
        self._sizes = [copies * math.prod(shape) for shape in self._shapes.values()]
        self.size = sum(self._sizes)
        """How many numbers all copies have, n."""

    def by_copy(self, flat_n: Tensor) -> dict[str, Tensor]:
        """Return views by name, shape (K, *shape)."""
        return {
            name: _kernels_last(piece, (self._copies, *shape))
            for (name, shape), piece in self._pieces(flat_n)
        }

    def merged(self, flat_n: Tensor, count: int) -> dict[str, Tensor]:
        """Return the first copies' tensors by name, side by side in their first dimension.

        Single numbers have the shape (count,).
        """
        merged = {}
        for (name, shape), piece in self._pieces(flat_n):
            if count < self._copies:
                piece = piece[: count * math.prod(shape)]
            first, *rest = shape or (1,)
            merged[name] = _kernels_last(piece, (count * first, *rest))
        return merged

    def sums(self, flat_n: Tensor) -> Tensor:
        """Return each copy's sum. Shape (K,).

        By torch's sum of each piece, which adds up in a tree: millions of float32 numbers one after
        the other would be some percent off.
        """
        sums_K = [piece.view(self._copies, -1).sum(dim=1) for _, piece in self._pieces(flat_n)]
        return torch.stack(sums_K).sum(dim=0)

    def copy_of_each(self, device: torch.device) -> Tensor:
        """Return the copy that each number belongs to, int32. Shape (n,)."""
        copies = torch.arange(self._copies, dtype=torch.int32)
        per_copy = [size // self._copies for size in self._sizes]
        return torch.cat([copies.repeat_interleave(size) for size in per_copy]).to(device)

    def _pieces(self, flat_n: Tensor) -> list[tuple[tuple[str, tuple[int, ...]], Tensor]]:
        pieces = torch.split(flat_n, self._sizes)
        return list(zip(self._shapes.items(), pieces, strict=True))


def _kernels_last(piece: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a view of a shape, whose memory has a kernel's height and width before its input."""
    if len(shape) < 4:
        return piece.view(shape)
    *outer, channels, height, width = shape
    return piece.view(*outer, height, width, channels).movedim(-1, -3)
