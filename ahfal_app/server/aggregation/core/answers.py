"""Whether a client's answer to `train` can be used."""

from __future__ import annotations

import math

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from ahfal_app.messages.keys import ARRAYS_KEY, LOSS_KEY, METRICS_KEY, WEIGHT_KEY

#: What `problem_with` says of a client that has nothing to train on yet.
NO_LABELS = "it has no labelled samples"


def problem_with(content: RecordDict, current: ArrayRecord) -> str | None:
    """Return why a client's answer to `train` cannot be used, or None.

    Parameters
    ----------
    content : RecordDict
        The answer.
    current : ArrayRecord
        The global model that the client was sent, whose schema the answer must have.
    """
    if ARRAYS_KEY not in content.array_records or METRICS_KEY not in content.metric_records:
        return f"answer without {ARRAYS_KEY!r} and {METRICS_KEY!r}"
    metrics = content.metric_records[METRICS_KEY]
    examples, loss = metrics.get(WEIGHT_KEY), metrics.get(LOSS_KEY)
    if not isinstance(examples, int) or examples < 0:
        return f"{WEIGHT_KEY}={examples!r}: allowed is an integer ≥ 0"
    # Below 0, too: not every method's loss is an entropy.
    if not isinstance(loss, float) or not math.isfinite(loss):
        return f"{LOSS_KEY}={loss!r}: allowed is a finite number"
    if examples == 0:
        return NO_LABELS
    return _problem_with_arrays(content.array_records[ARRAYS_KEY], current)


def _problem_with_arrays(arrays: ArrayRecord, current: ArrayRecord) -> str | None:
    if set(arrays) != set(current):
        odd = sorted(set(arrays) ^ set(current))
        return f"arrays {odd[:3]} are missing or unknown"
    for name, expected in current.items():
        array = arrays[name]
        if tuple(array.shape) != tuple(expected.shape) or array.dtype != expected.dtype:
            return (
                f"array {name!r} is {array.dtype} {tuple(array.shape)}; "
                f"expected is {expected.dtype} {tuple(expected.shape)}"
            )
        try:
            value = array.numpy()
        except (ValueError, TypeError, EOFError, OSError) as error:
            return f"array {name!r} cannot be decoded: {error}"
        if value.shape != tuple(expected.shape) or str(value.dtype) != expected.dtype:
            return f"array {name!r} holds {value.dtype} {value.shape}, not what it declares"
        if not np.isfinite(value).all():
            return f"array {name!r} has values that are not finite"
    return None
