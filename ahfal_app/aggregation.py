"""Averaging the clients' models, batch-norm statistics included.

Everything in a model's state is aggregated by one of Flower's strategies, weights and
batch-norm means and variances alike, as the paper's code base does. Integer counters
(`num_batches_tracked`) have no mean that is an integer: the largest one is taken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from ahfal_app.errors import QuorumNotReached

WEIGHT_KEY = "num-examples"
ARRAYS_KEY = "arrays"
METRICS_KEY = "metrics"

#: What `problem_with` says of a client that has nothing to train on yet.
NO_LABELS = "it has no labelled samples"


def make_aggregation(name: str) -> Strategy:
    """Return Flower's strategy that aggregates under the given name."""
    strategies = {"fedavg": FedAvg}
    return strategies[name](weighted_by_key=WEIGHT_KEY, arrayrecord_key=ARRAYS_KEY)


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
    examples, loss = metrics.get(WEIGHT_KEY), metrics.get("loss")
    if not isinstance(examples, int) or examples < 0:
        return f"{WEIGHT_KEY}={examples!r}: allowed is an integer ≥ 0"
    # Below 0, too: not every method's loss is an entropy.
    if not isinstance(loss, float) or not math.isfinite(loss):
        return f"loss={loss!r}: allowed is a finite number"
    if examples == 0:
        return NO_LABELS
    return _problem_with_arrays(content.array_records[ARRAYS_KEY], current)


def aggregate(
    aggregation: Strategy, round_: int, replies: Mapping[int, Message], current: ArrayRecord
) -> ArrayRecord:
    """Return the aggregate of usable answers, in the order and dtypes of the current model.

    Parameters
    ----------
    aggregation : Strategy
        From `make_aggregation`.
    round_ : int
        The round within the cycle, from 1.
    replies : Mapping[int, Message]
        Usable answers (`problem_with` returned None) by client, in increasing order, since
        sums of floats depend on the order. At least one.
    current : ArrayRecord
        The global model that the clients were sent.
    """
    received = [reply.content.array_records[ARRAYS_KEY] for reply in replies.values()]
    averaged = {name for name, array in current.items() if np.dtype(array.dtype).kind == "f"}
    for reply in replies.values():
        reply.content = _reduced(reply.content, averaged)
    with _quiet():
        mean, _ = aggregation.aggregate_train(round_, list(replies.values()))
    if mean is None:
        raise QuorumNotReached(f"round {round_}: {type(aggregation).__name__} gave no model")
    result = ArrayRecord()
    for name, array in current.items():
        if name in averaged:
            value = mean[name].numpy().astype(array.dtype, copy=False)
        else:
            value = np.max([record[name].numpy() for record in received], axis=0)
        result[name] = Array(np.asarray(value, dtype=array.dtype))
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's line for each aggregation out of the log; progress tells it better."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reduced(content: RecordDict, names: Collection[str]) -> RecordDict:
    """Return an answer with only what Flower's strategies average."""
    arrays, metrics = content.array_records[ARRAYS_KEY], content.metric_records[METRICS_KEY]
    return RecordDict(
        {
            ARRAYS_KEY: ArrayRecord({name: arrays[name] for name in arrays if name in names}),
            METRICS_KEY: MetricRecord({key: metrics[key] for key in (WEIGHT_KEY, "loss")}),
        }
    )


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
