"""FairFAL as published: the clients' imbalance is averaged before any of them chooses."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coordination import (
    CoordinatedStrategy,
    Coordinator,
    FederationFacts,
    Memory,
)
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.questions import Answer, Question, Step, SumForm
from ahfal_app.query.fairfal import EqualClasses, balanced_prior, imbalance

#: Integers per unit of an imbalance, which is at most 1.
_UNITS = 2**30

_IMBALANCE = "imbalance"


class CoordinatedFairfal(EqualClasses, CoordinatedStrategy):
    """As `fairfal`, by the mean imbalance of all clients.

    Before they choose for the first time, clients tell their γ and whether they have one, of which
    the server needs the sums alone; the mean is kept for the whole run, as published
    (`imbalance=first`), or taken anew before each choice (`every`). Nothing else is coordinated.

    A client with labels of a single class is balanced by the formula, γ = 1, and the published
    code counts it. By default it does not vote here (`single-class=skip`); where nobody does,
    γ = 1. Clients that come later choose by the mean of those that were there.
    """

    name: ClassVar[str] = "coordinated-fairfal"

    class Parameters(EqualClasses.Parameters, CoordinatedStrategy.Parameters):
        """When clients are asked, and who counts, besides what `fairfal` has."""

        imbalance: Literal["first", "every"] = Field(
            default="first",
            description="Whether the clients' mean γ is that of the first choice, or of each.",
        )
        single_class: Literal["skip", "count"] = Field(
            default="skip",
            description="Whether clients with labels of one class count for it, with γ = 1 "
            "(as in the published code).",
        )
        steps: int = Field(
            default=1, ge=1, le=1, description="Most steps of a cycle; there is one."
        )

    parameters: Parameters

    def coordinator(self, facts: FederationFacts) -> Coordinator:
        """Return the server's half: one question, and the mean for all."""
        answers = yield Step(
            _IMBALANCE,
            sums={"imbalance": SumForm((1,), _UNITS), "voters": SumForm((1,), 1)},
            is_for_the_run=self.parameters.imbalance == "first",
        )
        voters = int(answers.sums["voters"][0])
        mean = int(answers.sums["imbalance"][0]) / (_UNITS * voters) if voters else 1.0
        # A sum that is larger than its number of voters is of clients that lie.
        decision = {_IMBALANCE: np.array([min(mean, 1.0)])}
        return dict.fromkeys(facts.clients, decision)

    def answer(
        self, question: Question, pool: PoolView, context: QueryContext, memory: Memory | None
    ) -> tuple[Memory, Answer]:
        """Return the client's γ and whether it votes; nothing needs to be remembered."""
        if question.name != _IMBALANCE:
            raise ValueError(f"{question.name!r}: allowed is {_IMBALANCE}")
        labels_L = torch.from_numpy(context.labels_L)
        classes = len(torch.unique(labels_L))
        if classes == 0 or (classes == 1 and self.parameters.single_class == "skip"):
            told = 0, 0
        else:
            logits_LC = pool.signal(Signal.LABELLED_GLOBAL_LOGITS)
            labels_L = labels_L.to(logits_LC.device)
            own = imbalance(balanced_prior(logits_LC, labels_L), labels_L)
            told = round(own * _UNITS), 1
        sums = {"imbalance": told[0], "voters": told[1]}
        return {}, Answer(sums={name: np.array([n], np.int64) for name, n in sums.items()})

    def choose(
        self, decision: Question, pool: PoolView, context: QueryContext, memory: Memory
    ) -> NDArray[np.int64]:
        """Return the classes' picks by the mean imbalance."""
        mean = float(decision.floats(_IMBALANCE, 1)[0])
        if not 0 <= mean <= 1:
            raise ValueError(f"decision: {_IMBALANCE} is {mean}; allowed is 0 to 1")
        return self.picked(pool, context, mean)
