"""Whether a client's answer to `train` can be used."""

from __future__ import annotations

import math

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from ahfal_app.flat import FlatArrays
from ahfal_app.messages.answers import TrainAnswer
from ahfal_app.messages.arrays import decode_all, own_arrays
from ahfal_app.messages.fields import arrays_of, metrics_of
from ahfal_app.messages.keys import WEIGHT_KEY

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
        arrays = own_arrays(current)
        self.layout = arrays.layout
        self._parts = [_Part(arrays, dtype) for dtype, size in self.layout.sizes.items() if size]
        self.most = {
            name: float(most)
            for part in self._parts
            for name, most in zip(part.names, part.highest_A, strict=True)
        }

    def hold(self, arrays: FlatArrays) -> bool:
        """Return whether all values are finite and within the limits; in few passes over all."""
        return all(part.holds(arrays) for part in self._parts)


class _Part:
    """The limits of all arrays of one type that hold anything: A of them."""

    def __init__(self, current: FlatArrays, dtype: str) -> None:
        self._dtype = dtype
        layout = current.layout
        self.names = [name for name in layout.names[dtype] if math.prod(layout[name].shape)]
        self._starts_A = np.array([layout.place(name).start for name in self.names])
        least_A, most_A = self._extremes(current)
        # As floats, in which the smallest integer has an absolute value, too.
        largest_A = np.maximum(most_A.astype(np.float64), -least_A.astype(np.float64))
        self.highest_A = np.maximum(LARGEST_VALUE, LARGEST_GROWTH * largest_A)
        is_variance_A = np.array([name.endswith(_VARIANCE) for name in self.names])
        self._lowest_A = np.where(is_variance_A, 0.0, -self.highest_A)

    def holds(self, arrays: FlatArrays) -> bool:
        least_A, most_A = self._extremes(arrays)
        # What is not a number is neither below nor above anything.
        return bool(((least_A >= self._lowest_A) & (most_A <= self.highest_A)).all())

    def _extremes(self, arrays: FlatArrays) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        part = arrays.parts[self._dtype]
        return (
            np.minimum.reduceat(part, self._starts_A),
            np.maximum.reduceat(part, self._starts_A),
        )


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
    limits : Limits, optional
        The `Limits` of the global model, for whoever asks about several answers.
    """
    limits = Limits(current) if limits is None else limits
    try:
        record = arrays_of(content, "answer")
        answer = TrainAnswer.from_metrics(metrics_of(content))
        if answer.num_examples > most_examples:
            return (
                f"{WEIGHT_KEY}={answer.num_examples}: it has at most {most_examples} labels, by "
                "its own word"
            )
        if answer.num_examples == 0:
            return NO_LABELS
        if limits.hold(decode_all(record, limits.layout, finite=False)):
            return None
        arrays = decode_all(record, limits.layout)
    except ValueError as error:
        return str(error)
    problems = (_implausible(name, arrays[name], most) for name, most in limits.most.items())
    return next((problem for problem in problems if problem is not None), None)


def _implausible(name: str, array: NDArray[np.generic], most: float) -> str | None:
    """Return why no training can have given an array, which is finite, or None."""
    # As floats, in which the smallest integer has an absolute value, too.
    if (largest := max(float(array.max()), -float(array.min()))) > most:
        return f"array {name!r} has values of {largest:.3g}; allowed is at most {most:.3g}"
    if name.endswith(_VARIANCE) and array.min() < 0:
        return f"array {name!r} has values below 0, which no variance has"
    return None
