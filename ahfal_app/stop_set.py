"""What a federation's predictions of its stop set say: sums that each client takes of its own.

A stop set is drawn once and its predictions are compared from cycle to cycle (Bloodgood and
Vijay-Shanker, A Method for Stopping Active Learning Based on Stabilizing Predictions, CoNLL 2009).
Sums are integers, so that they are the same however they are added up, and can be masked. Agreement
of the sums is the federation's; a mean of clients' kappas is not.

Shapes: N samples, C classes, E entries: samples that were predicted, the sum of their entropies,
samples that were compared, and the table of them: C x C, by the class predicted before (row) and
now (column), or beyond `MOST_TABLE_CLASSES` its diagonal and the sums of its rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.logits import finite_logits

#: Integers per unit of a sample's entropy, which is 1 where all classes are equally likely.
UNITS = 2**20

#: Beyond so many classes a whole table is too much to send.
MOST_TABLE_CLASSES = 200

#: A client with fewer samples of the stop set tells nothing of them: a table of one sample would be
#: its prediction.
FEWEST_SAMPLES = 10

_HEAD = 3


@dataclass(frozen=True)
class Observation:
    """How a cycle's predictions of the stop set are, and how they differ from the cycle before.

    Attributes
    ----------
    drawn : int
        Samples in the stop set of all clients of the run.
    predicted, compared : int
        Those that were predicted in this cycle, and in the one before, too.
    uncertainty : float | None
        Mean entropy of what was predicted, from 0 to 1 (divided by ln C); None without any.
    kappa : float | None
        Cohen's kappa of the two predictions, from -1 to 1; 1 where all are equal; None where none
        were compared, as the next three.
    changed : float | None
        Share whose predicted class changed.
    delta_f_macro, delta_f_worst : float | None
        Of the classes that are predicted at all: mean and largest of 1 - F, with the F-measure of
        one prediction against the other.
    """

    drawn: int
    predicted: int
    compared: int
    uncertainty: float | None = None
    kappa: float | None = None
    changed: float | None = None
    delta_f_macro: float | None = None
    delta_f_worst: float | None = None


def sums_size(num_classes: int) -> int:
    """Return how many entries E the sums have."""
    whole = num_classes <= MOST_TABLE_CLASSES
    return _HEAD + (num_classes**2 if whole else 3 * num_classes)


def entropy_units(logits_NC: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return each sample's entropy over ln C in integers, from 0 to `UNITS`. Shape (N,).

    Where a logit is no number all classes are as likely: a model that has come apart knows nothing.
    """
    scores_NC = finite_logits(logits_NC.astype(np.float64))
    scores_NC = scores_NC - scores_NC.max(axis=1, keepdims=True)
    log_sums_N = np.log(np.exp(scores_NC).sum(axis=1))
    expected_N = (np.exp(scores_NC - log_sums_N[:, None]) * scores_NC).sum(axis=1)
    shares_N = (log_sums_N - expected_N) / math.log(scores_NC.shape[1])
    units_N: NDArray[np.int64] = np.rint(np.clip(shares_N, 0.0, 1.0) * UNITS).astype(np.int64)
    return units_N


def prediction_sums(
    classes_N: NDArray[np.int64],
    entropies_N: NDArray[np.int64],
    before_N: NDArray[np.int64],
    num_classes: int,
) -> NDArray[np.int64]:
    """Return a client's sums, int64 (E,); all 0 of fewer than `FEWEST_SAMPLES`.

    Parameters
    ----------
    classes_N : NDArray[np.int64]
        Predicted classes.
    entropies_N : NDArray[np.int64]
        Of what was predicted, as of `entropy_units`.
    before_N : NDArray[np.int64]
        Classes that were predicted in the cycle before; -1 where none was.
    num_classes : int
        Number of classes.
    """
    sums_E = np.zeros(sums_size(num_classes), np.int64)
    if len(classes_N) < FEWEST_SAMPLES:
        return sums_E
    sums_E[:2] = len(classes_N), entropies_N.sum()
    is_compared_N = before_N >= 0
    if np.count_nonzero(is_compared_N) < FEWEST_SAMPLES:
        return sums_E
    cells_N = before_N[is_compared_N] * num_classes + classes_N[is_compared_N]
    table_CC = np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes)
    sums_E[2] = len(cells_N)
    parts = [table_CC.ravel()]
    if num_classes > MOST_TABLE_CLASSES:
        parts = [table_CC.diagonal(), table_CC.sum(axis=1), table_CC.sum(axis=0)]
    sums_E[_HEAD:] = np.concatenate(parts)
    return sums_E


def check_sums(sums_E: NDArray[np.int64], most: int, num_classes: int) -> None:
    """Check that these can be sums over at most so many samples.

    Raises
    ------
    ValueError
        They cannot.
    """
    predicted, entropy, compared = map(int, sums_E[:_HEAD])
    if not 0 <= compared <= predicted <= most:
        raise ValueError(
            f"{predicted} predictions, {compared} compared: allowed is at most {most} of the stop "
            "set, and no more compared than predicted"
        )
    # Before anything is added up, that no sum overflows.
    if not 0 <= entropy <= predicted * UNITS or (sums_E < 0).any():
        raise ValueError("predictions: sums that no predictions have")
    if (sums_E[_HEAD:] > compared).any():
        raise ValueError(f"predictions: a count above the {compared} that were compared")
    diagonal_C, before_C, now_C = _margins(sums_E, num_classes)
    fits = int(before_C.sum()) == int(now_C.sum()) == compared
    if not fits or (diagonal_C > np.minimum(before_C, now_C)).any():
        raise ValueError("predictions: counts that do not add up")


def observe(sums_E: NDArray[np.int64], drawn: int, num_classes: int) -> Observation:
    """Return what sums that passed `check_sums` say.

    Parameters
    ----------
    sums_E : NDArray[np.int64]
        Over all clients.
    drawn : int
        Samples in the stop set of all clients.
    num_classes : int
        Number of classes.
    """
    predicted, entropy, compared = map(int, sums_E[:_HEAD])
    uncertainty = entropy / (predicted * UNITS) if predicted else None
    if not compared:
        return Observation(drawn, predicted, 0, uncertainty)
    diagonal_C, before_C, now_C = _margins(sums_E, num_classes)
    same = int(diagonal_C.sum())
    # Python's integers, which are exact whatever they are.
    by_chance = sum(a * b for a, b in zip(before_C.tolist(), now_C.tolist(), strict=True))
    most = compared**2 - by_chance
    both_C = before_C + now_C
    is_there_C = both_C > 0
    delta_C = 1 - 2 * diagonal_C[is_there_C] / both_C[is_there_C]
    return Observation(
        drawn,
        predicted,
        compared,
        uncertainty,
        kappa=(compared * same - by_chance) / most if most else 1.0,
        changed=(compared - same) / compared,
        delta_f_macro=float(delta_C.mean()),
        delta_f_worst=float(delta_C.max()),
    )


def _margins(
    sums_E: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the table's diagonal and the sums of its rows and of its columns, each (C,)."""
    table_T = sums_E[_HEAD:]
    if num_classes > MOST_TABLE_CLASSES:
        diagonal_C, before_C, now_C = table_T.reshape(3, num_classes)
        return diagonal_C, before_C, now_C
    table_CC = table_T.reshape(num_classes, num_classes)
    return table_CC.diagonal(), table_CC.sum(axis=1), table_CC.sum(axis=0)
