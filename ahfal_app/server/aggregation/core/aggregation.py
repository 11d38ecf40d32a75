"""One aggregation over the rounds and cycles of a run."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.errors import NonFiniteModel, QuorumNotReached
from ahfal_app.messages.arrays import HeldArray, held_record, part_of
from ahfal_app.messages.keys import ARRAYS_KEY, LOSS_KEY, METRICS_KEY, WEIGHT_KEY
from ahfal_app.server.aggregation.core.base import COMMON
from ahfal_app.server.aggregation.core.requirements import make_aggregation
from ahfal_app.server.aggregation.core.server_state import ServerState, read_state, restore_state


class Aggregation:
    """Turns usable answers into the next global model, by the method that is set.

    Parameters
    ----------
    settings : Settings
        The aggregation and its parameters, `rounds` and `reset-model`.
    trainable : Collection[str]
        Names of the model's trainable parameters.
    state : Mapping[str, NDArray] | None
        The `state` of an interrupted run, after the rounds that it has done.
    """

    def __init__(
        self,
        settings: Settings,
        trainable: Collection[str],
        state: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> None:
        self._settings = settings
        self._trainable = sorted(trainable)
        self._method = make_aggregation(settings)
        self._current = ArrayRecord()
        self.reset()
        restore_state(self._aggregator, state or {})

    @property
    def state(self) -> ServerState:
        """What has to be kept besides the global model for an equal next round, by name."""
        return read_state(self._aggregator, self._trainable)

    def reset(self) -> None:
        """Forget all rounds before, since the model starts afresh."""
        with _quiet():
            self._aggregator = self._method.make()
            self._average = FedAvg(**COMMON)

    def configure_train(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> None:
        """Take note of the global model that clients are about to be sent."""
        self._current = arrays
        record = part_of(arrays, self._acted_on())
        self._aggregator.configure_train(server_round, record, ConfigRecord(), grid)

    def aggregate_train(self, cycle: int, round_: int, replies: Sequence[Message]) -> ArrayRecord:
        """Return the next global model, in the order and dtypes of the current one.

        Parameters
        ----------
        cycle, round_ : int
            From 0, and within the cycle from 1.
        replies : Sequence[Message]
            Usable answers (`problem_with` returned None) by increasing client, since sums of
            floats depend on the order. At least one. They are not changed.

        Raises
        ------
        QuorumNotReached
            There are fewer answers than the method needs.
        NonFiniteModel
            Finite models gave an aggregate, or a state of the server's optimiser, that is not.
        """
        where = f"cycle {cycle}, round {round_}"
        problem = self._method.shortage(len(replies))
        if problem is not None:
            raise QuorumNotReached(f"{where}: too few usable answers: {problem}")
        acted_on = self._acted_on()
        step, widen = self._step(cycle, round_), self._method.in_float64
        aggregated = _aggregated(self._aggregator, step, replies, acted_on, widen)
        if others := sorted(self._floating().difference(acted_on)):
            aggregated |= _aggregated(self._average, step, replies, others)
        received = [reply.content.array_records[ARRAYS_KEY] for reply in replies]
        result = {}
        with np.errstate(over="ignore"):
            for name, array in self._current.items():
                if name in aggregated:
                    value = aggregated[name]
                else:
                    value = np.max([record[name].numpy() for record in received], axis=0)
                result[name] = np.asarray(value, dtype=array.dtype)
        self._require_finite(result | self.state, where)
        return held_record(result)

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term that the method wants in the clients' loss."""
        return self._method.proximal_mu

    @property
    def can_merge(self) -> bool:
        """Whether one answer may stand for several: where their mean is all that counts."""
        return self._method.by_mean

    def merged(self, replies: Sequence[Message]) -> Message:
        """Return one answer with the mean of several usable ones, and their weight.

        Aggregates of such answers are those of the answers themselves, up to rounding, and a
        model for each client need not be kept.
        """
        names = sorted(self._floating())
        arrays = _aggregated(self._average, 1, replies, names)
        records = [reply.content.array_records[ARRAYS_KEY] for reply in replies]
        metrics = [reply.content.metric_records[METRICS_KEY] for reply in replies]
        merged = {}
        for name in records[0]:
            value = arrays.get(name)
            if value is None:
                value = np.max([record[name].numpy() for record in records], axis=0)
            merged[name] = np.asarray(value, dtype=records[0][name].dtype)
        # A record may hold lists, too; these two are numbers, and were checked to be.
        weights = np.array([float(record[WEIGHT_KEY]) for record in metrics])  # type: ignore[arg-type]
        losses = np.array([float(record[LOSS_KEY]) for record in metrics])  # type: ignore[arg-type]
        about: dict[str, int | float] = {
            WEIGHT_KEY: int(weights.sum()),
            LOSS_KEY: float(weights @ losses / weights.sum()),
        }
        message = copy.copy(replies[0])
        message.content = RecordDict(
            {ARRAYS_KEY: held_record(merged), METRICS_KEY: MetricRecord(dict(about))}
        )
        return message

    def _floating(self) -> set[str]:
        return {name for name, array in self._current.items() if np.dtype(array.dtype).kind == "f"}

    def _acted_on(self) -> list[str]:
        """Return the arrays that the method acts on; the others are averaged or counted.

        Sorted, since distances sum in this order, and it must be the same after a resume.
        """
        return self._trainable if self._method.trainable_only else sorted(self._floating())

    def _step(self, cycle: int, round_: int) -> int:
        """Return the number of this round since the model was fresh, from 1."""
        return round_ if self._settings.reset_model else cycle * self._settings.rounds + round_

    def _require_finite(self, arrays: ServerState, where: str) -> None:
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise NonFiniteModel(
                    f"{where}: aggregation={self._settings.aggregation!r} gave values of {name!r} "
                    "that are not finite; a client's model is far off, or a learning rate too high"
                )


class _Arrays(ArrayRecord):
    """Arrays that are never emptied to save memory.

    Flower's Bulyan asks each client's for it, and each time Python's garbage is collected,
    which takes longer than all of its arithmetic on a small network.
    """

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[NDArray[np.generic]]:
        """Return the arrays in order."""
        return super().to_numpy_ndarrays()


def _aggregated(
    aggregator: FedAvg,
    step: int,
    replies: Sequence[Message],
    names: Sequence[str],
    widen: bool = False,
) -> ServerState:
    """Return what Flower's strategy makes of some arrays, in the precision that it computes in."""
    # A mean is one of each number alone: all arrays of a type are averaged as a single one.
    joined = _Joined(replies, names) if type(aggregator) is FedAvg and not widen else None
    contents = (
        joined.contents if joined else [_reduced(reply.content, names, widen) for reply in replies]
    )
    messages = []
    for reply, content in zip(replies, contents, strict=True):
        message = copy.copy(reply)
        message.content = content
        messages.append(message)
    # An overflow is told as an error afterwards, by the name of the array.
    with _quiet(), np.errstate(over="ignore", invalid="ignore"):
        arrays, _ = aggregator.aggregate_train(step, messages)
    if arrays is None:
        raise QuorumNotReached(
            f"{type(aggregator).__name__} made no model of {len(replies)} answers"
        )
    result = {name: array.numpy() for name, array in arrays.items()}
    return joined.apart(result) if joined else result


class _Joined:
    """Answers in which all arrays of a type are one, and how to take it apart.

    Parameters
    ----------
    replies : Sequence[Message]
        Usable answers, all with the same arrays.
    names : Sequence[str]
        Which of the arrays.
    """

    def __init__(self, replies: Sequence[Message], names: Sequence[str]) -> None:
        arrays = replies[0].content.array_records[ARRAYS_KEY]
        self._names: dict[str, list[str]] = {}
        for name in names:
            self._names.setdefault(arrays[name].dtype, []).append(name)
        self._shapes = {name: tuple(arrays[name].shape) for name in names}
        self.contents = [self._joined(reply.content) for reply in replies]

    def _joined(self, content: RecordDict) -> RecordDict:
        arrays = content.array_records[ARRAYS_KEY]
        joined = {
            dtype: np.concatenate([arrays[name].numpy().ravel() for name in names])
            for dtype, names in self._names.items()
        }
        return RecordDict({ARRAYS_KEY: held_record(joined), METRICS_KEY: _metrics(content)})

    def apart(self, joined: ServerState) -> ServerState:
        """Return the arrays by their names, in the precision of what is joined."""
        result: ServerState = {}
        for dtype, names in self._names.items():
            ends = np.cumsum([math.prod(self._shapes[name]) for name in names])
            parts = np.split(joined[dtype], ends[:-1])
            result |= {
                name: part.reshape(self._shapes[name])
                for name, part in zip(names, parts, strict=True)
            }
        return result


def _reduced(content: RecordDict, names: Sequence[str], widen: bool) -> RecordDict:
    """Return an answer with only what Flower's strategies are to aggregate."""
    arrays = content.array_records[ARRAYS_KEY]
    reduced = _Arrays()
    for name in names:
        reduced[name] = (
            HeldArray(arrays[name].numpy().astype(np.float64)) if widen else arrays[name]
        )
    return RecordDict({ARRAYS_KEY: reduced, METRICS_KEY: _metrics(content)})


def _metrics(content: RecordDict) -> MetricRecord:
    metrics = content.metric_records[METRICS_KEY]
    return MetricRecord({key: metrics[key] for key in (WEIGHT_KEY, LOSS_KEY)})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's lines on each aggregation out of the log; progress tells it better."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
