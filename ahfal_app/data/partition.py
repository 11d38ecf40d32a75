"""The partition of a training set over clients.

Shapes: N samples, K clients.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import SITES, Settings
from ahfal_app.data import splits
from ahfal_app.data.cache import data_dir, load_arrays, save_arrays
from ahfal_app.errors import PartitionError
from ahfal_app.parameters import suggestion
from ahfal_app.seeds import numpy_generator, seed_sequence

_NAMES = ("dirichlet", "dirichlet-capped", "dirichlet-balanced", "iid")

#: Purpose of the random generator of a partition.
_PURPOSE = "partition"

#: Draws that flwr-datasets' DirichletPartitioner makes before it gives up.
_DRAWS_OF_FLOWER = 11

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partition:
    """Which rows of the training set each client holds.

    Parameters
    ----------
    indices : tuple[NDArray[np.int64], ...]
        Strictly increasing row numbers, read-only, one array for each client; together
        they are all rows, each once.
    fingerprint : str
        SHA-256 in hexadecimal of the sizes and all row numbers.
    """

    indices: tuple[NDArray[np.int64], ...]
    fingerprint: str


@dataclass(frozen=True)
class _Request:
    """All that a partition depends on; equal requests have equal partitions."""

    name: str
    num_clients: int
    alpha: float
    min_partition_size: int
    attempts: int
    seed: int
    labels_digest: str
    labels_N: NDArray[np.int64] = field(compare=False, repr=False)
    cache: Path = field(compare=False, repr=False)


def partition_names() -> tuple[str, ...]:
    """Return the values that the setting `partition` takes."""
    return (*_NAMES, SITES)


def make_partition(
    settings: Settings, labels_N: NDArray[np.int64], num_classes: int, num_clients: int
) -> Partition:
    """Split samples over clients as the settings say.

    `dirichlet` is flwr-datasets' DirichletPartitioner (after Yurochkin et al., 2019),
    without its balancing; it is drawn again with another seed where that gives up.
    `dirichlet-capped` is the split of Cao et al. (KAFAL, 2023), `dirichlet-balanced` the
    equal-size split of Kim et al. (LoGo, 2023), and `iid` an equal split at random. With
    each of them all rows are dealt out. Equal settings and labels give equal partitions.

    Parameters
    ----------
    settings : Settings
        Read are `partition`, `alpha`, `min-partition-size`, `partition-attempts`, `seed`
        and `data-dir`, which keeps what flwr-datasets computed.
    labels_N : NDArray[np.int64]
        Label of each training sample, from 0 to `num_classes` - 1.
    num_classes : int
        Number of classes.
    num_clients : int
        Number of clients K, at least 1.

    Raises
    ------
    PartitionError
        The name is unknown, there are too few samples for so many clients, or no
        partition was found within the allowed attempts.
    """
    _check(settings, labels_N, num_classes, num_clients)
    labels_N = np.ascontiguousarray(labels_N, np.int64)
    return _partition(
        _Request(
            settings.partition,
            num_clients,
            settings.alpha,
            settings.min_partition_size,
            settings.partition_attempts,
            settings.seed,
            hashlib.sha256(labels_N.astype("<i8").tobytes()).hexdigest(),
            labels_N,
            data_dir(settings) / "partitions",
        )
    )


def _check(
    settings: Settings, labels_N: NDArray[np.int64], num_classes: int, num_clients: int
) -> None:
    if settings.has_sites:
        raise PartitionError(f"partition={SITES!r}: clients have data of their own, none to split")
    if settings.partition not in _NAMES:
        raise PartitionError(
            f"partition={settings.partition!r}: must be one of {', '.join(_NAMES)}"
            + suggestion(settings.partition, _NAMES)
        )
    if num_clients < 1:
        raise PartitionError(f"num-clients={num_clients}: must be at least 1")
    if len(labels_N) < num_clients * settings.min_partition_size:
        raise PartitionError(
            f"num-clients={num_clients} with min-partition-size="
            f"{settings.min_partition_size} needs {num_clients * settings.min_partition_size} "
            f"training samples, there are {len(labels_N)}; lower one of the two"
        )
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise PartitionError(
            f"labels from {labels_N.min()} to {labels_N.max()}: must be from 0 to {num_classes - 1}"
        )


@lru_cache(maxsize=8)
def _partition(request: _Request) -> Partition:
    generator = numpy_generator(request.seed, _PURPOSE)
    labels_N, num_clients = request.labels_N, request.num_clients
    if request.name == "dirichlet":
        return _kept_partition(request)
    if request.name == "iid":
        rows = splits.iid(labels_N, num_clients, generator)
    elif request.name == "dirichlet-capped":
        rows = splits.dirichlet_capped(
            labels_N,
            num_clients,
            request.alpha,
            request.min_partition_size,
            request.attempts,
            generator,
        )
    else:
        rows = splits.dirichlet_balanced(
            labels_N, num_clients, request.alpha, request.attempts, generator
        )
    return _frozen(rows)


def _kept_partition(request: _Request) -> Partition:
    """Return flwr-datasets' partition, from the cache if it is there.

    Importing flwr-datasets takes seconds, which each client process would pay.
    """
    key = hashlib.sha256(repr(request).encode()).hexdigest()[:32]
    path = request.cache / f"{key}.npz"
    kept = load_arrays(path)
    if kept is not None and kept.keys() == {"rows", "sizes", "fingerprint"}:
        partition = _frozen(np.split(kept["rows"], np.cumsum(kept["sizes"])[:-1]))
        if partition.fingerprint == str(kept["fingerprint"]):
            return partition
        _log.warning("%s is damaged; the partition is computed again", path)
    partition = _frozen(_flower_dirichlet(request))
    save_arrays(
        path,
        rows=np.concatenate(partition.indices),
        sizes=np.array([len(rows) for rows in partition.indices], np.int64),
        fingerprint=np.array(partition.fingerprint),
    )
    return partition


def _flower_dirichlet(request: _Request) -> list[NDArray[np.int64]]:
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    labels_N = request.labels_N
    dataset = Dataset.from_dict({"label": labels_N, "row": np.arange(len(labels_N))})
    dataset = dataset.with_format("numpy")
    for attempt in range(math.ceil(request.attempts / _DRAWS_OF_FLOWER)):
        seed = seed_sequence(request.seed, _PURPOSE, attempt).generate_state(1)[0]
        partitioner = DirichletPartitioner(
            request.num_clients,
            "label",
            request.alpha,
            request.min_partition_size,
            self_balancing=False,
            seed=int(seed),
        )
        partitioner.dataset = dataset
        try:
            with warnings.catch_warnings():
                # It warns about each draw that it repeats.
                warnings.simplefilter("ignore")
                partitioner.load_partition(0)
        except ValueError:
            continue
        return [
            np.sort(np.asarray(partitioner.load_partition(client)["row"][:], np.int64))
            for client in range(request.num_clients)
        ]
    raise PartitionError(
        f"partition=dirichlet: none of partition-attempts={request.attempts} draws with "
        f"alpha={request.alpha:g} gave each of num-clients={request.num_clients} clients "
        f"min-partition-size={request.min_partition_size} samples; raise alpha or "
        "partition-attempts, or lower num-clients or min-partition-size"
    )


def _frozen(rows: Sequence[NDArray[np.int64]]) -> Partition:
    digest = hashlib.sha256(np.array([len(client) for client in rows], "<i8").tobytes())
    for client in rows:
        client.setflags(write=False)
        digest.update(client.astype("<i8").tobytes())
    return Partition(tuple(rows), digest.hexdigest())
