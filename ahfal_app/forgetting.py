"""Class counts in which older labels count less, and how few labels such counts are worth.

Shapes: K clients, T cycles, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Clients whose labels weigh less than this together have none that count.
LEAST_WEIGHT = 1e-9


def weights(num_cycles: int, half_life: float) -> NDArray[np.float64]:
    """Return what labels of the cycles 0 to T - 1 weigh in the last one: 2^(-age / half-life).

    Parameters
    ----------
    num_cycles : int
        T, at least 1.
    half_life : float
        In cycles; 0: all weigh 1.
    """
    if not half_life:
        return np.ones(num_cycles)
    age_T = np.arange(num_cycles - 1, -1, -1, dtype=np.float64)
    return np.exp2(-age_T / half_life)


def forgotten_counts(counts_TC: ArrayLike, half_life: float) -> NDArray[np.float64]:
    """Return class counts in which a label weighs half as much after each half-life.

    The same as ñ(t) = λ ñ(t - 1) + Δn(t) with λ = 2^(-1 / half-life). Zeros where all weigh less
    than `LEAST_WEIGHT` together.

    Parameters
    ----------
    counts_TC : array_like
        Labels by the cycle from which on they count, and by class; the last row is now.
    half_life : float
        In cycles; 0: nothing is forgotten.
    """
    counts = np.asarray(counts_TC, np.float64)
    found_C: NDArray[np.float64] = weights(len(counts), half_life) @ counts
    # Noisy counts may be below 0, and weigh something all the same.
    return found_C if np.abs(found_C).sum() >= LEAST_WEIGHT else np.zeros_like(found_C)


def effective_size(labels_T: ArrayLike, half_life: float) -> float:
    """Return how many equally weighted labels say as much: (Σ w)² / Σ w²; 0 without labels.

    Kish's effective sample size.

    Parameters
    ----------
    labels_T : array_like
        Labels by the cycle from which on they count; the last is now.
    half_life : float
        In cycles; 0: nothing is forgotten.
    """
    labels = np.asarray(labels_T, np.float64)
    weights_T = weights(len(labels), half_life)
    squares = float(weights_T**2 @ labels)
    return float(weights_T @ labels) ** 2 / squares if squares >= LEAST_WEIGHT**2 else 0.0


def sampling_deviation(proportion: float, effective: float) -> float:
    """Return the deviation over equal clients that a class has by sampling alone.

    √(p (1 - p) / N): what σ would be, about, if all clients had the same mix.

    Parameters
    ----------
    proportion : float
        The class's share p.
    effective : float
        Effective sample size N of each client, above 0.
    """
    return math.sqrt(proportion * (1 - proportion) / effective)


def bias_warning(mean_C: ArrayLike, effective_K: ArrayLike, tau: float) -> str:
    """Return a warning where σ may be sampling noise; empty where it is not.

    That is where sampling alone gives the median class at the median client more than half of τ.

    Parameters
    ----------
    mean_C : array_like
        Mean proportion of each class.
    effective_K : array_like
        Effective sample sizes of clients with labels.
    tau : float
        Threshold of the deviation, in percentage points.
    """
    sizes = np.asarray(effective_K, np.float64)
    if not (sizes > 0).any():
        return ""
    size, share = float(np.median(sizes[sizes > 0])), float(np.median(np.asarray(mean_C)))
    noise = 100 * sampling_deviation(share, size)
    if noise <= tau / 2:
        return ""
    return (
        f"a client's labels count as {size:.1f} effective ones, of which sampling alone gives the "
        f"median class a deviation of {noise:.1f} points, more than half of tau={tau:g}"
    )
