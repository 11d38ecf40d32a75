"""Class statistics over clients: histograms to mean, deviation and the low/high split.

Shape suffixes: M clients, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahfal_app.errors import NoLabelledClients

#: A deviation that equals tau up to rounding (in percentage points) is not below it.
TAU_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """How the classes are distributed over the clients' labelled sets.

    Attributes
    ----------
    mean_C : NDArray[np.float64]
        Unweighted mean over clients of each class's proportion, in [0, 1].
    deviation_C : NDArray[np.float64]
        Population standard deviation of these proportions, in [0, 0.5].
    low_C : NDArray[np.bool_]
        Whether the class has low variance: its deviation is below tau.
    """

    mean_C: NDArray[np.float64]
    deviation_C: NDArray[np.float64]
    low_C: NDArray[np.bool_]


def class_proportions(counts_C: ArrayLike) -> NDArray[np.float64]:
    """Return each class's share along the last axis; zeros where nothing is labelled.

    Raises
    ------
    ValueError
        A count is negative, NaN or infinite.
    """
    counts = np.asarray(counts_C, dtype=np.float64)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("class counts must be finite and at least 0")
    totals = counts.sum(axis=-1, keepdims=True)
    shares = np.zeros_like(counts)
    np.divide(counts, totals, out=shares, where=totals > 0)
    return shares


def class_statistics(counts_MC: ArrayLike, tau: float) -> ClassStatistics:
    """Return the class statistics of the clients' histograms.

    Section 6.1, step 1 and equation 2 of the AHFAL paper ("Federated active learning via
    class-adaptive local-global balancing"). Clients without labels are left out.

    Parameters
    ----------
    counts_MC : ArrayLike
        Class histograms, one row a client: counts, or proportions. Shape (M, C).
    tau : float
        Threshold of the deviation in percentage points; 12 means 0.12.

    Returns
    -------
    ClassStatistics
        Mean, deviation and the split into low and high variance.

    Raises
    ------
    NoLabelledClients
        No row has a label.
    ValueError
        The histograms are not a matrix, or a count is negative, NaN or infinite.
    """
    counts = np.asarray(counts_MC)
    if counts.ndim != 2:
        raise ValueError(f"histograms have shape {counts.shape}; one row a client is needed")
    proportions_MC = class_proportions(counts)
    proportions_MC = proportions_MC[proportions_MC.any(axis=1)]
    _require_clients(len(proportions_MC))
    deviation_C = proportions_MC.std(axis=0, ddof=0)
    return _split(proportions_MC.mean(axis=0), deviation_C, tau)


def statistics_from_sums(
    sum_C: ArrayLike, square_sum_C: ArrayLike, num_clients: int, tau: float
) -> ClassStatistics:
    """Return the same statistics from sums over clients alone, as secure aggregation has them.

    Parameters
    ----------
    sum_C : ArrayLike
        Sum over clients of the class proportions. Shape (C,).
    square_sum_C : ArrayLike
        Sum over clients of the squared class proportions. Shape (C,).
    num_clients : int
        Number of clients with labels in these sums.
    tau : float
        Threshold of the deviation in percentage points.

    Raises
    ------
    NoLabelledClients
        `num_clients` is 0.
    """
    _require_clients(num_clients)
    mean_C = np.asarray(sum_C, dtype=np.float64) / num_clients
    variance_C = np.asarray(square_sum_C, dtype=np.float64) / num_clients - mean_C**2
    # The subtraction may leave a negative rounding error where all clients agree.
    return _split(mean_C, np.sqrt(np.maximum(variance_C, 0.0)), tau)


def _require_clients(num_clients: int) -> None:
    if num_clients < 1:
        raise NoLabelledClients("no client has a labelled sample; label some before a selection")


def _split(
    mean_C: NDArray[np.float64], deviation_C: NDArray[np.float64], tau: float
) -> ClassStatistics:
    return ClassStatistics(mean_C, deviation_C, 100.0 * deviation_C < tau - TAU_TOLERANCE)
