"""Class statistics over clients: histograms to mean, deviation and the low/high split.

Shape suffixes: M clients, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ahfal_app.errors import NoLabelledClients
from ahfal_app.otsu import otsu_neighbours

#: What is compared with tau: the deviation of the class proportions, as in section 6.1 of the
#: AHFAL paper, or that over their mean, the coefficient of variation of its Finding 2.
Dispersion = Literal["deviation", "coefficient-of-variation"]

#: Where the threshold comes from: it is given, or Otsu's of the classes' dispersions.
TauRule = Literal["fixed", "otsu"]

#: A dispersion that equals tau up to rounding (in percent) is not below it.
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
        Whether the class has low variance: its dispersion is below tau.
    target_C : NDArray[np.float64] | None
        Class distribution that selections are to be aligned to, if any; of any scale.
    tau : float | None
        The threshold that split the classes, in percent; None where that is not known, as at a
        client.
    """

    mean_C: NDArray[np.float64]
    deviation_C: NDArray[np.float64]
    low_C: NDArray[np.bool_]
    target_C: NDArray[np.float64] | None = None
    tau: float | None = None


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


def class_statistics(
    counts_MC: ArrayLike,
    tau: float,
    dispersion: Dispersion = "deviation",
    effective_M: ArrayLike | None = None,
    rule: TauRule = "fixed",
) -> ClassStatistics:
    """Return the class statistics of the clients' histograms.

    Section 6.1, step 1 and equation 2 of the AHFAL paper ("Federated active learning via
    class-adaptive local-global balancing"). Clients without labels are left out.

    Parameters
    ----------
    counts_MC : ArrayLike
        Class histograms, one row a client: counts, or proportions. Shape (M, C).
    tau : float
        Threshold of the dispersion in percent (of the deviation: percentage points); 12 means
        0.12.
    dispersion : str
        What is compared with tau.
    effective_M : ArrayLike | None
        Effective number of labels of each client: what sampling alone would add to the variance,
        mean p (1 - p) / (N - 1) over the clients with N > 1, is taken from it, down to 0. None:
        nothing is. Shape (M,).
    rule : str
        With `otsu` tau counts only where no threshold parts the dispersions (`otsu_threshold`).

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
    has_labels_M = proportions_MC.any(axis=1)
    proportions_MC = proportions_MC[has_labels_M]
    _require_clients(len(proportions_MC))
    deviation_C = proportions_MC.std(axis=0, ddof=0)
    if effective_M is not None:
        sizes_M = np.asarray(effective_M, np.float64)[has_labels_M]
        noise_C = _sampling_variance(proportions_MC, sizes_M)
        deviation_C = np.sqrt(np.maximum(deviation_C**2 - noise_C, 0.0))
    return _split(proportions_MC.mean(axis=0), deviation_C, tau, dispersion, rule)


def dispersion_percent(
    mean_C: ArrayLike, deviation_C: ArrayLike, dispersion: Dispersion
) -> NDArray[np.float64]:
    """Return what is compared with tau, in percent. Shape (C,).

    The coefficient of variation of a class that nobody has is 0, as its deviation.

    Parameters
    ----------
    mean_C, deviation_C : ArrayLike
        Mean and deviation over clients of each class's proportion. Shape (C,).
    dispersion : str
        The deviation itself, or that over the mean. The paper takes the latter of counts; it
        is the same of proportions where all clients have as many labels.
    """
    mean, deviation = np.asarray(mean_C, np.float64), np.asarray(deviation_C, np.float64)
    if dispersion == "deviation":
        return 100.0 * deviation
    ratio_C = np.zeros_like(deviation)
    np.divide(deviation, mean, out=ratio_C, where=mean > 0)
    return 100.0 * ratio_C


def otsu_threshold(values_C: ArrayLike) -> float | None:
    """Return the middle of the neighbours between which Otsu's criterion parts values.

    Parameters
    ----------
    values_C : ArrayLike
        Finite values. Shape (C,).

    Returns
    -------
    float | None
        None where all values are equal up to rounding, or there is one.
    """
    neighbours = otsu_neighbours(values_C, TAU_TOLERANCE)
    return None if neighbours is None else (neighbours[0] + neighbours[1]) / 2


def statistics_from_sums(
    sum_C: ArrayLike,
    square_sum_C: ArrayLike,
    num_clients: int,
    tau: float,
    dispersion: Dispersion = "deviation",
    rule: TauRule = "fixed",
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
        Threshold of the dispersion in percent.
    dispersion : str
        What is compared with tau.
    rule : str
        As of `class_statistics`.

    Raises
    ------
    NoLabelledClients
        `num_clients` is 0.
    """
    _require_clients(num_clients)
    mean_C = np.asarray(sum_C, dtype=np.float64) / num_clients
    variance_C = np.asarray(square_sum_C, dtype=np.float64) / num_clients - mean_C**2
    # The subtraction may leave a negative rounding error where all clients agree.
    return _split(mean_C, np.sqrt(np.maximum(variance_C, 0.0)), tau, dispersion, rule)


def _sampling_variance(
    proportions_MC: NDArray[np.float64], effective_M: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the variance that sampling alone gives each class's proportion, over the clients.

    Of one label nobody can tell how far off it is. Shape (C,).
    """
    is_told_M = effective_M > 1
    if not is_told_M.any():
        return np.zeros(proportions_MC.shape[1])
    of_MC = proportions_MC[is_told_M] * (1 - proportions_MC[is_told_M])
    mean_C: NDArray[np.float64] = (of_MC / (effective_M[is_told_M, None] - 1)).mean(axis=0)
    return mean_C


def _require_clients(num_clients: int) -> None:
    if num_clients < 1:
        raise NoLabelledClients("no client has a labelled sample; label some before a selection")


def _split(
    mean_C: NDArray[np.float64],
    deviation_C: NDArray[np.float64],
    tau: float,
    dispersion: Dispersion,
    rule: TauRule,
) -> ClassStatistics:
    percent_C = dispersion_percent(mean_C, deviation_C, dispersion)
    if rule == "otsu":
        found = otsu_threshold(percent_C)
        tau = tau if found is None else found
    return ClassStatistics(mean_C, deviation_C, percent_C < tau - TAU_TOLERANCE, tau=tau)
