"""A model's arrays as one flat array for each type, with a view of each by its name.

A small network has dozens of arrays. What is done to a whole model (checking, averaging, copying,
writing) costs as many calls, and these cost more than the numbers. So within a process a model is
handed on as `FlatArrays`: whoever treats all numbers alike takes `parts`, whoever wants a single
array takes it by its name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ArrayForm:
    """Shape and type of an array.

    Attributes
    ----------
    shape : tuple[int, ...]
        Its shape.
    dtype : str
        Its type, as NumPy calls it.
    """

    shape: tuple[int, ...]
    dtype: str


class Layout(Mapping[str, ArrayForm]):
    """The forms of a model's arrays by name, and where each lies in the flat array of its type.

    Arrays of a type lie one after the other in the order of their names here, each row by row, but
    for kernels of convolutions that a network holds otherwise. They are made by `Layout.of`, which
    returns the same object for equal forms in equal order.

    Attributes
    ----------
    channels_last : frozenset[str]
        Arrays of four axes whose second axis is the innermost in memory, as networks on a CPU and
        PyTorch's `channels_last` have it.
    sizes : dict[str, int]
        How many numbers there are of each type.
    names : dict[str, tuple[str, ...]]
        The arrays of each type, in order.
    starts : dict[str, tuple[int, ...]]
        Where each of these begins.
    """

    def __init__(
        self, forms: tuple[tuple[str, ArrayForm], ...], channels_last: frozenset[str]
    ) -> None:
        self._forms = dict(forms)
        self._items = forms
        self._hash = hash(forms)
        self.channels_last = channels_last
        self._places: dict[str, slice] = {}
        self.sizes: dict[str, int] = {}
        names: dict[str, list[str]] = {}
        for name, form in forms:
            start = self.sizes.get(form.dtype, 0)
            end = start + math.prod(form.shape)
            self._places[name] = slice(start, end)
            self.sizes[form.dtype] = end
            names.setdefault(form.dtype, []).append(name)
        self.names = {dtype: tuple(each) for dtype, each in names.items()}
        self.starts = {
            dtype: tuple(self._places[name].start for name in each) for dtype, each in names.items()
        }

    @staticmethod
    def of(forms: Mapping[str, ArrayForm], channels_last: Iterable[str] = ()) -> Layout:
        """Return the layout of arrays of these forms."""
        if isinstance(forms, Layout):
            return forms
        return _layout(tuple(forms.items()), frozenset(channels_last))

    def place(self, name: str) -> slice:
        """Return where an array lies in the flat one of its type."""
        return self._places[name]

    def __getitem__(self, name: str) -> ArrayForm:
        """Return the form of an array."""
        return self._forms[name]

    def __iter__(self) -> Iterator[str]:
        """Return the names in order."""
        return iter(self._forms)

    def __len__(self) -> int:
        """Return how many arrays there are."""
        return len(self._forms)

    def __eq__(self, other: object) -> bool:
        """Return whether equal arrays lie at equal places."""
        return self is other or (
            isinstance(other, Layout)
            and self._items == other._items
            and self.channels_last == other.channels_last
        )

    def __hash__(self) -> int:
        """Return a hash that equal layouts share."""
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        """Return how it is made again, in another process."""
        return _layout, (self._items, self.channels_last)


@functools.lru_cache(maxsize=64)
def _layout(forms: tuple[tuple[str, ArrayForm], ...], channels_last: frozenset[str]) -> Layout:
    return Layout(forms, channels_last)


class FlatArrays(Mapping[str, NDArray[np.generic]]):
    """A model's arrays by name, in one flat array for each type.

    Parameters
    ----------
    layout : Layout
        Which arrays there are.
    parts : Mapping[str, NDArray]
        The flat array of each type: as many numbers as `layout.sizes` says. Not copied.
    """

    def __init__(self, layout: Layout, parts: Mapping[str, NDArray[np.generic]]) -> None:
        self.layout = layout
        self.parts = dict(parts)

    @classmethod
    def of(cls, arrays: Mapping[str, ArrayLike], as_in: Layout | None = None) -> FlatArrays:
        """Return arrays in one flat array for each type; copies, unless they lie so already.

        Where a layout is of these arrays, too, they will lie as it says.
        """
        if isinstance(arrays, FlatArrays) and as_in in (None, arrays.layout):
            return arrays
        held = {name: np.asarray(value) for name, value in arrays.items()}
        layout = Layout.of(
            {name: ArrayForm(value.shape, dtype_name(value.dtype)) for name, value in held.items()}
        )
        if as_in is not None and dict(as_in) == dict(layout):
            flat = cls.empty(as_in)
            for name, value in held.items():
                flat[name][...] = value
            return flat
        parts = {
            dtype: np.concatenate([held[name].ravel() for name in names])
            for dtype, names in layout.names.items()
        }
        return cls(layout, parts)

    @classmethod
    def empty(cls, layout: Layout) -> FlatArrays:
        """Return arrays that hold nothing yet."""
        return cls(layout, {dtype: np.empty(size, dtype) for dtype, size in layout.sizes.items()})

    def read_only(self) -> FlatArrays:
        """Return the same memory, through which it cannot be changed."""
        views = {dtype: part.view() for dtype, part in self.parts.items()}
        for view in views.values():
            view.flags.writeable = False
        return FlatArrays(self.layout, views)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        """Return a view of an array, in its shape."""
        form = self.layout[name]
        view: NDArray[np.generic] = self.parts[form.dtype][self.layout.place(name)]
        if name in self.layout.channels_last:
            outputs, inputs, height, width = form.shape
            return view.reshape(outputs, height, width, inputs).transpose(0, 3, 1, 2)
        return view.reshape(form.shape)

    def __iter__(self) -> Iterator[str]:
        """Return the names in order."""
        return iter(self.layout)

    def __len__(self) -> int:
        """Return how many arrays there are."""
        return len(self.layout)


# NumPy makes this text anew each time, and hundreds are asked for in a round.
dtype_name = functools.cache(str)
"""Return what NumPy calls a type."""
