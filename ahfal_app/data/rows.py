"""Encoded images in the order of their rows, from files or from a table.

Shapes: N rows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

#: Why an image that is not there cannot be used.
MISSING = "the image is missing"

#: The path of an image's file, its bytes, or nothing where it is missing.
Encoded = str | bytes | None


class EncodedImages(Protocol):
    """Images of a split, not decoded."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def name(self, row: int) -> str:
        """Return what an image is called in messages."""
        ...

    def batches(self, rows_N: NDArray[np.int64], size: int) -> Iterator[list[Encoded]]:
        """Yield the images of some rows, in their order, at most so many at a time."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Image files.

    Attributes
    ----------
    paths, names : Sequence[str]
        Path and name of each.
    """

    paths: Sequence[str]
    names: Sequence[str]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return a file's name."""
        return self.names[row]

    def batches(self, rows_N: NDArray[np.int64], size: int) -> Iterator[list[Encoded]]:
        """Yield paths."""
        for start in range(0, len(rows_N), size):
            yield [self.paths[row] for row in rows_N[start : start + size]]


@dataclass(frozen=True)
class ImageTable:
    """A column of a table.

    Attributes
    ----------
    dataset : Dataset
        The table.
    column : str
        Its column with the images.
    called : Callable[[int], str]
        What a row is called.
    """

    dataset: Dataset
    column: str
    called: Callable[[int], str]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.dataset)

    def name(self, row: int) -> str:
        """Return what a row is called, with the file that its image came from, if it says so."""
        import datasets

        encoded = self.dataset.select_columns([self.column]).cast_column(
            self.column, datasets.Image(decode=False)
        )
        path = (encoded[row][self.column] or {}).get("path")
        return f"{self.called(row)} ({path})" if path else self.called(row)

    def batches(self, rows_N: NDArray[np.int64], size: int) -> Iterator[list[Encoded]]:
        """Yield bytes, or paths where the table has no bytes."""
        import datasets

        table = self.dataset
        if not np.array_equal(rows_N, np.arange(len(table))):
            table = table.select(rows_N)
        encoded = table.select_columns([self.column]).cast_column(
            self.column, datasets.Image(decode=False)
        )
        for batch in encoded.iter(size):
            yield [_encoded(image) for image in batch[self.column]]


def _encoded(image: dict[str, object] | None) -> Encoded:
    content, path = (image.get(key) for key in ("bytes", "path")) if image else (None, None)
    if isinstance(content, bytes):
        return content
    return None if path is None else str(path)
