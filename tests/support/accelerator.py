"""An accelerator that is none: its tensors compute on the CPU, but behave as a GPU's would.

What a GPU refuses is refused: operators whose tensors lie on both sides, and a GPU's tensor as a
NumPy array. What a GPU's program is slow by is counted, by the line of the package that asked for
it: transfers, and moments at which the host waits for the device.

Not covered: autocast, which PyTorch has no table of operators for here, so that runs are fp32.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from ahfal_app.engine.in_process import InProcessGrid

NAME = "pretend"

aten = torch.ops.aten

#: Operators of which indices may lie on the CPU.
_INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}

#: Operators whose result's size depends on values, or that give a value to the host.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}

#: Operators that take no tensor of the CPU, not even a single number.
_STRICT = {"aten::mm", "aten::bmm", "aten::cat", "aten::stack", "aten::gather", "aten::scatter_"}


class _Module(_DummyBackendModule):  # type: ignore[misc]
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


# Once in a process, and before there is a device of this name.
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())

DEVICE = torch.device(NAME, 0)


class Event(NamedTuple):
    """What happened between host and device, and where in the package."""

    what: str
    line: str


class PretendTensor(Tensor):
    """A tensor of the accelerator; its numbers are in a tensor of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner.detach()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        accelerator = getattr(_entered, "accelerator", None)
        if accelerator is None:
            raise RuntimeError(f"{func}: a tensor of the accelerator, used outside of it")
        return accelerator.computed(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, object]) -> PretendTensor:
        if id(self) not in memo:
            memo[id(self)] = PretendTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        copied = memo[id(self)]
        assert isinstance(copied, PretendTensor)
        return copied

    @property
    def data(self) -> Tensor:
        """The numbers, without gradient; what is set moves with its numbers, not by name alone."""
        return self.detach()

    @data.setter
    def data(self, value: PretendTensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def __repr__(self, **kwargs: object) -> str:
        return f"PretendTensor({self.inner})"

    def numpy(self, **kwargs: object) -> Any:
        raise TypeError("can't convert a device's tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *args: object, **kwargs: object) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        _entered.accelerator.note("wait")
        return self.inner.tolist()

    def new_tensor(self, data: object, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=kwargs.get("dtype", self.dtype)).to(DEVICE)


_entered = threading.local()


class Accelerator:
    """Runs what is inside `entered()` with tensors of the accelerator; counts events."""

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter()
        self.is_capturing = False
        # Pinned memory is kept, so that none of its addresses comes again for other memory.
        self._pinned: dict[int, Tensor] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread compute on the accelerator what lies there."""
        with ExitStack() as stack:
            before = getattr(_entered, "accelerator", None)
            _entered.accelerator = self
            stack.callback(setattr, _entered, "accelerator", before)
            stack.enter_context(_Dispatch(self))
            stack.enter_context(_Functions(self))
            yield

    def count(self, what: str) -> int:
        """Return how often something happened, on whatever line."""
        return sum(times for event, times in self.events.items() if event.what == what)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Refuse every event, as the capture of a CUDA graph does."""
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False

    def note(self, what: str) -> None:
        """Count an event."""
        event = Event(what, _line())
        if self.is_capturing:
            raise RuntimeError(f"{event}: not permitted while a step is captured")
        self.events[event] += 1

    def pinned(self, tensor: Tensor) -> Tensor:
        """Return a copy in memory that the device can read by itself."""
        copied = tensor.clone()
        self._pinned[copied.untyped_storage().data_ptr()] = copied
        return copied

    def computed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> object:
        """Return an operator's result, computed on the CPU."""
        if func is aten._to_copy.default:
            return self._copied_to(args[0], kwargs)
        if func is aten.copy_.default:
            return self._copied(*args[:2], non_blocking=_is_non_blocking(args, kwargs))
        name = func._schema.name
        leaves = tree_leaves((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
        if ours and name in _WAITING:
            self.note("wait")
        if func in _INDEXING:
            self._check_indices(func, args)
        elif ours:
            _check_devices(func, leaves)
        return _wrapped(func, args, kwargs, bool(ours))

    def _copied_to(self, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        rest = dict(kwargs)
        target = torch.device(rest.pop("device", None) or source.device)
        non_blocking = bool(rest.pop("non_blocking", False))
        rest.pop("pin_memory", None)
        result = aten._to_copy.default(_inner(source), **rest, device="cpu")
        if isinstance(source, PretendTensor) and target.type == "cpu":
            self.note("wait")
            self.note("download")
        elif not isinstance(source, PretendTensor) and target.type == NAME:
            self._note_upload(source, non_blocking)
        return PretendTensor(result) if target.type == NAME else result

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        if isinstance(source, PretendTensor) and not isinstance(target, PretendTensor):
            self.note("download")
            if not (non_blocking and self._is_pinned(target)):
                self.note("wait")
        elif isinstance(target, PretendTensor) and not isinstance(source, PretendTensor):
            self._note_upload(source, non_blocking)
        _inner(target).copy_(_inner(source))
        return target

    def _note_upload(self, source: Tensor, non_blocking: bool) -> None:
        self.note("upload")
        if not (non_blocking and self._is_pinned(source)):
            self.note("wait")

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _check_indices(self, func: Any, args: Any) -> None:
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], PretendTensor):
            if any(isinstance(index, PretendTensor) for index in indices):
                raise RuntimeError(f"{func}: a tensor of the CPU, indexed by one of the device")
            return
        for index in indices:
            if not isinstance(index, PretendTensor):
                self.note("upload")
                self.note("wait")
            elif index.dtype in (torch.bool, torch.uint8):
                self.note("wait")
        if len(args) > 2 and not isinstance(args[2], PretendTensor) and args[2].dim():
            raise RuntimeError(f"{func}: values of the CPU, put into a tensor of the device")


class _Dispatch(TorchDispatchMode):
    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self._accelerator = accelerator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if any(isinstance(leaf, PretendTensor) for leaf in tree_leaves((args, kwargs))) or (
            device is not None and torch.device(device).type == NAME
        ):
            return self._accelerator.computed(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """What reaches the device below the dispatcher."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self._accelerator = accelerator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is Tensor.pin_memory:
            return self._accelerator.pinned(args[0])
        if func is torch.empty and kwargs.pop("pin_memory", False):
            return self._accelerator.pinned(func(*args, **kwargs))
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            del kwargs["device"]
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class AcceleratorGrid(InProcessGrid):
    """The grid of this process, whose threads compute on an accelerator."""

    accelerator: Accelerator

    def _call(self, message: Message, *rest: Any) -> Message:
        with self.accelerator.entered():
            return super()._call(message, *rest)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def _wrapped(func: Any, args: Any, kwargs: dict[str, Any], is_ours: bool) -> object:
    inner_args, inner_kwargs = tree_map(_inner, (args, dict(kwargs)))
    if inner_kwargs.get("device") is not None:
        is_ours = torch.device(inner_kwargs["device"]).type == NAME
        inner_kwargs["device"] = torch.device("cpu")
    result = func(*inner_args, **inner_kwargs)
    # What an operator changes in place it returns, as the object that it was given.
    given: dict[int, object] = {}
    if func._schema.is_mutable:
        leaves = tree_leaves((args, kwargs))
        given = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, PretendTensor)}

    def back(value: object) -> object:
        if not (is_ours and isinstance(value, Tensor)):
            return value
        return given[id(value)] if id(value) in given else PretendTensor(value)

    return tree_map(back, result)


def _check_devices(func: Any, leaves: list[object]) -> None:
    """Refuse tensors of the CPU beside the device's, but for single numbers."""
    name = func._schema.name
    others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, PretendTensor)]
    if any(other.dim() or name in _STRICT for other in others):
        shapes = [tuple(other.shape) for other in others]
        raise RuntimeError(f"{func}: tensors of the CPU, of shape {shapes}, beside the device's")


def _is_non_blocking(args: Any, kwargs: dict[str, Any]) -> bool:
    return bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _line() -> str:
    """Return the innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/ahfal_app/" in path:
            return f"{path.split('/ahfal_app/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
