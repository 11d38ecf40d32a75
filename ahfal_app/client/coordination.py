"""A client's side of query strategies for which clients choose together.

What it makes of the steps is kept in this process, and on disk where it has one, as at a site each
message may be answered by a process of its own. All of it is a cache: who has lost it says so, and
is told all steps anew.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.client.state import ClientState, array_of
from ahfal_app.errors import MessageRefused
from ahfal_app.messages.coordination import OPENING, Asked, Opening, digest_of
from ahfal_app.privacy.sessions import Topic
from ahfal_app.query import PoolView, QueryContext, Signal
from ahfal_app.query.core.coordination import COMMON_SIGNALS, Coordination, checked_answer
from ahfal_app.query.core.questions import Answer, Part, Question

#: Returns the client's pool, and what it knows besides.
Situation = Callable[[], tuple[PoolView, QueryContext]]

#: Called with the number and the hash of each step before it is answered; raises where the client
#: has answered another one in its place.
Hold = Callable[[int, str], None]

#: Returns the ids of the client's pool and of its labelled set, and what it knows besides.
Samples = Callable[[], tuple[NDArray[np.int64], NDArray[np.int64], QueryContext]]

# By run, client, cycle and file of labels; with what tells whether the disk is still as it was,
# since another process may have gone on from there.
_under_way: dict[tuple[object, ...], tuple[UnderWay, tuple[int, ...]]] = {}


@dataclass(frozen=True, eq=False)
class UnderWay:
    """How far a client's coordination of a cycle is.

    Attributes
    ----------
    pool, context : PoolView, QueryContext
        What it chooses from, and what it knows besides.
    labelled_L : NDArray[np.int64]
        Samples of its labelled set. Shape (L,).
    number : int
        The step that was answered last.
    digest, before : str
        Hash of all steps so far, and of those before the last one.
    memory : dict[str, Tensor] | None
        What the strategy made of them; None after the opening.
    answer : Answer
        What was answered last.
    origin : str
        Hash of the model that it all began with, on which the hashes of steps rest: the same steps
        under another model are other ones.
    """

    pool: PoolView
    context: QueryContext
    labelled_L: NDArray[np.int64]
    number: int = -1
    digest: str = ""
    before: str = ""
    memory: dict[str, Tensor] | None = None
    answer: Answer = field(default_factory=Answer)
    origin: str = ""

    @property
    def opening(self) -> Opening:
        """What the client tells in the opening."""
        pool = len(self.pool)
        return Opening(min(self.context.budget, pool), len(self.context.labels_L), pool)


class Coordinating:
    """One client's coordination in one cycle.

    Parameters
    ----------
    strategy : Coordination
        What is coordinated: the run's strategy, or how a budget is split.
    state : ClientState
        What the client keeps.
    key : tuple[object, ...]
        Run, client and cycle.
    hold : Hold
        As of `Hold`.
    topic : Topic
        What its sums are of.
    """

    def __init__(
        self,
        strategy: Coordination,
        state: ClientState,
        key: tuple[str, int, int],
        hold: Hold,
        topic: Topic = Topic.COORDINATION,
    ) -> None:
        self._strategy = strategy
        self._state = state
        self._what = topic.value
        self._key = (*key, self._what, state.labels_on_disk())
        self._cycle = key[2]
        self._place = key[0], key[2]
        self._hold = hold

    def answered(
        self,
        asked: Asked,
        fresh: Situation | None,
        origin: str,
        samples: Samples,
    ) -> UnderWay | None:
        """Answer the last of some steps, all that come before it first.

        Parameters
        ----------
        asked : Asked
            The steps.
        fresh : Situation | None
            Where the pool is made of the models that came with the message; None: none came.
        origin : str
            `model_digest` of what came.
        samples : Callable
            Returns what the client has now: its pool's ids, its labelled samples, and what it knows
            besides. Called where nothing is known in this process.

        Returns
        -------
        UnderWay | None
            How far it is; None where what came before was lost.

        Raises
        ------
        MessageRefused
            A step is none that the strategy's coordinator asks, or was asked before in another way.
        PrivacyRefused
            As of `hold`.
        """
        if asked.last > self._strategy.most_steps:
            most = self._strategy.most_steps
            raise MessageRefused(f"step {asked.last}: allowed are at most {most}")
        known, skipped = self._from(asked, self._known(samples), fresh, origin, samples)
        if known is None:
            return None
        for question in asked.questions[skipped:]:
            known = self._advanced(known, question)
        self._keep(known, is_first=asked.first == 0 and skipped == 0)
        return known

    def part(self, asked: Asked, known: UnderWay | None) -> Part | None:
        """Return the client's part by a decision, the last of what was asked.

        Parameters
        ----------
        asked : Asked
            All steps and the decision, or the decision alone.
        known : UnderWay | None
            How far the client is; None where that was lost.
        """
        if known is None or known.number + 1 != asked.last:
            return None
        return Part(known.memory or {}, asked.questions[-1])

    def at_hand(
        self,
        samples: Samples,
    ) -> UnderWay | None:
        """Return how far it is, by this process or by the disk; parameters as of `answered`."""
        known = self._known(samples)
        if known is not None and not _same(known, *samples()[:2]):
            return None
        return known

    def last_answer(self, step: int) -> Answer:
        """Return the answer to the step that was answered last.

        Raises
        ------
        MessageRefused
            It is another step, or the answer was lost.
        """
        known = self._in_process()
        number, answer = (known.number, known.answer) if known is not None else (-1, Answer())
        if (
            known is None
            and (flat := self._state.load_coordinated(self._what, self._cycle)[1]) is not None
        ):
            number, answer = int(flat["number"]), _answer_of(flat)
        if number != step or step == 0:
            raise MessageRefused(f"step {step}: allowed is the one that was answered last")
        return answer

    def forget(self) -> None:
        """Forget what is kept in this process: the client has chosen."""
        _under_way.pop(self._key, None)

    # --- inside -------------------------------------------------------------------------

    def _from(
        self,
        asked: Asked,
        known: UnderWay | None,
        fresh: Situation | None,
        origin: str,
        samples: Samples,
    ) -> tuple[UnderWay | None, int]:
        """Return from where to go on, and how many of the steps are answered already."""
        if asked.first == 0:
            if fresh is None:
                return None, 0
            ids_N, labelled_L, _ = samples()
            digests = _chain(origin, asked)
            is_known = known is not None and 0 <= known.number <= asked.last
            if (
                known is not None
                and is_known
                and digests[known.number] == known.digest
                and _same(known, ids_N, labelled_L)
            ):
                return known, known.number + 1
            pool, context = fresh()
            return UnderWay(pool, context, labelled_L, digest=origin, origin=origin), 0
        if known is None:
            return None, 0
        if asked.first == known.number + 1:
            return known, 0
        if asked.first == known.number and len(asked.questions) == 1:
            if _chain(known.before, asked)[-1] != known.digest:
                raise MessageRefused(f"step {known.number}: asked before in another way")
            return known, 1
        return None, 0

    def _advanced(self, known: UnderWay, question: Question) -> UnderWay:
        number, digest = known.number + 1, digest_of(known.digest, question)
        self._hold(number, digest)
        memory, answer = known.memory, Answer()
        if (question.name == OPENING) != (number == 0):
            raise MessageRefused(f"step {number} is {question.name!r}: allowed is a step in order")
        if number > 0:
            try:
                made, answer = checked_answer(
                    self._strategy, question, known.pool, known.context, memory
                )
            except ValueError as error:
                raise MessageRefused(f"step {number}: {error}") from error
            memory = dict(made)
        return replace(
            known, number=number, digest=digest, before=known.digest, memory=memory, answer=answer
        )

    def _known(self, samples: Samples) -> UnderWay | None:
        known = self._in_process()
        return known if known is not None else self._loaded(samples)

    def _in_process(self) -> UnderWay | None:
        known, on_disk = _under_way.get(self._key, (None, ()))
        return known if on_disk == self._state.coordinated_file(self._what, self._cycle) else None

    def _keep(self, known: UnderWay, is_first: bool) -> None:
        # Of other runs, too: a client that never chose would stay here.
        for old in [key for key in list(_under_way) if (key[0], key[2]) != self._place]:
            _under_way.pop(old, None)
        if self._key[-1] is not None and self._strategy.signals <= COMMON_SIGNALS:
            self._save(known, is_first)
        _under_way[self._key] = known, self._state.coordinated_file(self._what, self._cycle)

    def _save(self, known: UnderWay, is_first: bool) -> None:
        if is_first:
            pool = known.pool
            signals = {s.value: pool.signal(s).cpu() for s in self._strategy.signals}
            ids = {"ids": torch.tensor(pool.ids_N), "labelled": torch.tensor(known.labelled_L)}
            self._state.save_coordinated_pool(self._what, self._cycle, signals | ids)
        self._state.save_coordinated(self._what, self._cycle, _flat(known))

    def _loaded(self, samples: Samples) -> UnderWay | None:
        """Return how far it is by what is on disk, or None where nothing sound is left."""
        pool, flat = self._state.load_coordinated(self._what, self._cycle)
        if pool is None or flat is None or "origin" not in flat:
            return None
        ids_N, labelled_L, context = samples()
        sources = {
            signal: functools.partial(_as_it_is, pool[signal.value])
            for signal in Signal
            if signal.value in pool
        }
        if not self._strategy.signals <= set(sources):
            return None
        view = PoolView(pool["ids"].numpy(), sources)
        known = _unflat(flat, UnderWay(view, context, pool["labelled"].numpy()))
        return known if _same(known, ids_N, labelled_L) else None


def _same(known: UnderWay, ids_N: NDArray[np.int64], labelled_L: NDArray[np.int64]) -> bool:
    return np.array_equal(known.pool.ids_N, ids_N) and np.array_equal(known.labelled_L, labelled_L)


def model_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of a model's state, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = array_of(tensors[name])
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _chain(before: str, asked: Asked) -> list[str]:
    digests = []
    for question in asked.questions:
        before = digest_of(before, question)
        digests.append(before)
    return digests


def _flat(known: UnderWay) -> dict[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic]] = {
        "number": np.array(known.number),
        "digest": np.frombuffer(known.digest.encode(), np.uint8),
        "before": np.frombuffer(known.before.encode(), np.uint8),
        "origin": np.frombuffer(known.origin.encode(), np.uint8),
        "has-memory": np.array(int(known.memory is not None)),
    }
    arrays |= {f"memory.{n}": v.detach().cpu().numpy() for n, v in (known.memory or {}).items()}
    arrays |= {f"sum.{name}": values for name, values in known.answer.sums.items()}
    arrays |= {f"clear.{name}": values for name, values in known.answer.clear.items()}
    return arrays


def _named(flat: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in flat.items() if n.startswith(prefix)}


def _answer_of(flat: Mapping[str, Tensor]) -> Answer:
    return Answer(
        {name: values.numpy() for name, values in _named(flat, "sum.").items()},
        {name: values.numpy() for name, values in _named(flat, "clear.").items()},
    )


def _unflat(flat: Mapping[str, Tensor], empty: UnderWay) -> UnderWay:
    return replace(
        empty,
        number=int(flat["number"]),
        digest=flat["digest"].numpy().tobytes().decode(),
        before=flat["before"].numpy().tobytes().decode(),
        origin=flat["origin"].numpy().tobytes().decode(),
        memory=_named(flat, "memory.") if int(flat["has-memory"]) else None,
        answer=_answer_of(flat),
    )


def _as_it_is(values: Tensor) -> Tensor:
    return values
