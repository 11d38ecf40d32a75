"""How samples are split over clients: from labels to row numbers, in NumPy alone.

Shapes: N samples, K clients, C classes that occur.

`dirichlet_capped` is the split of Cao et al. (KAFAL, ICCV 2023), `dirichlet_balanced`
the equal-size split of Kim et al. (LoGo, CVPR 2023), which experiments on AHFAL use too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ahfal_app.errors import PartitionError

#: Below this concentration a draw is one-hot in double precision, whatever its exact value.
_SMALLEST_ALPHA = 1e-9

#: Largest relative error in the size of a class or a client at which balancing stops.
_BALANCE_TOLERANCE = 1e-3

#: Expected counts this close count as equal, so that the last bit of another processor's
#: exponential does not decide where a sample goes.
_DECIMALS = 6
_CLOSE = 10.0**-_DECIMALS

Rows = list[NDArray[np.int64]]


def iid(labels_N: NDArray[np.int64], num_clients: int, generator: np.random.Generator) -> Rows:
    """Split at random into equal parts.

    Parameters
    ----------
    labels_N : NDArray[np.int64]
        Label of each sample; only their number matters.
    num_clients : int
        Number of parts, at least 1.
    generator : np.random.Generator
        Source of the random order.

    Returns
    -------
    list[NDArray[np.int64]]
        Strictly increasing row numbers of each client; sizes differ by at most 1.
    """
    shuffled_N = generator.permutation(len(labels_N))
    return [np.sort(rows) for rows in np.array_split(shuffled_N, num_clients)]


def dirichlet_capped(
    labels_N: NDArray[np.int64],
    num_clients: int,
    alpha: float,
    min_partition_size: int,
    attempts: int,
    generator: np.random.Generator,
) -> Rows:
    """Split class by class, giving nothing more to clients that hold their equal share.

    For each class in turn, shares over the clients that still hold less than N/K samples
    are drawn from a symmetric Dirichlet distribution, which is the same as drawing shares
    over all clients, removing those of full ones and normalising the rest. Everything is
    drawn again until each client has `min_partition_size` samples.

    Parameters
    ----------
    labels_N : NDArray[np.int64]
        Label of each sample.
    num_clients : int
        Number of clients K, at least 1.
    alpha : float
        Concentration of the Dirichlet distribution; small is skewed.
    min_partition_size : int
        Fewest samples of a client.
    attempts : int
        Draws after which to give up.
    generator : np.random.Generator
        Source of all draws.

    Returns
    -------
    list[NDArray[np.int64]]
        Strictly increasing row numbers of each client.

    Raises
    ------
    PartitionError
        No draw gave each client enough samples.
    """
    counts_C = np.unique(labels_N, return_counts=True)[1]
    for _ in range(attempts):
        counts_KC = _capped_counts(counts_C, num_clients, alpha, generator)
        if counts_KC.sum(axis=1).min() >= min_partition_size:
            return _deal(labels_N, counts_KC, generator)
    raise PartitionError(
        f"partition=dirichlet-capped: none of partition-attempts={attempts} draws with "
        f"alpha={alpha:g} gave each of num-clients={num_clients} clients "
        f"min-partition-size={min_partition_size} samples; raise alpha or "
        "partition-attempts, or lower num-clients or min-partition-size"
    )


def dirichlet_balanced(
    labels_N: NDArray[np.int64],
    num_clients: int,
    alpha: float,
    attempts: int,
    generator: np.random.Generator,
) -> Rows:
    """Split into parts of equal size whose class proportions follow a Dirichlet draw.

    Each client draws class proportions from a symmetric Dirichlet distribution. Scaling
    rows and columns in turn (Sinkhorn) then makes all clients equally large and uses up
    each class. Counts are rounded down, and what is left over of a class goes to those
    clients with room that hold most of it.

    Parameters
    ----------
    labels_N : NDArray[np.int64]
        Label of each sample.
    num_clients : int
        Number of clients K, from 1 to N.
    alpha : float
        Concentration of the Dirichlet distribution; small is skewed.
    attempts : int
        Scalings after which to give up.
    generator : np.random.Generator
        Source of all draws.

    Returns
    -------
    list[NDArray[np.int64]]
        Strictly increasing row numbers of each client; sizes differ by at most 1.

    Raises
    ------
    PartitionError
        The draw could not be balanced.

    Notes
    -----
    The published procedure scales to unit sums, which fits classes of equal size, without
    a limit of steps, and deals out whole samples greedily. Scaling to the sizes of classes
    and clients themselves fits any classes, and with these counts sizes are always equal.
    """
    counts_C = np.unique(labels_N, return_counts=True)[1]
    log_shares_KC = _log_gamma(alpha, (num_clients, len(counts_C)), generator)
    expected_KC = _balance(log_shares_KC, counts_C, attempts)
    if expected_KC is None:
        raise PartitionError(
            f"partition=dirichlet-balanced: a draw with alpha={alpha:g} for "
            f"num-clients={num_clients} was not balanced after "
            f"partition-attempts={attempts} steps; raise alpha or partition-attempts, or "
            "use another seed"
        )
    sizes_K = np.full(num_clients, len(labels_N) // num_clients)
    sizes_K[generator.permutation(num_clients)[: len(labels_N) % num_clients]] += 1
    counts_KC = _round_to_margins(expected_KC, sizes_K, counts_C)
    return _deal(labels_N, counts_KC, generator)


def _log_gamma(
    alpha: float, shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw logarithms of Gamma(alpha) variables; normalised, these are Dirichlet draws.

    A Gamma(alpha) variable is one of Gamma(alpha + 1) times U^(1/alpha), whose logarithm
    is finite where the variable itself would underflow.
    """
    alpha = max(alpha, _SMALLEST_ALPHA)
    log_uniform = -generator.standard_exponential(shape)
    log_gamma: NDArray[np.float64] = (
        np.log(generator.standard_gamma(alpha + 1, shape)) + log_uniform / alpha
    )
    return log_gamma


def _log_sum(log_values_KC: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the logarithms of sums of exponentials, keeping the axis."""
    largest = log_values_KC.max(axis=axis, keepdims=True)
    sums: NDArray[np.float64] = np.exp(log_values_KC - largest).sum(axis=axis, keepdims=True)
    log_sums: NDArray[np.float64] = np.log(sums) + largest
    return log_sums


def _capped_counts(
    counts_C: NDArray[np.int64], num_clients: int, alpha: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    counts_KC = np.zeros((num_clients, len(counts_C)), np.int64)
    sizes_K = np.zeros(num_clients, np.int64)
    log_shares_KC = _log_gamma(alpha, counts_KC.shape, generator)
    for column, count in enumerate(counts_C):
        # Before the last class fewer than all samples are dealt, so some client is open.
        open_K = np.flatnonzero(sizes_K * num_clients < counts_C.sum())
        log_shares = log_shares_KC[open_K, column]
        shares = np.exp(log_shares - log_shares.max())
        ends = np.floor(np.round(np.cumsum(shares) / shares.sum() * count, _DECIMALS))
        ends[-1] = count
        counts_KC[open_K, column] = np.diff(ends.astype(np.int64), prepend=0)
        sizes_K += counts_KC[:, column]
    return counts_KC


def _balance(
    log_shares_KC: NDArray[np.float64], counts_C: NDArray[np.int64], attempts: int
) -> NDArray[np.float64] | None:
    """Scale rows and columns in turn until clients are equal and classes used up.

    Returns expected counts whose rows sum to at most N/K and whose columns to at most
    `counts_C`, or None if the sizes of clients still differ after `attempts` scalings.
    """
    log_counts_C = np.log(counts_C)
    log_size = np.log(counts_C.sum() / len(log_shares_KC))
    log_expected_KC = log_shares_KC
    for _ in range(attempts):
        log_expected_KC = log_expected_KC - _log_sum(log_expected_KC, 1) + log_size
        log_expected_KC = log_expected_KC - _log_sum(log_expected_KC, 0) + log_counts_C
        log_errors_K = _log_sum(log_expected_KC, 1) - log_size
        if np.abs(log_errors_K).max() <= _BALANCE_TOLERANCE:
            expected_KC: NDArray[np.float64] = np.exp(
                log_expected_KC - np.maximum(log_errors_K, 0.0)
            )
            return expected_KC
    return None


def _round_to_margins(
    expected_KC: NDArray[np.float64], sizes_K: NDArray[np.int64], counts_C: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Round expected counts to integers with exactly these row and column sums.

    No row or column of `expected_KC` may sum to more than that.
    """
    # A hair less than the expected count: no client can come out too large.
    counts_KC = np.floor(np.maximum(expected_KC - _CLOSE, 0.0)).astype(np.int64)
    room_K = sizes_K - counts_KC.sum(axis=1)
    order_KC = np.argsort(-np.round(expected_KC, _DECIMALS), axis=0, kind="stable")
    for column, left in enumerate(counts_C - counts_KC.sum(axis=0)):
        # What is left of all classes is exactly the room of all clients: this ends.
        while left > 0:
            order_K = order_KC[:, column]
            takers = order_K[room_K[order_K] > 0][:left]
            counts_KC[takers, column] += 1
            room_K[takers] -= 1
            left -= len(takers)
    return counts_KC


def _deal(
    labels_N: NDArray[np.int64], counts_KC: NDArray[np.int64], generator: np.random.Generator
) -> Rows:
    """Give each client at random the wanted number of samples of each class."""
    num_clients, num_classes = counts_KC.shape
    # Sorting a random order by label, stably, shuffles the samples within each class.
    shuffled_N = generator.permutation(len(labels_N))
    by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind="stable")]
    owners_N = np.repeat(np.tile(np.arange(num_clients), num_classes), counts_KC.T.ravel())
    by_owner_N = by_class_N[np.argsort(owners_N, kind="stable")]
    ends_K = np.cumsum(counts_KC.sum(axis=1))
    return [np.sort(rows) for rows in np.split(by_owner_N, ends_K[:-1])]
