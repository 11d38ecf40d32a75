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
        self._recorder = recorder or CudaGraphs()
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
        except RuntimeError as error:
            if _is_for_memory(error):
                raise torch.OutOfMemoryError(str(error)) from error
            self._can_record = False
            warnings.warn(
                f"training steps cannot be recorded as a CUDA graph and run slower: {error}",
                stacklevel=2,
            )
        for tensor, value in zip(self._changed, before, strict=True):
            tensor.copy_(value)


class CudaGraphs:
    """Records steps as CUDA graphs that share one pool of memory.

    They may, since they are replayed one after the other and their losses are copied at once.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(
        self, step: Step, rates_k: Tensor, batch: Batch, mixed: MixedBatch | None
    ) -> Recording:
        """Record a step, after a few that let libraries choose their algorithms.

        Raises
        ------
        RuntimeError
            It holds something that a graph cannot.
        """
        # A graph records what is started on the thread's device, whatever its tensors are on.
        with torch.cuda.device(rates_k.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # torch has no types for its streams.
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP_STEPS):
                    step(rates_k, batch, mixed)
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Threads of clients that are not yet in turn may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                losses_k = step(rates_k, batch, mixed)
            return Recording(rates_k, batch, mixed, graph.replay, losses_k)


def _is_for_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it hides, is about memory.

    The end of a capture that ran out of memory fails, too, with an error of its own.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__context__
    return False


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
