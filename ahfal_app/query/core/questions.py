"""What server and clients say to each other before they choose together, as plain arrays.

Who gets an array reads it through `Question`, or has it checked by a form: either refuses what
cannot be meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Any sum over clients must fit an integer of 64 bits with its sign: of a million clients' parts.
LARGEST_PART = 2**42


@dataclass(frozen=True)
class SumForm:
    """Integers of which the server may know no more than the sum over the clients.

    Attributes
    ----------
    shape : tuple[int, ...]
        Their shape.
    most : int
        The largest absolute value of one client's.
    is_signed : bool
        Whether they may be negative.
    """

    shape: tuple[int, ...]
    most: int
    is_signed: bool = False

    def __post_init__(self) -> None:
        """Refuse a sum that might overflow.

        Raises
        ------
        ValueError
            One client's part may be too large.
        """
        if not 0 <= self.most <= LARGEST_PART:
            raise ValueError(f"a client's part of a sum: allowed is at most {LARGEST_PART}")

    def check(self, name: str, values: NDArray[np.int64], clients: int = 1) -> None:
        """Refuse what cannot be the sum over so many clients.

        Raises
        ------
        ValueError
            A value is out of range.
        """
        highest = self.most * clients
        lowest = -highest if self.is_signed else 0
        if values.size and not (lowest <= int(values.min()) and int(values.max()) <= highest):
            raise ValueError(f"{name}: allowed are integers from {lowest} to {highest}")


@dataclass(frozen=True)
class ClearForm:
    """Numbers that the server sees as each client tells them: float64.

    Attributes
    ----------
    shape : tuple[int, ...]
        Their shape.
    lowest, highest : float
        Their range.
    """

    shape: tuple[int, ...]
    lowest: float
    highest: float

    def check(self, name: str, values: NDArray[np.float64]) -> None:
        """Refuse what is out of range.

        Raises
        ------
        ValueError
            A value is.
        """
        if values.size and not (self.lowest <= values.min() and values.max() <= self.highest):
            raise ValueError(
                f"{name}: allowed are numbers from {self.lowest:g} to {self.highest:g}"
            )


@dataclass(frozen=True, eq=False)
class Step:
    """What a coordinator asks all clients that are still there, and the form of their answers.

    Attributes
    ----------
    name : str
        Which step of the strategy it is: small letters and hyphens.
    broadcast : Mapping[str, NDArray[Any]]
        What it tells them: float64 or int64, of one or two dimensions.
    sums : Mapping[str, SumForm]
        What is summed over the clients, masked where the run's privacy says so.
    clear : Mapping[str, ClearForm]
        What each tells for itself. A strategy's `reveals` must name it.
    is_for_the_run : bool
        Whether the first cycle that asks it is the only one that does: later ones are answered with
        the sums of then, also where clients have left or come meanwhile.

    Raises
    ------
    ValueError
        What clients tell for themselves is wanted for a whole run; it holds for who is there.
    """

    name: str
    broadcast: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    sums: Mapping[str, SumForm] = field(default_factory=dict)
    clear: Mapping[str, ClearForm] = field(default_factory=dict)
    is_for_the_run: bool = False

    def __post_init__(self) -> None:
        """Refuse what could not be asked."""
        if self.is_for_the_run and self.clear:
            raise ValueError(f"{self.name}: allowed for a whole run are sums")


@dataclass(frozen=True, eq=False)
class Question:
    """A step as it reaches a client, or a decision.

    Attributes
    ----------
    name : str
        Name of the step.
    arrays : Mapping[str, NDArray[Any]]
        What it tells: float64 or int64, of one or two dimensions, finite.
    """

    name: str
    arrays: Mapping[str, NDArray[Any]]

    def floats(self, name: str, *shape: int | None) -> NDArray[np.float64]:
        """Return an array of numbers of this shape, None standing for any length.

        Raises
        ------
        ValueError
            It is missing, or something else.
        """
        values: NDArray[np.float64] = self._array(name, np.dtype(np.float64), shape)
        return values

    def integers(
        self, name: str, *shape: int | None, lowest: int = 0, highest: int
    ) -> NDArray[np.int64]:
        """Return an array of integers of this shape and range.

        Raises
        ------
        ValueError
            It is missing, or something else.
        """
        values: NDArray[np.int64] = self._array(name, np.dtype(np.int64), shape)
        if values.size and not (lowest <= int(values.min()) and int(values.max()) <= highest):
            raise ValueError(
                f"{self.name}: {name!r}: allowed are integers from {lowest} to {highest}"
            )
        return values

    def _array(self, name: str, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> Any:
        values = self.arrays.get(name)
        fits = (
            values is not None
            and values.dtype == dtype
            and values.ndim == len(shape)
            and all(want in (None, has) for want, has in zip(shape, values.shape, strict=True))
        )
        if not fits:
            held = "nothing" if values is None else f"{values.dtype} {values.shape}"
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{self.name}: {name!r} is {held}; allowed is {dtype} ({wanted})")
        return values


@dataclass(frozen=True, eq=False)
class Answer:
    """What a client answers to a step.

    Attributes
    ----------
    sums : Mapping[str, NDArray[np.int64]]
        Its part in each sum.
    clear : Mapping[str, NDArray[np.float64]]
        What it tells for itself.
    """

    sums: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    clear: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answers:
    """What came of a step: it is all over one set of clients.

    Attributes
    ----------
    clients : tuple[int, ...]
        Those that are still there, in increasing order.
    sums : Mapping[str, NDArray[np.int64]]
        Sums over them.
    clear : Mapping[int, Mapping[str, NDArray[np.float64]]]
        What each told, by client.
    """

    clients: tuple[int, ...]
    sums: Mapping[str, NDArray[np.int64]]
    clear: Mapping[int, Mapping[str, NDArray[np.float64]]]


@dataclass(frozen=True, eq=False)
class Part:
    """A client's part in what was coordinated, when it chooses.

    Attributes
    ----------
    memory : Mapping[str, Any]
        What it made of the steps: tensors by name.
    decision : Question
        What the coordinator decided for it.
    """

    memory: Mapping[str, Any]
    decision: Question


def check_answer(step: Step, answer: Answer) -> None:
    """Refuse an answer that has not the form that a step says.

    Raises
    ------
    ValueError
        An array is missing, unknown, of another shape or type, not finite, or out of range.
    """
    _check_forms(step.name, step.sums, answer.sums, np.dtype(np.int64))
    _check_forms(step.name, step.clear, answer.clear, np.dtype(np.float64))
    for name, sum_form in step.sums.items():
        sum_form.check(f"{step.name}: {name!r}", answer.sums[name])
    for name, clear_form in step.clear.items():
        clear_form.check(f"{step.name}: {name!r}", answer.clear[name])


def check_sums(step: Step, sums: Mapping[str, NDArray[Any]], clients: int) -> None:
    """Refuse sums that a step cannot have over so many clients.

    Raises
    ------
    ValueError
        As of `check_answer`.
    """
    _check_forms(step.name, step.sums, sums, np.dtype(np.int64))
    for name, form in step.sums.items():
        form.check(f"{step.name}: {name!r}", sums[name], clients)


def _check_forms(
    step: str,
    forms: Mapping[str, SumForm] | Mapping[str, ClearForm],
    arrays: Mapping[str, NDArray[Any]],
    dtype: np.dtype[Any],
) -> None:
    if set(forms) != set(arrays):
        raise ValueError(f"{step}: {sorted(arrays)}; needed are {sorted(forms)}")
    for name, values in arrays.items():
        if values.dtype != dtype or values.shape != forms[name].shape:
            raise ValueError(
                f"{step}: {name!r} is {values.dtype} {values.shape}; needed is {dtype} "
                f"{forms[name].shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{step}: {name!r} has values that are not finite")


def joined(sums: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return sums as one vector that begins with a 1: by how many clients there are in a sum."""
    parts = [np.ones(1, np.int64), *(sums[name].ravel() for name in sorted(sums))]
    return np.concatenate(parts)


def parted(
    vector_E: NDArray[np.int64], forms: Mapping[str, SumForm], clients: int
) -> dict[str, NDArray[np.int64]]:
    """Return the sums that a vector of `joined` holds, over so many clients.

    Raises
    ------
    ValueError
        It cannot be a sum over so many.
    """
    if len(vector_E) != joined_size(forms) or int(vector_E[0]) != clients:
        raise ValueError(f"it is over {int(vector_E[0])} clients, and {clients} are meant")
    sums, start = {}, 1
    for name in sorted(forms):
        form = forms[name]
        size = int(np.prod(form.shape))
        sums[name] = vector_E[start : start + size].reshape(form.shape)
        form.check(name, sums[name], clients)
        start += size
    return sums


def joined_size(forms: Mapping[str, SumForm]) -> int:
    """Return how many entries a vector of `joined` has."""
    return 1 + sum(int(np.prod(form.shape)) for form in forms.values())
