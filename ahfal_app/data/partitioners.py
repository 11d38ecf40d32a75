"""Splits over clients as `Partitioner` classes of flwr-datasets.

They stand beside flwr-datasets' own and work in its `FederatedDataset`. `make_partition`
gives the same rows without importing flwr-datasets.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import Partitioner
from numpy.typing import NDArray

from ahfal_app.data import splits
from ahfal_app.errors import PartitionError
from ahfal_app.seeds import numpy_generator


class RowPartitioner(Partitioner):  # type: ignore[misc]  # flwr-datasets is not typed
    """A partitioner that gives each client a strictly increasing array of row numbers.

    Parameters
    ----------
    num_partitions : int
        Number of clients, at least 1.
    partition_by : str
        Column with the labels.
    seed : int
        Seed of everything random, not negative.
    """

    def __init__(self, num_partitions: int, partition_by: str, seed: int) -> None:
        super().__init__()
        if num_partitions < 1:
            raise PartitionError(f"num_partitions={num_partitions}: must be at least 1")
        self._num_partitions = num_partitions
        self._partition_by = partition_by
        self._seed = seed
        self._rows: list[NDArray[np.int64]] | None = None

    @property
    def num_partitions(self) -> int:
        """Number of clients."""
        return self._num_partitions

    def rows(self, partition_id: int) -> NDArray[np.int64]:
        """Return the row numbers, int64 and strictly increasing, of a client.

        Raises
        ------
        PartitionError
            The data set cannot be split this way.
        """
        if self._rows is None:
            self._rows = self._split_dataset()
        return self._rows[partition_id]

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the samples of a client.

        Raises
        ------
        PartitionError
            The data set cannot be split this way.
        """
        return self.dataset.select(self.rows(partition_id))

    def _split_dataset(self) -> list[NDArray[np.int64]]:
        values_N = np.asarray(self.dataset.with_format("numpy")[self._partition_by][:])
        if len(values_N) < self._num_partitions:
            raise PartitionError(
                f"num_partitions={self._num_partitions}: must be at most the number of "
                f"samples, {len(values_N)}"
            )
        labels_N = np.unique(values_N, return_inverse=True)[1].astype(np.int64)
        return self._split(labels_N, numpy_generator(self._seed, splits.PURPOSE))

    @abstractmethod
    def _split(
        self, labels_N: NDArray[np.int64], generator: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return the row numbers of each client."""


class ShuffledIidPartitioner(RowPartitioner):
    """Equal parts at random: see `ahfal_app.data.splits.iid`."""

    def __init__(self, num_partitions: int, partition_by: str = "label", seed: int = 0) -> None:
        super().__init__(num_partitions, partition_by, seed)

    def _split(
        self, labels_N: NDArray[np.int64], generator: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        return splits.iid(labels_N, self._num_partitions, generator)


class CappedDirichletPartitioner(RowPartitioner):
    """Dirichlet shares of each class under a size cap: see `splits.dirichlet_capped`.

    Parameters
    ----------
    num_partitions : int
        Number of clients, at least 1.
    partition_by : str
        Column with the labels.
    alpha : float
        Concentration of the Dirichlet distribution; small is skewed.
    min_partition_size : int
        Fewest samples of a client.
    attempts : int
        Draws after which to give up.
    seed : int
        Seed of everything random, not negative.
    """

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        alpha: float,
        min_partition_size: int = 10,
        attempts: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(num_partitions, partition_by, seed)
        self._alpha = alpha
        self._min_partition_size = min_partition_size
        self._attempts = attempts

    def _split(
        self, labels_N: NDArray[np.int64], generator: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        return splits.dirichlet_capped(
            labels_N,
            self._num_partitions,
            self._alpha,
            self._min_partition_size,
            self._attempts,
            generator,
        )


class BalancedDirichletPartitioner(RowPartitioner):
    """Equal sizes, Dirichlet class proportions: see `splits.dirichlet_balanced`.

    Parameters
    ----------
    num_partitions : int
        Number of clients, at least 1.
    partition_by : str
        Column with the labels.
    alpha : float
        Concentration of the Dirichlet distribution; small is skewed.
    attempts : int
        Scalings after which to give up.
    seed : int
        Seed of everything random, not negative.
    """

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        alpha: float,
        attempts: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(num_partitions, partition_by, seed)
        self._alpha = alpha
        self._attempts = attempts

    def _split(
        self, labels_N: NDArray[np.int64], generator: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        return splits.dirichlet_balanced(
            labels_N, self._num_partitions, self._alpha, self._attempts, generator
        )
