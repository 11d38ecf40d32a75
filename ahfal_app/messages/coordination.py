"""How the steps of a coordination travel, and what clients answer to them.

A message holds the steps from some number on, of which the last one is to be answered; step 0 is
the opening, in which clients tell how much they choose from. A client that has lost what came
before says so, and is sent everything anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from numpy.typing import NDArray

from ahfal_app.flat import ArrayForm
from ahfal_app.messages.arrays import decode_all, held_record
from ahfal_app.messages.fields import LARGEST_COUNT, count, shown
from ahfal_app.query.core.questions import Answer, Question, Step

#: Name of step 0.
OPENING = "opening"

_MOST_STEPS = 10_001
_MOST_NUMBERS = 2**26
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_TYPES = {"float64", "int64"}


@dataclass(frozen=True)
class Opening:
    """What a client tells before anything is coordinated: what the server will know all the same.

    Attributes
    ----------
    budget : int
        How many samples it will choose.
    labelled, pool : int
        How many it has labelled, and how many it chooses from.
    """

    budget: int
    labelled: int
    pool: int

    def to_metrics(self) -> MetricRecord:
        """Return it as it travels."""
        return MetricRecord({"budget": self.budget, "labelled": self.labelled, "pool": self.pool})

    @classmethod
    def from_metrics(cls, metrics: MetricRecord) -> Opening:
        """Return what came in.

        Raises
        ------
        ValueError
            Something is missing, no count, or a budget is larger than its pool.
        """
        opening = cls(*(count(metrics, key) for key in ("budget", "labelled", "pool")))
        if opening.budget > opening.pool:
            raise ValueError(f"budget={opening.budget}: allowed is at most pool={opening.pool}")
        return opening


@dataclass(frozen=True, eq=False)
class Asked:
    """The steps of a message.

    Attributes
    ----------
    first : int
        Number of the first of them.
    questions : tuple[Question, ...]
        The steps; the last one is to be answered, or is the decision.
    """

    first: int
    questions: tuple[Question, ...]

    @property
    def last(self) -> int:
        """Number of the last of them."""
        return self.first + len(self.questions) - 1


def asked_to(first: int, questions: Sequence[Question]) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return steps as they travel, by the keys of their records."""
    arrays = {
        f"{number}.{name}": values
        for number, question in enumerate(questions)
        for name, values in question.arrays.items()
    }
    names = [question.name for question in questions]
    about = ConfigRecord({"first": first, "names": names})
    return {"coordination": about, "questions": held_record(arrays)}


def asked_from(about: ConfigRecord, arrays: ArrayRecord) -> Asked:
    """Return the steps that came in; what their arrays mean is for the strategy to check.

    Raises
    ------
    ValueError
        Something is missing, or is not what it must be.
    """
    first, names = count(about, "first"), about.get("names")
    if not isinstance(names, list) or not 1 <= len(names) <= _MOST_STEPS:
        raise ValueError(f"names={shown(names)}: allowed are 1 to {_MOST_STEPS} names of steps")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError(f"names={shown(names)}: allowed are names such as 'opening'")
    if first + len(names) > _MOST_STEPS:
        raise ValueError(f"first={first}: allowed are at most {_MOST_STEPS} steps")
    own: list[dict[str, NDArray[Any]]] = [{} for _ in names]
    for key, values in _decoded(arrays).items():
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < len(names) and _NAME.fullmatch(name)):
            raise ValueError(f"array {shown(key)}: allowed is one of a step of this message")
        own[int(number)][name] = values
    return Asked(first, tuple(Question(str(n), a) for n, a in zip(names, own, strict=True)))


def answer_to(answer: Answer, with_sums: bool) -> ArrayRecord:
    """Return an answer as it travels; without what is only to be known as a sum."""
    arrays: dict[str, NDArray[Any]] = {f"clear.{n}": values for n, values in answer.clear.items()}
    if with_sums:
        arrays |= {f"sum.{name}": values for name, values in answer.sums.items()}
    return held_record(arrays)


def answer_from(arrays: ArrayRecord, step: Step, with_sums: bool) -> Answer:
    """Return the answer to a step that came in; its ranges are checked by `check_answer`.

    Raises
    ------
    ValueError
        An array is missing, unknown, of another form, or not finite.
    """
    forms = {f"clear.{n}": ArrayForm(form.shape, "float64") for n, form in step.clear.items()}
    if with_sums:
        forms |= {f"sum.{n}": ArrayForm(form.shape, "int64") for n, form in step.sums.items()}
    values: Mapping[str, Any] = decode_all(arrays, forms)
    return Answer(
        {n: values[f"sum.{n}"] for n in step.sums if with_sums},
        {n: values[f"clear.{n}"] for n in step.clear},
    )


def digest_of(before: str, question: Question) -> str:
    """Return a hash of a step and all before it, of which `before` is the hash."""
    digest = hashlib.sha256(f"{before} {question.name}".encode())
    for name in sorted(question.arrays):
        values = np.ascontiguousarray(question.arrays[name])
        digest.update(f" {name} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _decoded(arrays: ArrayRecord) -> Mapping[str, NDArray[Any]]:
    forms: dict[str, ArrayForm] = {}
    numbers = 0
    for name, array in arrays.items():
        shape, dtype = tuple(array.shape), array.dtype
        is_plain = all(type(size) is int and 0 <= size <= LARGEST_COUNT for size in shape)
        if dtype not in _TYPES or len(shape) not in (1, 2) or not is_plain:
            raise ValueError(
                f"array {shown(name)} is {shown(dtype)} {shown(shape)}: allowed are vectors and "
                "matrices of float64 or int64"
            )
        forms[name] = ArrayForm(shape, dtype)
        numbers += int(np.prod(shape, dtype=object))
    if numbers > _MOST_NUMBERS:
        raise ValueError(f"arrays of {numbers} numbers: allowed are {_MOST_NUMBERS}")
    return decode_all(arrays, forms)
