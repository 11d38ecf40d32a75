"""One aggregation over the rounds and cycles of a run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.errors import NonFiniteModel, QuorumNotReached
from ahfal_app.flat import FlatArrays, Layout
from ahfal_app.messages.answers import TrainAnswer
from ahfal_app.messages.arrays import (
    FlatRecord,
    HeldArray,
    decode_all,
    first_not_finite,
    layout_of,
    part_of,
)
from ahfal_app.messages.fields import arrays_of, metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY, LOSS_KEY, METRICS_KEY, WEIGHT_KEY
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
        self._layout = Layout.of({})
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

    def configure_train(self, server_round: int, arrays: ArrayRecord, grid: Grid) -> None:
        """Take note of the global model that clients are about to be sent."""
        self._layout = layout_of(arrays)
        if not self._is_mean:
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
        result = self._averaged(replies)
        if not self._is_mean:
            step, widen = self._step(cycle, round_), self._method.in_float64
            aggregated = _aggregated(self._aggregator, step, replies, self._acted_on(), widen)
            with np.errstate(over="ignore"):
                for name, value in aggregated.items():
                    result[name][...] = value
        self._require_finite(result, where)
        return FlatRecord(result)

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
        metrics = [metrics_of(reply.content) for reply in replies]
        # A record may hold lists, too; these two are numbers, and were checked to be.
        weights = np.array([float(record[WEIGHT_KEY]) for record in metrics])  # type: ignore[arg-type]
        losses = np.array([float(record[LOSS_KEY]) for record in metrics])  # type: ignore[arg-type]
        about: dict[str, int | float] = {
            WEIGHT_KEY: int(weights.sum()),
            LOSS_KEY: float(weights @ losses / weights.sum()),
        }
        message = copy.copy(replies[0])
        message.content = RecordDict(
            {
                ARRAYS_KEY: FlatRecord(self._averaged(replies)),
                METRICS_KEY: MetricRecord(dict(about)),
            }
        )
        return message

    @property
    def _is_mean(self) -> bool:
        """Whether the method is the weighted mean of the answers, and nothing besides."""
        return type(self._aggregator) in (FedAvg, FedProx)

    def _averaged(self, replies: Sequence[Message]) -> FlatArrays:
        """Return the weighted mean of what is floating, and the largest of what is counted."""
        answers = [
            decode_all(arrays_of(reply.content), self._layout, finite=False) for reply in replies
        ]
        weights = [
            TrainAnswer.from_metrics(metrics_of(reply.content)).num_examples for reply in replies
        ]
        parts = {}
        for dtype in self._layout.sizes:
            values = [answer.parts[dtype] for answer in answers]
            is_floating = np.dtype(dtype).kind == "f"
            parts[dtype] = weighted_mean(values, weights) if is_floating else np.max(values, axis=0)
        return FlatArrays(self._layout, parts)

    def _acted_on(self) -> list[str]:
        """Return the arrays that the method acts on; the others are averaged or counted.

        Sorted, since distances sum in this order, and it must be the same after a resume.
        """
        if self._method.trainable_only:
            return self._trainable
        forms = self._layout.items()
        return sorted(name for name, form in forms if np.dtype(form.dtype).kind == "f")

    def _step(self, cycle: int, round_: int) -> int:
        """Return the number of this round since the model was fresh, from 1."""
        return round_ if self._settings.reset_model else cycle * self._settings.rounds + round_

    def _require_finite(self, model: FlatArrays, where: str) -> None:
        state = {name: array for name, array in self.state.items() if not np.isfinite(array).all()}
        name = next(iter(state), first_not_finite(model))
        if name is not None:
            raise NonFiniteModel(
                f"{where}: aggregation={self._settings.aggregation!r} gave values of {name!r} "
                "that are not finite; a client's model is far off, or a learning rate too high"
            )


def weighted_mean(values: Sequence[NDArray[Any]], weights: Sequence[int]) -> NDArray[Any]:
    """Return the mean of arrays of one shape and type, as Flower's `FedAvg` computes it.

    To the last bit: each is multiplied by its share of the weights, and added in order. What
    overflows is infinite.
    """
    total = sum(weights)
    with np.errstate(over="ignore", invalid="ignore"):
        mean: NDArray[Any] = values[0] * (weights[0] / total)
        weighted = np.empty_like(mean)
        for value, weight in zip(values[1:], weights[1:], strict=True):
            mean += np.multiply(value, weight / total, out=weighted)
    return mean


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
    messages = []
    for reply in replies:
        message = copy.copy(reply)
        message.content = _reduced(reply.content, names, widen)
        messages.append(message)
    # An overflow is told as an error afterwards, by the name of the array.
    with _quiet(), np.errstate(over="ignore", invalid="ignore"):
        arrays, _ = aggregator.aggregate_train(step, messages)
    if arrays is None:
        raise QuorumNotReached(
            f"{type(aggregator).__name__} made no model of {len(replies)} answers"
        )
    return {name: array.numpy() for name, array in arrays.items()}


def _reduced(content: RecordDict, names: Sequence[str], widen: bool) -> RecordDict:
    """Return an answer with only what Flower's strategies are to aggregate."""
    arrays = arrays_of(content)
    reduced = _Arrays()
    for name in names:
        reduced[name] = (
            HeldArray(arrays[name].numpy().astype(np.float64)) if widen else arrays[name]
        )
    return RecordDict({ARRAYS_KEY: reduced, METRICS_KEY: _metrics(content)})


def _metrics(content: RecordDict) -> MetricRecord:
    metrics = metrics_of(content)
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
