"""Clients that cover their samples together: each label where it covers most of all of them.

Shape suffixes: N samples in the pool, L labelled samples, R reference points, D embedding width,
P points that were proposed, A points that were accepted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.coordination import (
    CoordinatedStrategy,
    Coordinator,
    FederationFacts,
    Memory,
)
from ahfal_app.query.core.coverage import Coverage, Kernel, Search, greedy_from
from ahfal_app.query.core.picking import SAME, first_highest
from ahfal_app.query.core.points import EmbeddingPoints, directions
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.questions import (
    LARGEST_PART,
    Answer,
    Answers,
    ClearForm,
    Question,
    Step,
    SumForm,
)
from ahfal_app.query.core.reveals import Reveal, of_means

#: No embedding of a network has a number that large; and no distance is that long.
LARGEST = 1e6

#: In place of a distance, where a client has nothing to choose any more.
NOTHING_LEFT = -1.0

#: Points whose distances to all samples are computed together.
POINTS = 64

_PROPOSE, _COUNT = "propose", "count"


class CoordinatedCovering(CoordinatedStrategy):
    """Greedy coverage of all clients' samples, of which nobody sees another's.

    Steps come in pairs. *Propose*: each client tells the mean of what its best candidate would
    newly cover, weighted by how much. *Count*: each tells how much every proposed point would
    newly cover of its own samples, which is summed, and how far its nearest sample is. The point
    that covers most is accepted, the client with the nearest sample labels that one, and all take
    the point, not the sample, to cover what it covers.

    A subclass says by which kernel, and what is asked before the first pair.
    """

    signals: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.GLOBAL_EMBEDDINGS, Signal.LABELLED_GLOBAL_EMBEDDINGS}
    )
    units: ClassVar[int]
    """Integers per unit of gain, as it is summed."""

    class Parameters(CoordinatedStrategy.Parameters):
        """What is proposed, and by whom."""

        normalise: bool = Field(
            default=True, description="Whether embeddings are scaled to length 1."
        )
        reference_points: int = Field(
            default=10_000,
            ge=0,
            description="Most samples of a client, drawn at random, that are to be covered, each "
            "then counting for several; 0: all.",
        )
        least_region: int = Field(
            default=5,
            ge=1,
            description="Fewest samples whose mean a client tells: the mean of one is its "
            "embedding.",
        )
        proposers: Literal["with-budget", "all"] = Field(
            default="with-budget",
            description="Whether clients without budget propose points, too, which others then "
            "choose their nearest samples to.",
        )

    parameters: Parameters

    @property
    def reveals(self) -> frozenset[Reveal]:
        """What the server learns of single clients."""
        return of_means(self.parameters.least_region) | {Reveal.DISTANCES}

    # --- what a subclass says -----------------------------------------------------------

    @abstractmethod
    def kernel(self, radius: float) -> Kernel:
        """Return the kernel of a radius."""

    @abstractmethod
    def radius(self, facts: FederationFacts) -> Generator[Step, Answers, float]:
        """Ask for what the radius follows from, in one step or none; return the radius."""

    @abstractmethod
    def accepts(self, facts: FederationFacts, radius: float) -> tuple[int, float]:
        """Return how many points are accepted of one pair of steps, and how far apart at least."""

    def estimate(self, question: Question, points_ND: Tensor, context: QueryContext) -> Answer:
        """Return the answer to a step of `radius`.

        Raises
        ------
        ValueError
            The question is none.
        """
        raise ValueError(f"{question.name!r}: allowed is {_PROPOSE!r} or {_COUNT!r}")

    # --- the server's half --------------------------------------------------------------

    @property
    def most_samples(self) -> int:
        """As many as the sums of gains can hold."""
        return LARGEST_PART // self.units - 1

    def coordinator(self, facts: FederationFacts) -> Coordinator:
        """Return the server's half: pairs of steps, until all labels are bought or none proposes.

        Whatever is left then, each client chooses by itself from what it has not covered.
        """
        radius = yield from self.radius(facts)
        left, fresh = dict(facts.budgets), _Accepted.none(facts.width)
        # One step may have been taken for the radius.
        for _ in range((facts.most_steps - 1) // 2):
            if not any(left.values()):
                break
            answers = yield self._propose(facts, radius, fresh)
            fresh = _Accepted.none(facts.width)
            left = {client: left[client] for client in answers.clients}
            proposed_PD = np.array(
                [told["point"] for told in answers.clear.values() if told["proposes"][0]]
            ).reshape(-1, facts.width)
            if not len(proposed_PD) or not any(left.values()):
                break
            answers = yield self._count(facts, proposed_PD)
            left = {client: left[client] for client in answers.clients}
            fresh = _accepted(proposed_PD, answers, left, *self.accepts(facts, radius))
            for buyer in fresh.buyers_A:
                left[int(buyer)] -= 1
        decision = {"radius": np.array([radius]), **fresh.arrays}
        return dict.fromkeys(left, decision)

    def _propose(self, facts: FederationFacts, radius: float, fresh: _Accepted) -> Step:
        return Step(
            _PROPOSE,
            broadcast={"radius": np.array([radius]), **fresh.arrays},
            clear={
                "proposes": ClearForm((1,), 0.0, 1.0),
                "point": ClearForm((facts.width,), -LARGEST, LARGEST),
            },
        )

    def _count(self, facts: FederationFacts, proposed_PD: NDArray[np.float64]) -> Step:
        number = len(proposed_PD)
        return Step(
            _COUNT,
            broadcast={"points": proposed_PD},
            # A sample of which only some are drawn may round up.
            sums={"gains": SumForm((number,), (facts.most_samples + 1) * self.units)},
            clear={"distances": ClearForm((number,), NOTHING_LEFT, LARGEST * LARGEST)},
        )

    # --- the clients' half --------------------------------------------------------------

    def answer(
        self, question: Question, pool: PoolView, context: QueryContext, memory: Memory | None
    ) -> tuple[Memory, Answer]:
        """Return what is covered now, and a proposal, or gains and distances."""
        state = _State(self, pool, context, memory or {})
        if question.name == _PROPOSE:
            state.take_in(question)
            return state.memory(), state.proposal()
        if question.name == _COUNT:
            points_PD = question.floats("points", None, state.points_ND.shape[1])
            answer = state.count(points_PD)
            return state.memory(), answer
        return memory or {}, self.estimate(question, state.points_ND, context)

    def choose(
        self, decision: Question, pool: PoolView, context: QueryContext, memory: Memory
    ) -> NDArray[np.int64]:
        """Return the samples in the order in which they were bought, then those chosen alone."""
        state = _State(self, pool, context, memory)
        state.take_in(decision)
        left = context.budget - len(state.picks)
        alone = greedy_from(state.search, left, taken=state.picks)
        ids_B: NDArray[np.int64] = pool.ids_N[
            np.concatenate([np.array(state.picks, dtype=np.int64), alone])
        ]
        return ids_B

    def points(self, pool: PoolView) -> Tensor:
        """Return embeddings of the pool, then of the labelled set, float64. Shape (N + L, D)."""
        both_ND = torch.cat(
            [pool.signal(Signal.GLOBAL_EMBEDDINGS), pool.signal(Signal.LABELLED_GLOBAL_EMBEDDINGS)]
        ).double()
        return directions(both_ND) if self.parameters.normalise else both_ND


@dataclass(frozen=True, eq=False)
class _Accepted:
    """Points that were accepted, in this order, and which client buys its sample next to each."""

    points_AD: NDArray[np.float64]
    buyers_A: NDArray[np.int64]

    @classmethod
    def none(cls, width: int) -> _Accepted:
        return cls(np.empty((0, width)), np.empty(0, dtype=np.int64))

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"accepted": self.points_AD, "buyers": self.buyers_A}


def _accepted(
    proposed_PD: NDArray[np.float64],
    answers: Answers,
    left: Mapping[int, int],
    most: int,
    apart: float,
) -> _Accepted:
    """Return the points of the largest gains that are so far apart, while budgets last."""
    gains_P = answers.sums["gains"]
    budgets = dict(left)
    chosen: list[int] = []
    buyers: list[int] = []
    for place in np.argsort(-gains_P, kind="stable").tolist():
        buyer = _nearest(answers, budgets, place)
        if len(chosen) == most or buyer is None or (chosen and gains_P[place] <= 0):
            break
        near = np.square(proposed_PD[chosen] - proposed_PD[place]).sum(axis=1) < apart**2
        if near.any():
            continue
        chosen.append(place)
        buyers.append(buyer)
        budgets[buyer] -= 1
    return _Accepted(proposed_PD[chosen], np.array(buyers, dtype=np.int64))


def _nearest(answers: Answers, budgets: Mapping[int, int], place: int) -> int | None:
    """Return the client with budget whose sample is nearest to a point; the lowest of several."""
    distances = {
        client: float(told["distances"][place])
        for client, told in answers.clear.items()
        if budgets[client] and told["distances"][place] >= 0
    }
    if not distances:
        return None
    most = min(distances.values()) * (1 + SAME)
    return min(client for client, distance in distances.items() if distance <= most)


class _State:
    """What a client has covered, and bought, so far."""

    def __init__(
        self,
        strategy: CoordinatedCovering,
        pool: PoolView,
        context: QueryContext,
        memory: Memory,
    ) -> None:
        self._strategy, self._pool, self._context = strategy, pool, context
        parameters = strategy.parameters
        key = (strategy.name, parameters.normalise)
        self._points = pool.once(key, lambda: EmbeddingPoints(strategy.points(pool)))
        self._memory = memory
        self.picks: list[int] = memory["picks"].tolist() if "picks" in memory else []

    @property
    def points_ND(self) -> Tensor:
        """Embeddings of the pool, then of the labelled set."""
        return self._points.embeddings_ND

    @cached_property
    def search(self) -> Search:
        """The search as it was when the memory was kept; changed by what is taken in."""
        radius = float(self._memory["radius"])
        coverage = Coverage(
            self._points, self._strategy.kernel(radius), self._references, self._weights
        )
        size = len(self._pool)
        if "covered" in self._memory:
            device = self.points_ND.device
            covered_R, bounds_N = (self._memory[n].to(device) for n in ("covered", "bounds"))
            return Search(coverage, size, covered_R, (), bounds_N)
        labelled_L = torch.arange(size, len(self._points), device=self.points_ND.device)
        return Search(coverage, size, coverage.covered_by(labelled_L))

    @cached_property
    def _references(self) -> Tensor:
        number, most = len(self._points), self._strategy.parameters.reference_points
        references_R = torch.arange(number)
        if most and number > most:
            generator = self._context.generator(f"{self._strategy.name}.reference")
            drawn = np.sort(generator.choice(number, most, replace=False))
            references_R = torch.from_numpy(drawn)
        return references_R.to(self.points_ND.device)

    @property
    def _weights(self) -> Tensor:
        """How many samples each reference point stands for."""
        share = len(self._points) / max(1, len(self._references))
        return torch.full_like(self._references, share, dtype=torch.float64)

    @property
    def _left(self) -> int:
        return min(self._context.budget, len(self._pool)) - len(self.picks)

    def take_in(self, question: Question) -> None:
        """Cover what accepted points cover, and buy the nearest samples to those that are ours."""
        radius = float(question.floats("radius", 1)[0])
        known = self._memory.get("radius", torch.tensor(radius, dtype=torch.float64))
        if radius <= 0 or radius != float(known):
            raise ValueError(f"radius {radius:g}: allowed is one above 0, the same in all steps")
        self._memory = {**self._memory, "radius": known}
        accepted_AD = question.floats("accepted", None, self.points_ND.shape[1])
        buyers_A = question.integers("buyers", len(accepted_AD), highest=2**31)
        if int((buyers_A == self._context.client).sum()) > self._left:
            raise ValueError(f"{question.name}: more samples than this client has budget for")
        for squared_N, buyer in zip(self._squared_to(accepted_AD), buyers_A.tolist(), strict=True):
            self.search.cover(self.search.coverage.kernel(squared_N[self._references]))
            if buyer == self._context.client:
                pick = self._nearest(squared_N)[0]
                self.picks.append(pick)
                self.search.leave_out(pick)

    def _squared_to(self, points_PD: NDArray[np.float64]) -> Iterator[Tensor]:
        """Yield the squared distances of each point to all of the client's. Each of shape (N,)."""
        for points in torch.split(torch.tensor(points_PD), POINTS):
            yield from self._points.squared_distances_to(points.to(self.points_ND.device))

    def _nearest(self, squared_N: Tensor) -> tuple[int, float]:
        """Return the nearest sample that is not chosen, the lowest of several, and how far."""
        squared_N = squared_N[: len(self._pool)].clone()
        squared_N[torch.tensor(self.picks, dtype=torch.int64, device=squared_N.device)] = torch.inf
        pick = first_highest(-squared_N)
        return pick, float(squared_N[pick].sqrt())

    def proposal(self) -> Answer:
        """Return the mean of what the best candidate would newly cover, if it is of enough."""
        told = {"proposes": np.zeros(1), "point": np.zeros(self.points_ND.shape[1])}
        if self._left > 0 or (self._strategy.parameters.proposers == "all" and len(self._pool)):
            best = self.search.best()
            if best is not None:
                squared_1N = self._points.squared_distances(slice(best, best + 1), slice(None))
                new_R = self._new(squared_1N[0, self._references])
                effective = new_R.sum().square() / new_R.square().sum()
                if float(effective) >= self._strategy.parameters.least_region * (1 - SAME):
                    point_D = new_R @ self.points_ND[self._references] / new_R.sum()
                    told = {"proposes": np.ones(1), "point": point_D.cpu().numpy()}
        return Answer(clear=told)

    def count(self, points_PD: NDArray[np.float64]) -> Answer:
        """Return how much points would newly cover here, and how far the nearest samples are."""
        if "radius" not in self._memory:
            raise ValueError("count: allowed is a step after a proposal")
        gains_P = np.zeros(len(points_PD), np.int64)
        distances_P = np.full(len(points_PD), NOTHING_LEFT)
        for place, squared_N in enumerate(self._squared_to(points_PD)):
            new_R = self._new(squared_N[self._references])
            gain = float((new_R * self._weights).sum())
            gains_P[place] = round(gain * self._strategy.units)
            if self._left > 0:
                distances_P[place] = self._nearest(squared_N)[1]
        return Answer(sums={"gains": gains_P}, clear={"distances": distances_P})

    def _new(self, squared_R: Tensor) -> Tensor:
        """Return how much of each reference point is newly covered."""
        whole_R = self.search.coverage.kernel(squared_R)
        new_R = whole_R - self.search.covered_R
        # What differs by rounding alone is covered.
        return new_R.masked_fill(new_R <= whole_R * SAME, 0.0)

    def memory(self) -> Memory:
        """Return what is kept until the next step."""
        return {
            "radius": self._memory["radius"],
            "picks": torch.tensor(self.picks, dtype=torch.int64),
            "covered": self.search.covered_R,
            "bounds": self.search.bounds_N,
        }
