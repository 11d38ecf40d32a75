"""Sums over labelled samples from which every metric follows, and which add up over test sets.

They are integers, so that they are the same in whatever order they are added, and can be masked.
They say nothing of a sample's place in its test set; of a test set of one sample they say all.

Shapes: N samples, C classes, K bins of confidence, B bins of log-odds, D entries of the vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.logits import finite_logits

#: Bins of equal width by the highest probability, for calibration.
CONFIDENCE_BINS = 15

#: Bins of a class's log-odds ln(p / (1 - p)), for the area under the ROC curve, around those of a
#: model that knows nothing, -ln(C - 1), and up to 16 on either side; what lies beyond is in the
#: outermost ones. They are 0.01 wide in the middle, where a weak model's predictions lie close
#: together, 0.15 at a distance of 4, and 0.6 at the ends: equal in asinh(4 x).
RANK_BINS = 256
_RANK_REACH = 16.0
_RANK_BEND = 4.0

#: Integers per unit of a summed loss or confidence.
UNITS = 2**20

#: A sample's loss counts as at most this, in nats: a probability of 1.6e-28.
MOST_LOSS = 64.0

_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class EvaluationSums:
    """What a test comes to.

    Attributes
    ----------
    confusion_CC : NDArray[np.int64]
        Samples by true class (row) and predicted class (column).
    loss_units : int
        Cross-entropy of all samples together, each at most `MOST_LOSS`, in units of 2^-20.
    calibration_3K : NDArray[np.int64]
        By the bin of the highest probability: samples, those predicted rightly, and the sum of
        these probabilities in units of 2^-20. Bin k holds what lies above k / K, up to and with
        (k + 1) / K.
    ranks_2CB : NDArray[np.int64]
        For each class, by the bin of its log-odds: the samples of the class, and all samples.
    """

    confusion_CC: NDArray[np.int64]
    loss_units: int
    calibration_3K: NDArray[np.int64]
    ranks_2CB: NDArray[np.int64]

    @property
    def num_samples(self) -> int:
        """Samples N that were tested."""
        return int(self.confusion_CC.sum())

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats; None of nothing."""
        return self.loss_units / UNITS / self.num_samples if self.num_samples else None

    @classmethod
    def nothing(cls, num_classes: int) -> EvaluationSums:
        """Return the sums over no samples."""
        return cls(
            np.zeros((num_classes, num_classes), np.int64),
            0,
            np.zeros((3, CONFIDENCE_BINS), np.int64),
            np.zeros((2, num_classes, RANK_BINS), np.int64),
        )

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        """Return the sums over both test sets."""
        return EvaluationSums(
            self.confusion_CC + other.confusion_CC,
            self.loss_units + other.loss_units,
            self.calibration_3K + other.calibration_3K,
            self.ranks_2CB + other.ranks_2CB,
        )

    @classmethod
    def total(cls, parts: Iterable[EvaluationSums], num_classes: int) -> EvaluationSums:
        """Return the sums over several test sets, which may be none."""
        whole = cls.nothing(num_classes)
        for part in parts:
            whole += part
        return whole

    def to_vector(self) -> NDArray[np.int64]:
        """Return all of it as one vector (D,), which begins with the number of samples."""
        return np.concatenate(
            [
                [self.num_samples],
                self.confusion_CC.ravel(),
                [self.loss_units],
                self.calibration_3K.ravel(),
                self.ranks_2CB.ravel(),
            ]
        ).astype(np.int64)

    @classmethod
    def from_vector(
        cls, vector_D: NDArray[np.int64], num_classes: int, most: int
    ) -> EvaluationSums:
        """Return the sums that somebody else has sent, checked.

        Parameters
        ----------
        vector_D : NDArray[np.int64]
            As `to_vector` makes it.
        num_classes : int
            Number of classes C.
        most : int
            The most samples that there can be.

        Raises
        ------
        ValueError
            No test of up to so many samples comes to this.
        """
        size = vector_size(num_classes)
        if vector_D.shape != (size,):
            raise ValueError(f"sums of {len(vector_D)} numbers: allowed are {size}")
        if (vector_D < 0).any():
            raise ValueError("sums below 0: allowed are counts")
        ends = np.cumsum([1, num_classes**2, 1, 3 * CONFIDENCE_BINS])
        count, confusion, loss, calibration, ranks = np.split(vector_D, ends)
        sums = cls(
            confusion.reshape(num_classes, num_classes),
            int(loss[0]),
            calibration.reshape(3, CONFIDENCE_BINS),
            ranks.reshape(2, num_classes, RANK_BINS),
        )
        sums._check(int(count[0]), most)
        return sums

    def _check(self, count: int, most: int) -> None:
        if count > most:
            raise ValueError(f"{count} samples tested: allowed is at most {most}")
        # Each on its own, since sums of what is not bounded yet could wrap around.
        counts = (self.confusion_CC, self.calibration_3K[:2], self.ranks_2CB)
        if any((each > count).any() for each in counts):
            raise ValueError(f"sums: more than {count} samples in one place")
        tested, right, confidence = self.calibration_3K
        lower_K = np.arange(CONFIDENCE_BINS) / CONFIDENCE_BINS
        upper_K = lower_K + 1 / CONFIDENCE_BINS
        slack_K = tested * (UNITS * 1e-6 + 1)
        is_one_test = (
            self.num_samples == count
            and tested.sum() == count
            and right.sum() == self.confusion_CC.trace()
            and (right <= tested).all()
            and (confidence >= tested * lower_K * UNITS - slack_K).all()
            and (confidence <= tested * upper_K * UNITS + slack_K).all()
            and (self.ranks_2CB[0] <= self.ranks_2CB[1]).all()
            and (self.ranks_2CB[0].sum(axis=1) == self.confusion_CC.sum(axis=1)).all()
            and (self.ranks_2CB[1].sum(axis=1) == count).all()
            and self.loss_units <= count * MOST_LOSS * UNITS
        )
        if not is_one_test:
            raise ValueError("sums that contradict each other: no test comes to them")


def vector_size(num_classes: int) -> int:
    """Return the number of entries D of the sums as a vector."""
    return 2 + num_classes**2 + 3 * CONFIDENCE_BINS + 2 * num_classes * RANK_BINS


def evaluation_sums(
    logits_NC: NDArray[np.floating],
    labels_N: NDArray[np.int64],
    predicted_N: NDArray[np.int64] | None = None,
) -> EvaluationSums:
    """Return what a model's logits for labelled samples come to.

    Parameters
    ----------
    logits_NC : NDArray[np.floating]
        Logits, or log-probabilities.
    labels_N : NDArray[np.int64]
        True classes.
    predicted_N : NDArray[np.int64] | None
        Predicted classes; None: those of the largest logits.
    """
    num_classes = logits_NC.shape[1]
    if predicted_N is None:
        predicted_N = logits_NC.argmax(axis=1)
    total = EvaluationSums.nothing(num_classes)
    for start in range(0, len(labels_N), _BLOCK):
        block = slice(start, start + _BLOCK)
        total += _of_block(logits_NC[block].astype(np.float64), labels_N[block], predicted_N[block])
    return total


def _of_block(
    logits_NC: NDArray[np.float64], labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64]
) -> EvaluationSums:
    count, num_classes = logits_NC.shape
    logits_NC = finite_logits(logits_NC)
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    log_p_NC = shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))
    losses_N = np.minimum(-log_p_NC[np.arange(count), labels_N], MOST_LOSS)
    cells_N = labels_N * num_classes + predicted_N
    confusion = np.bincount(cells_N, minlength=num_classes**2)
    return EvaluationSums(
        confusion.reshape(num_classes, num_classes).astype(np.int64),
        int(np.rint(losses_N * UNITS).astype(np.int64).sum()),
        _calibration(np.exp(log_p_NC.max(axis=1)), predicted_N == labels_N),
        _ranks(log_p_NC, labels_N),
    )


def _calibration(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]
) -> NDArray[np.int64]:
    bins_N = np.clip(np.ceil(confidence_N * CONFIDENCE_BINS).astype(np.int64) - 1, 0, None)
    bins_N = np.minimum(bins_N, CONFIDENCE_BINS - 1)
    units_N = np.rint(confidence_N * UNITS)
    rows = (np.ones(len(bins_N)), right_N.astype(np.float64), units_N)
    counted = [np.bincount(bins_N, weights=row, minlength=CONFIDENCE_BINS) for row in rows]
    return np.stack(counted).astype(np.int64)


def rank_bins(odds_NC: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bins of log-odds of C classes, from 0; infinite ones are in the outermost."""
    middle = -np.log(max(1, odds_NC.shape[1] - 1))
    end = np.arcsinh(_RANK_BEND * _RANK_REACH)
    places_NC = np.arcsinh(_RANK_BEND * (odds_NC - middle)).clip(-end, end)
    bins_NC = np.floor((places_NC + end) * (RANK_BINS / (2 * end))).astype(np.int64)
    found_NC: NDArray[np.int64] = np.minimum(bins_NC, RANK_BINS - 1)
    return found_NC


def _ranks(log_p_NC: NDArray[np.float64], labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    num_classes = log_p_NC.shape[1]
    # ln(1 - p) by what the other classes have is lost where p is 1 to the last digit; there the
    # odds are beyond the last bin's edge anyway.
    with np.errstate(divide="ignore"):
        odds_NC = log_p_NC - np.log(-np.expm1(log_p_NC))
    bins_NC = rank_bins(odds_NC)
    cells_NC = np.arange(num_classes) * RANK_BINS + bins_NC
    size = num_classes * RANK_BINS
    own_N = cells_NC[np.arange(len(labels_N)), labels_N]
    counted = [np.bincount(cells, minlength=size) for cells in (own_N, cells_NC.ravel())]
    return np.stack(counted).reshape(2, num_classes, RANK_BINS).astype(np.int64)
