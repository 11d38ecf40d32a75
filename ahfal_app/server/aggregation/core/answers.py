"""Whether a client's answer to `train` can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from ahfal_app.messages.answers import TrainAnswer
from ahfal_app.messages.arrays import decode_all, forms_of
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY, WEIGHT_KEY

#: What `problem_with` says of a client that has nothing to train on yet.
NO_LABELS = "it has no labelled samples"

#: No training that goes well gives a value beyond this, or beyond so many times the largest value
#: that the array had before.
LARGEST_VALUE = 1e6
LARGEST_GROWTH = 1e3

# What PyTorch's normalisations call their running variances.
_VARIANCE = "running_var"


class Limits:
    """What the values of an answer to a global model may be.

    Parameters
    ----------
    current : ArrayRecord
        The global model that the client was sent.
    """

    def __init__(self, current: ArrayRecord) -> None:
        self.most = {
            name: max(LARGEST_VALUE, LARGEST_GROWTH * _largest(array.numpy()))
            for name, array in current.items()
        }
        by_type: dict[str, list[str]] = {}
        for name, array in current.items():
            if math.prod(array.shape):
                by_type.setdefault(array.dtype, []).append(name)
        self._parts = [self._part(names, current) for names in by_type.values()]

    def _part(self, names: list[str], current: ArrayRecord) -> _Part:
        sizes = [math.prod(current[name].shape) for name in names]
        highest_A = np.array([self.most[name] for name in names])
        is_variance_A = np.array([name.endswith(_VARIANCE) for name in names])
        starts_A = np.cumsum([0, *sizes[:-1]])
        return _Part(names, starts_A, np.where(is_variance_A, 0.0, -highest_A), highest_A)

    def hold(self, arrays: Mapping[str, NDArray[np.generic]]) -> bool:
        """Return whether all values are finite and within the limits; in few passes over all."""
        return all(part.holds(arrays) for part in self._parts)


@dataclass(frozen=True, eq=False)
class _Part:
    """Arrays of one type, as if they were one: A of them, where each starts, and its limits."""

    names: list[str]
    starts_A: NDArray[np.int64]
    lowest_A: NDArray[np.float64]
    highest_A: NDArray[np.float64]

    def holds(self, arrays: Mapping[str, NDArray[np.generic]]) -> bool:
        joined = np.concatenate([arrays[name].ravel() for name in self.names])
        least_A = np.minimum.reduceat(joined, self.starts_A)
        most_A = np.maximum.reduceat(joined, self.starts_A)
        # What is not a number is neither below nor above anything.
        return bool(((least_A >= self.lowest_A) & (most_A <= self.highest_A)).all())


def problem_with(
    content: RecordDict,
    current: ArrayRecord,
    most_examples: int,
    limits: Limits | None = None,
) -> str | None:
    """Return why a client's answer to `train` cannot be used, or None.

    Parameters
    ----------
    content : RecordDict
        The answer.
    current : ArrayRecord
        The global model that the client was sent, whose schema the answer must have.
    most_examples : int
        Labelled samples that the client may have trained on.
    limits : Mapping[str, float], optional
        The `Limits` of the global model, for whoever asks about several answers.
    """
    limits = Limits(current) if limits is None else limits
    if ARRAYS_KEY not in content.array_records:
        return f"answer without {ARRAYS_KEY!r}"
    try:
        answer = TrainAnswer.from_metrics(metrics_of(content))
        if answer.num_examples > most_examples:
            return (
                f"{WEIGHT_KEY}={answer.num_examples}: it has at most {most_examples} labels, by "
                "its own word"
            )
        if answer.num_examples == 0:
            return NO_LABELS
        record, forms = content.array_records[ARRAYS_KEY], forms_of(current)
        if limits.hold(decode_all(record, forms, finite=False)):
            return None
        arrays = decode_all(record, forms)
    except ValueError as error:
        return str(error)
    problems = (_implausible(name, array, limits.most[name]) for name, array in arrays.items())
    return next((problem for problem in problems if problem is not None), None)


def _implausible(name: str, array: NDArray[np.generic], most: float) -> str | None:
    """Return why no training can have given an array, which is finite, or None."""
    if not array.size:
        return None
    if (largest := _largest(array)) > most:
        return f"array {name!r} has values of {largest:.3g}; allowed is at most {most:.3g}"
    if name.endswith(_VARIANCE) and array.min() < 0:
        return f"array {name!r} has values below 0, which no variance has"
    return None


def _largest(array: NDArray[np.generic]) -> float:
    if not array.size:
        return 0.0
    # As floats, in which the smallest integer has an absolute value, too.
    return max(float(array.max()), -float(array.min()))
