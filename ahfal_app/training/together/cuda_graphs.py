"""Training steps that are recorded once and replayed, without a call for each kernel.

A step of small networks is hundreds of kernels of a few microseconds each; started one by
one from Python, the GPU waits for most of the time.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ahfal_app.training.together.steps import Batch, MixedBatch

#: A training step; see `TogetherStep`.
Step = Callable[[Tensor, Batch, MixedBatch | None], Tensor]

_Group = TypeVar("_Group", Batch, MixedBatch)

_WARM_UP_STEPS = 3


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded step: where it reads, what replays it, where it leaves the losses."""

    rates_k: Tensor
    batch: Batch
    mixed: MixedBatch | None
    replay: Callable[[], None]
    losses_k: Tensor


#: Records a step on inputs at fixed places; it may take steps, and need not undo them.
Recorder = Callable[[Step, Tensor, Batch, MixedBatch | None], Recording]


class Replayed:
    """A step that is recorded for each shape of its inputs and replayed from then on.

    Where it cannot be recorded, it is taken as it is, and a warning says so.

    Parameters
    ----------
    step : Step
        Reads and changes tensors that stay where they are.
    changed : Sequence[Tensor]
        What a step changes; recording leaves it as it was.
    recorder : Recorder
        Records.
    """

    def __init__(
        self, step: Step, changed: Sequence[Tensor], recorder: Recorder | None = None
    ) -> None:
        self._step = step
        self._changed = tuple(changed)
        self._recorder = recorder or record_cuda_graph
        self._recordings: dict[tuple[object, ...], Recording] = {}
        self._can_record = True

    def __call__(self, rates_k: Tensor, batch: Batch, mixed: MixedBatch | None) -> Tensor:
        """Take a step; see `TogetherStep`."""
        key = tuple(None if t is None else t.shape for t in _tensors(rates_k, batch, mixed))
        if key not in self._recordings and self._can_record:
            self._record(key, rates_k, batch, mixed)
        recording = self._recordings.get(key)
        if recording is None:
            return self._step(rates_k, batch, mixed)
        places = _tensors(recording.rates_k, recording.batch, recording.mixed)
        for place, value in zip(places, _tensors(rates_k, batch, mixed), strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        recording.replay()
        return recording.losses_k.clone()

    def _record(
        self, key: tuple[object, ...], rates_k: Tensor, batch: Batch, mixed: MixedBatch | None
    ) -> None:
        before = [tensor.clone() for tensor in self._changed]
        own = rates_k.clone(), _cloned(batch), None if mixed is None else _cloned(mixed)
        try:
            self._recordings[key] = self._recorder(self._step, *own)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._can_record = False
            warnings.warn(
                f"training steps cannot be recorded as a CUDA graph and run slower: {error}",
                stacklevel=2,
            )
        for tensor, value in zip(self._changed, before, strict=True):
            tensor.copy_(value)


def record_cuda_graph(
    step: Step, rates_k: Tensor, batch: Batch, mixed: MixedBatch | None
) -> Recording:
    """Record a step as a CUDA graph, after a few that let libraries choose their algorithms.

    Raises
    ------
    RuntimeError
        It holds something that a graph cannot.
    """
    # torch has no types for its streams.
    current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP_STEPS):
            step(rates_k, batch, mixed)
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses_k = step(rates_k, batch, mixed)
    return Recording(rates_k, batch, mixed, graph.replay, losses_k)


def _tensors(rates_k: Tensor, batch: Batch, mixed: MixedBatch | None) -> list[Tensor | None]:
    values: list[Tensor | None] = [rates_k]
    for group in (batch, mixed):
        if group is not None:
            values += [getattr(group, field.name) for field in dataclasses.fields(group)]
    return values


def _cloned(group: _Group) -> _Group:
    clones: dict[str, Any] = {
        field.name: None if (value := getattr(group, field.name)) is None else value.clone()
        for field in dataclasses.fields(group)
    }
    return dataclasses.replace(group, **clones)
