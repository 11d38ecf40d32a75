"""A network's tensors to and from flat ones, in a few calls, wherever they lie.

Shapes: n numbers of all tensors of a type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ahfal_app.flat import ArrayForm, FlatArrays, Layout


class FlatTensors(Mapping[str, Tensor]):
    """Tensors by name, in one flat tensor for each type.

    Parameters
    ----------
    layout : Layout
        Which tensors there are; types are NumPy's names for them.
    parts : Mapping[str, Tensor]
        The flat tensor of each type, shape (n,). Not copied; must not be changed any more.
    """

    def __init__(self, layout: Layout, parts: Mapping[str, Tensor]) -> None:
        self.layout = layout
        self.parts = dict(parts)

    @classmethod
    def copy_of(cls, arrays: FlatArrays) -> FlatTensors:
        """Return a copy of arrays, on the CPU."""
        parts = {dtype: torch.from_numpy(part.copy()) for dtype, part in arrays.parts.items()}
        return cls(arrays.layout, parts)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> FlatTensors:
        """Return tensors in flat ones: copies, unless they lie so already."""
        if isinstance(tensors, FlatTensors):
            return tensors
        layout = Layout.of(forms_of(tensors))
        parts = {
            dtype: torch.cat([tensors[name].detach().reshape(-1) for name in names])
            for dtype, names in layout.names.items()
        }
        return cls(layout, parts)

    def numpy(self) -> FlatArrays:
        """Return them as arrays, which share the memory of what is on the CPU."""
        return FlatArrays(self.layout, {d: part.cpu().numpy() for d, part in self.parts.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self.parts.values())

    def __getitem__(self, name: str) -> Tensor:
        """Return a view of a tensor, in its shape."""
        form = self.layout[name]
        view = self.parts[form.dtype][self.layout.place(name)]
        if name in self.layout.channels_last:
            outputs, inputs, height, width = form.shape
            return view.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        return view.view(form.shape)

    def __iter__(self) -> Iterator[str]:
        """Return the names in order."""
        return iter(self.layout)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self.layout)


class FlatAccess:
    """Sets tensors from flat ones and reads them into flat ones.

    On a CPU tensors can be moved into flat ones of their types, each as it lies in memory: then all
    are set or read as one. Otherwise numbers go by flat ones beside them, on their device, so that
    between devices there is one transfer for each type.

    Parameters
    ----------
    tensors : Mapping[str, Tensor]
        What a network holds, by name; changed in place.
    move : bool
        Whether they may be moved. Whoever holds them sees nothing of it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], move: bool = False) -> None:
        is_last = [name for name, each in tensors.items() if _is_channels_last(each)]
        self.layout = Layout.of(forms_of(tensors), is_last)
        self._tensors = dict(tensors)
        self._moved: list[int] = []
        self._make_room()
        if move and self._can_move():
            self._move()

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Give all tensors other values.

        Raises
        ------
        KeyError
            One is missing or unknown.
        """
        with torch.no_grad():
            if isinstance(values, FlatTensors) and values.layout == self.layout:
                for dtype, flat_n in self._flat.items():
                    flat_n.copy_(values.parts[dtype])
                if not self._is_moved():
                    for own, views in self._pairs:
                        torch._foreach_copy_(own, views)
                return
            if values.keys() != self._tensors.keys():
                odd = sorted(values.keys() ^ self._tensors.keys())
                raise KeyError(f"{odd[:3]}: missing or unknown")
            for name, tensor in self._tensors.items():
                tensor.detach().copy_(values[name])

    def holds(self, values: Mapping[str, Tensor]) -> bool:
        """Return whether all tensors can be set to these values, and nothing is left over."""
        if isinstance(values, FlatTensors) and values.layout == self.layout:
            return True
        return values.keys() == self._tensors.keys()

    def read(self) -> FlatTensors:
        """Return a copy of all tensors, on their device."""
        with torch.no_grad():
            if not self._is_moved():
                for own, views in self._pairs:
                    torch._foreach_copy_(views, own)
            return FlatTensors(self.layout, {d: flat_n.clone() for d, flat_n in self._flat.items()})

    def _make_room(self) -> None:
        """Make flat tensors beside the others."""
        names = self.layout.names
        own = {dtype: [self._tensors[name].detach() for name in names[dtype]] for dtype in names}
        self._flat = {
            dtype: own[dtype][0].new_empty(size) for dtype, size in self.layout.sizes.items()
        }
        self._views = dict(FlatTensors(self.layout, self._flat))
        self._pairs = [(own[dtype], [self._views[n] for n in names[dtype]]) for dtype in names]

    def _can_move(self) -> bool:
        """Return whether each is a plain tensor of its own on the CPU, without gaps in memory."""
        tensors = self._tensors.values()
        is_plain = all(
            type(each) in (Tensor, nn.Parameter)
            and each.device.type == "cpu"
            and (each.is_contiguous() or _is_channels_last(each))
            for each in tensors
        )
        return is_plain and len({each.untyped_storage().data_ptr() for each in tensors}) == len(
            self._tensors
        )

    def _move(self) -> None:
        for name, tensor in self._tensors.items():
            self._views[name].copy_(tensor.detach())
            # The strides of axes of length 1 are its own, for whoever chooses kernels by them.
            place = self._views[name]
            tensor.data = place.as_strided(place.shape, tensor.stride(), place.storage_offset())
        self._moved = [each.data_ptr() for each in self._tensors.values()]

    def _is_moved(self) -> bool:
        """Return whether all tensors lie in the flat ones."""
        if not self._moved:
            return False
        if self._moved == [each.data_ptr() for each in self._tensors.values()]:
            return True
        # Somebody has given them other memory.
        self._moved = []
        self._make_room()
        return False


def _is_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor lies in `channels_last` in memory, and not row by row."""
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, ArrayForm]:
    """Return the forms of tensors by name, their types by NumPy's names."""
    return {
        name: ArrayForm(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    }
