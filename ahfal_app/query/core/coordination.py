"""Query strategies for which clients choose together: a coordinator at the server, and its clients.

A coordinated strategy is one class in one file, and knows nothing of messages. Its coordinator is a
generator that yields steps, is sent what came of each, and returns a decision for each client. What
a client answers is a function of its samples, its models and the steps so far; what it makes of
them is kept as tensors (its *memory*), which may get lost: then the steps are gone through again.

Shape suffixes: N samples in the pool, B selected samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.errors import InvalidSelection
from ahfal_app.query.core.base import QueryContext, QueryStrategy
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.questions import (
    LARGEST_PART,
    Answer,
    Answers,
    Part,
    Question,
    Step,
    check_answer,
)
from ahfal_app.seeds import numpy_generator

#: What a client makes of the steps so far: tensors by name.
Memory = Mapping[str, Tensor]

#: What a coordinator decides for each client: arrays as in a step's broadcast.
Decisions = Mapping[int, Mapping[str, NDArray[np.generic]]]

#: Yields steps, is sent what came of them, and returns the decisions.
Coordinator = Generator[Step, Answers, Decisions]

#: Asks the clients that are still there, and returns what came of it.
Ask = Callable[[Step], Answers]

#: What models of different clients have in common. Embeddings of local models have not: each has
#: directions of its own.
COMMON_SIGNALS = frozenset(
    {
        Signal.GLOBAL_LOGITS,
        Signal.GLOBAL_EMBEDDINGS,
        Signal.LABELLED_GLOBAL_EMBEDDINGS,
        Signal.LABELLED_GLOBAL_LOGITS,
        Signal.GLOBAL_HEAD,
    }
)

#: What a coordinated strategy may use: these, and a model that a client trains for itself.
COORDINATED_SIGNALS = COMMON_SIGNALS | {Signal.LOCAL_ONLY_MODEL}

#: Name of a decision as a question.
DECISION = "decision"


@dataclass(frozen=True)
class FederationFacts:
    """What a coordinator knows of the clients when it begins.

    Attributes
    ----------
    budgets : Mapping[int, int]
        How many samples each client will choose: its budget, or its whole pool. By client, in
        increasing order.
    labelled : Mapping[int, int]
        How many samples each has labelled.
    pools : Mapping[int, int]
        How many it may choose from.
    num_classes : int
        Number of classes.
    width : int
        Numbers of an embedding of the global model.
    seed, cycle : int
        Key of everything random at the server.
    most_steps : int
        How many steps there may be. Whoever reaches it decides with what it has.
    shared : int
        Labels that are to be split over the clients, where that is what they are asked for.
    """

    budgets: Mapping[int, int]
    labelled: Mapping[int, int]
    pools: Mapping[int, int]
    num_classes: int
    width: int
    seed: int
    cycle: int
    most_steps: int
    shared: int = 0

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients, in increasing order."""
        return tuple(self.budgets)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the server's generator of a purpose: the same where it starts again."""
        return numpy_generator(self.seed, f"coordination.{purpose}", self.cycle)

    @property
    def most_samples(self) -> int:
        """The most samples that one client has, labelled or not."""
        return max(self.labelled[client] + self.pools[client] for client in self.budgets)


class Coordination(ABC):
    """Something for which clients are asked in steps: a half at the server, and one at a client."""

    name: ClassVar[str]
    """What it is called."""
    signals: ClassVar[frozenset[Signal]]
    """Everything that `answer` may ask the pool for."""

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """The most steps of a cycle."""

    @property
    def most_samples(self) -> int:
        """The most samples of one client, labelled or not, that the sums can hold."""
        return LARGEST_PART

    @abstractmethod
    def coordinator(self, facts: FederationFacts) -> Coordinator:
        """Return the server's half: what it asks, and what it decides.

        All that it does must follow from the facts and the answers: a server that starts again
        goes through it anew, with the answers that it has kept. Clients may leave from step to
        step; those that are left are in each `Answers`.
        """

    @abstractmethod
    def answer(
        self, question: Question, pool: PoolView, context: QueryContext, memory: Memory | None
    ) -> tuple[Memory, Answer]:
        """Return what a client makes of a step, and what it answers; nothing else is changed.

        Parameters
        ----------
        question : Question
            The step, as it came in.
        pool : PoolView
            The client's samples.
        context : QueryContext
            As of `select`; the budget may be 0 or the whole pool.
        memory : Memory | None
            What the client made of the steps before; None at the first one.

        Raises
        ------
        ValueError
            The question is none that the coordinator asks.
        """


class CoordinatedStrategy(QueryStrategy, Coordination):
    """A query strategy for which the clients choose together.

    Subclasses say by the property `reveals` what the server learns of a single client besides sums.
    Without a federation, as where a pool is chosen from by itself, it is coordinated with nobody.
    """

    is_coordinated: ClassVar[bool] = True

    class Parameters(QueryStrategy.Parameters):
        """How long clients are asked."""

        steps: int = Field(
            default=200,
            ge=1,
            le=10_000,
            description="Most steps of a cycle; after them clients choose the rest by themselves.",
        )

    parameters: Parameters

    @property
    def most_steps(self) -> int:
        """The most steps of a cycle."""
        return self.parameters.steps

    @abstractmethod
    def choose(
        self, decision: Question, pool: PoolView, context: QueryContext, memory: Memory
    ) -> NDArray[np.int64]:
        """Return `context.budget` ids as the coordinator decided, as of `select`.

        Raises
        ------
        ValueError
            The decision is none that the strategy's coordinator makes.
        """

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return what was decided together; where nothing was, what is decided alone."""
        part = context.coordinated
        if part is None:
            part = together(self, {context.client: pool}, {context.client: context})[context.client]
        return self.choose(part.decision, pool, context, part.memory)

    def width(self, pool: PoolView) -> int:
        """Return how many numbers an embedding has."""
        return int(pool.signal(Signal.GLOBAL_EMBEDDINGS).shape[1])


def checked_answer(
    strategy: Coordination,
    question: Question,
    pool: PoolView,
    context: QueryContext,
    memory: Memory | None,
) -> tuple[Memory, Answer]:
    """Have a client's half answer a step; the only caller of `answer`.

    Raises
    ------
    InvalidSelection
        It changed a signal, or used one that it did not declare.
    ValueError
        The question is none of its coordinator's.
    """
    view = pool.declaring(strategy.signals)
    with torch.no_grad():
        kept, answer = strategy.answer(question, view, context, memory)
    if changed := ", ".join(signal.value for signal in view.changed_signals()):
        raise InvalidSelection(f"strategy {strategy.name!r} changed the pool's {changed}")
    return kept, answer


def together(
    strategy: CoordinatedStrategy,
    pools: Mapping[int, PoolView],
    contexts: Mapping[int, QueryContext],
) -> dict[int, Part]:
    """Coordinate clients whose pools are all at hand, without any message.

    Parameters
    ----------
    strategy : CoordinatedStrategy
        The strategy.
    pools : Mapping[int, PoolView]
        The clients' pools.
    contexts : Mapping[int, QueryContext]
        What each knows besides.

    Returns
    -------
    dict[int, Part]
        What each client needs to choose.

    Raises
    ------
    ValueError
        An answer has not the form that its step says.
    """
    clients = sorted(pools)
    first = contexts[clients[0]]
    facts = FederationFacts(
        budgets={c: min(contexts[c].budget, len(pools[c])) for c in clients},
        labelled={c: len(contexts[c].labels_L) for c in clients},
        pools={c: len(pools[c]) for c in clients},
        num_classes=first.num_classes,
        width=strategy.width(pools[clients[0]]),
        seed=first.seed,
        cycle=first.cycle,
        most_steps=strategy.most_steps,
    )
    memories, decisions = coordinated_here(strategy, facts, pools, contexts)
    return {
        client: Part(memories[client] or {}, Question(DECISION, decisions.get(client, {})))
        for client in clients
    }


def coordinated_here(
    coordination: Coordination,
    facts: FederationFacts,
    pools: Mapping[int, PoolView],
    contexts: Mapping[int, QueryContext],
) -> tuple[dict[int, Memory | None], Decisions]:
    """Go through all steps with clients whose pools are at hand; parameters as of `together`.

    Returns
    -------
    dict[int, Memory | None]
        What each client made of the steps.
    Decisions
        What is decided.
    """
    memories: dict[int, Memory | None] = dict.fromkeys(facts.clients)

    def ask(step: Step) -> Answers:
        question, answers = Question(step.name, step.broadcast), {}
        for client in facts.clients:
            memories[client], answers[client] = checked_answer(
                coordination, question, pools[client], contexts[client], memories[client]
            )
            check_answer(step, answers[client])
        return gathered(step, answers)

    decisions = conducted(coordination.coordinator(facts), ask, facts.most_steps)
    return memories, decisions


def conducted(coordinator: Coordinator, ask: Ask, most_steps: int) -> Decisions:
    """Go through a coordinator's steps and return what it decides.

    Raises
    ------
    InvalidSelection
        It asks more often than it may.
    """
    answers: Answers | None = None
    for number in range(most_steps + 1):
        try:
            step = next(coordinator) if answers is None else coordinator.send(answers)
        except StopIteration as end:
            decisions: Decisions = end.value
            return decisions
        if number == most_steps:
            break
        answers = ask(step)
    raise InvalidSelection(f"a coordinator asks more than {most_steps} times")


def gathered(step: Step, answers: Mapping[int, Answer]) -> Answers:
    """Return what came of a step where every answer is at hand."""
    sums = {
        name: sum(
            (answers[client].sums[name] for client in sorted(answers)),
            start=np.zeros(form.shape, np.int64),
        )
        for name, form in step.sums.items()
    }
    clear = {client: dict(answers[client].clear) for client in sorted(answers)}
    return Answers(tuple(sorted(answers)), sums, clear)
