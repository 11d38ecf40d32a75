"""How one budget is split over clients by what their samples are: both halves of the exchange.

The server's half asks for sums over the clients, and for a number or two of each; what single
samples are taken for, and how they score, stays where it is. `budget-split=missing` goes by the
classes that all clients together lack, `threshold` by the highest scores of all samples.

Shape suffixes: N samples of a pool, C classes, K edges.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.errors import ConfigError, NonFiniteSignal
from ahfal_app.query.core.base import QueryContext, ScoringStrategy
from ahfal_app.query.core.budgets import allocate
from ahfal_app.query.core.coordination import (
    Coordination,
    Coordinator,
    Decisions,
    FederationFacts,
    Memory,
)
from ahfal_app.query.core.one_model import OneModelStrategy
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
from ahfal_app.query.core.registry import make_strategy, strategy_class, strategy_names
from ahfal_app.query.core.reveals import Reveal
from ahfal_app.settings import Settings

#: Without `budget-cap` a client gets at most so many equal shares.
EQUAL_SHARES = 4

#: Into so many parts an interval of scores is cut at a time.
EDGES = 256

# Intervals that are cut; of a range of 1 what is left then is below 1e-9.
_ROUNDS = 4

# More edges than a question needs, by far.
_MOST_EDGES = 4097

# Shares of labels are whole numbers of this many parts, so that rounding parts no two remainders.
_PARTS = 10**9


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most labels of each client in a cycle.

    Attributes
    ----------
    fewest, most : Mapping[int, int]
        By client.
    """

    fewest: Mapping[int, int]
    most: Mapping[int, int]

    @classmethod
    def of(cls, facts: FederationFacts, floor: int, cap: int) -> Bounds:
        """Return what settings and pools allow; fewest are in all no more than there is to split.

        Parameters
        ----------
        facts : FederationFacts
            The clients.
        floor, cap : int
            `budget-floor`, and `budget-cap` as of `cap_of`.
        """
        clients = list(facts.clients)
        most = {client: min(facts.pools[client], cap) for client in clients}
        floors = [min(floor, most[client]) for client in clients]
        fewest = allocate(floors, floors, facts.shared).tolist()
        return cls(dict(zip(clients, fewest, strict=True)), most)


class Split(Coordination):
    """A way to split one budget for which clients are asked.

    Parameters
    ----------
    floor, cap : int
        `budget-floor` and `budget-cap`.
    """

    signals = frozenset({Signal.GLOBAL_LOGITS})
    reveals: ClassVar[frozenset[Reveal]] = frozenset({Reveal.BUDGET})
    """What the server learns of a single client's samples besides sums."""

    def __init__(self, floor: int = 0, cap: int = 0) -> None:
        self.floor = floor
        self.cap = cap

    @property
    def most_samples(self) -> int:
        """The most samples of one client that sums can hold."""
        return LARGEST_PART

    def cap_of(self, facts: FederationFacts) -> int:
        """Return the most labels of one client: as set, or so many equal shares."""
        return self.cap or -(-EQUAL_SHARES * facts.shared // len(facts.clients))

    def decided(
        self,
        facts: FederationFacts,
        clients: Sequence[int],
        wanted: Mapping[int, int],
        weights: Mapping[int, float],
    ) -> Decisions:
        """Return what each client gets: what is wanted for it, within its bounds.

        What one cannot take goes to the others as they want; floors come first.

        Parameters
        ----------
        facts : FederationFacts
            The clients as they began.
        clients : Sequence[int]
            Those that are still there.
        wanted : Mapping[int, int]
            Labels of each of these.
        weights : Mapping[int, float]
            What it goes by, for people.
        """
        bounds = Bounds.of(facts, self.floor, self.cap_of(facts))
        fewest = [bounds.fewest[client] for client in clients]
        room = [bounds.most[c] - low for c, low in zip(clients, fewest, strict=True)]
        above = self.above_floors([wanted[client] for client in clients], fewest)
        more = allocate(above, room, facts.shared - sum(fewest)).tolist()
        return {
            client: {
                "labels": np.array([low + high]),
                "most": np.array([bounds.most[client]]),
                "weight": np.array([weights[client]], np.float64),
            }
            for client, low, high in zip(clients, fewest, more, strict=True)
        }

    @abstractmethod
    def above_floors(self, wanted: Sequence[int], fewest: Sequence[int]) -> list[int]:
        """Return the weights by which is split what is left once floors are granted."""


class MissingSplit(Split):
    """Labels go to the classes that all clients together lack, and to who seems to have them.

    The clients' labels of each class are counted, and the samples of each that the global model
    sees in their pools. Lacking is what a class needs to have its equal part of all labels.
    """

    name = "missing"

    @property
    def most_steps(self) -> int:
        """How many steps there may be."""
        return 2

    def coordinator(self, facts: FederationFacts) -> Coordinator:
        """Ask for both counts, and what each client would get of each class's labels."""
        most = SumForm((facts.num_classes,), facts.most_samples)
        counted = yield Step("classes", sums={"labelled": most, "predicted": most})
        predicted_C = counted.sums["predicted"]
        budgets_C = class_budgets(counted.sums["labelled"], predicted_C, facts.shared)
        answers = yield Step(
            "shares",
            {"budgets": budgets_C, "predicted": predicted_C},
            clear={"share": ClearForm((1,), 0.0, float(facts.shared))},
        )
        shares = {client: float(answers.clear[client]["share"][0]) for client in answers.clients}
        wanted = rounded([shares[c] for c in answers.clients], int(budgets_C.sum()))
        sizes = [facts.labelled[c] + facts.pools[c] for c in answers.clients]
        rest = facts.shared - sum(wanted)
        by_size = allocate(sizes, sizes, rest).tolist()
        together = [here + more for here, more in zip(wanted, by_size, strict=True)]
        return self.decided(
            facts,
            answers.clients,
            dict(zip(answers.clients, together, strict=True)),
            shares,
        )

    def answer(
        self, question: Question, pool: PoolView, context: QueryContext, memory: Memory | None
    ) -> tuple[Memory, Answer]:
        """Count, or return this client's part of what each class gets, by its part of the class."""
        classes = context.num_classes
        if question.name == "classes":
            predicted_C = predicted_classes(pool, classes)
            sums = {"labelled": context.class_counts_C.astype(np.int64), "predicted": predicted_C}
            return {"predicted": torch.from_numpy(predicted_C)}, Answer(sums)
        if question.name != "shares" or memory is None:
            raise ValueError(f"{question.name!r}: allowed is 'classes', and then 'shares'")
        own_C = memory["predicted"].numpy()
        budgets_C = question.integers("budgets", classes, highest=LARGEST_PART)
        all_C = question.integers("predicted", classes, highest=2**62)
        if (own_C > all_C).any() or (budgets_C > all_C).any():
            raise ValueError(
                "shares: allowed are counts of all clients' samples, and no more labels than those"
            )
        share = class_share(budgets_C, own_C, all_C)
        return memory, Answer(clear={"share": np.array([float(share)])})

    def above_floors(self, wanted: Sequence[int], fewest: Sequence[int]) -> list[int]:
        """Return what is wanted: floors come on top of it."""
        return list(wanted)


class ThresholdSplit(Split):
    """Each client gets as many labels as it has samples among the highest scores of all clients.

    The score above which there are as many samples as labels is found by counting: all clients
    count their samples above some edges, and the interval between two of them is looked into again.
    A client that then chooses by the same scores takes the samples above it.

    Parameters
    ----------
    floor, cap : int
        `budget-floor` and `budget-cap`.
    strategy : ScoringStrategy
        Whose scores count.
    edges : int
        Into how many parts an interval is cut at a time.
    """

    name = "threshold"

    def __init__(self, floor: int, cap: int, strategy: ScoringStrategy, edges: int = EDGES) -> None:
        super().__init__(floor, cap)
        self._strategy = strategy
        self._edges = edges

    @property
    def most_steps(self) -> int:
        """How many steps there may be."""
        return _ROUNDS + 1

    def coordinator(self, facts: FederationFacts) -> Coordinator:
        """Ask for counts above edges, and at last how many samples of each client are where."""
        cap = self.cap_of(facts)
        floor = min(self.floor, cap)
        bounds = np.array([floor, cap])
        low, high = yield from self._interval(facts, bounds)
        answers = yield Step(
            "last",
            {"edges": np.array([low, high]), "bounds": bounds},
            clear={"above": ClearForm((2,), 0.0, float(facts.most_samples))},
        )
        above = {client: answers.clear[client]["above"] for client in answers.clients}
        surely = [int(above[client][1]) for client in answers.clients]
        perhaps = [int(above[client][0]) - sure for client, sure in zip(above, surely, strict=True)]
        rest = max(0, facts.shared - sum(surely))
        more = allocate(perhaps, perhaps, rest).tolist()
        wanted = [sure + one for sure, one in zip(surely, more, strict=True)]
        weights = {client: float(above[client][0]) for client in answers.clients}
        return self.decided(
            facts, answers.clients, dict(zip(answers.clients, wanted, strict=True)), weights
        )

    def _interval(
        self, facts: FederationFacts, bounds: NDArray[np.int64]
    ) -> Generator[Step, Answers, tuple[float, float]]:
        """Find edges between which the threshold lies: above the lower one are enough samples."""
        low, high = lowest, highest = self._strategy.score_range(facts.num_classes)
        for _ in range(_ROUNDS):
            edges_K = np.linspace(low, high, self._edges + 1)
            answers = yield Step(
                "counts",
                {"edges": edges_K, "bounds": bounds},
                sums={"above": SumForm(edges_K.shape, facts.most_samples)},
            )
            above_K = answers.sums["above"]
            if above_K[0] < facts.shared:
                if low == lowest:
                    return low, low
                # Clients have left since.
                low, high = lowest, low
                continue
            if above_K[-1] >= facts.shared:
                # Among those with the highest score there can be.
                return highest, highest + 1.0
            place = int(np.flatnonzero(above_K >= facts.shared)[-1])
            if above_K[place] == facts.shared:
                return float(edges_K[place]), float(edges_K[place])
            low, high = float(edges_K[place]), float(edges_K[place + 1])
            if np.nextafter(low, high) >= high:
                break
        return low, high

    def answer(
        self, question: Question, pool: PoolView, context: QueryContext, memory: Memory | None
    ) -> tuple[Memory, Answer]:
        """Count this client's samples above each edge, at least and at most as many as it may."""
        if question.name not in ("counts", "last"):
            raise ValueError(f"{question.name!r}: allowed are 'counts' and 'last'")
        if memory is None:
            memory = {"scores": sorted_scores(self._strategy, pool, context)}
        edges_K = question.floats("edges", None)
        floor, cap = question.integers("bounds", 2, highest=LARGEST_PART).tolist()
        is_last = question.name == "last"
        if len(edges_K) > _MOST_EDGES or (is_last and len(edges_K) != 2):
            raise ValueError(f"edges: {len(edges_K)}; allowed are 2, or {_MOST_EDGES} for counts")
        if (np.diff(edges_K) < 0).any() or not np.isfinite(edges_K).all():
            raise ValueError("edges: allowed are finite numbers that do not fall")
        above_K = counts_above(memory["scores"].numpy(), edges_K, floor, cap)
        if is_last:
            return memory, Answer(clear={"above": above_K.astype(np.float64)})
        return memory, Answer({"above": above_K})

    def above_floors(self, wanted: Sequence[int], fewest: Sequence[int]) -> list[int]:
        """Return what is wanted above floors, which were counted before."""
        return [max(0, want - low) for want, low in zip(wanted, fewest, strict=True)]


def sorted_scores(strategy: ScoringStrategy, pool: PoolView, context: QueryContext) -> Tensor:
    """Return the scores of a pool, the lowest first: finite float64. Shape (N,).

    Raises
    ------
    NonFiniteSignal
        One is not finite.
    """
    if not len(pool):
        return torch.zeros(0, dtype=torch.float64)
    scores_N = strategy.scores(pool, context).double().cpu()
    if not torch.isfinite(scores_N).all():
        raise NonFiniteSignal(f"scores of {strategy.name!r} contain NaN or infinity")
    return scores_N.sort().values


def counts_above(
    sorted_N: NDArray[np.float64], edges_K: NDArray[np.float64], floor: int, cap: int
) -> NDArray[np.int64]:
    """Return how many scores are at least as high as each edge, within bounds. Shape (K,).

    Parameters
    ----------
    sorted_N : NDArray[np.float64]
        Scores, the lowest first.
    edges_K : NDArray[np.float64]
        Edges.
    floor, cap : int
        The least and the most; of fewer samples, all of them.
    """
    above_K = len(sorted_N) - np.searchsorted(sorted_N, edges_K, side="left")
    most = min(cap, len(sorted_N))
    counts_K: NDArray[np.int64] = np.clip(above_K, min(floor, most), most).astype(np.int64)
    return counts_K


def class_budgets(
    labelled_C: NDArray[np.int64], predicted_C: NDArray[np.int64], labels: int
) -> NDArray[np.int64]:
    """Return how many labels each class gets, in proportion to what it lacks.

    A class lacks what is missing to (all labels + new ones) / C. It can take no more than samples
    that are predicted to be of it; so these may be fewer than there are labels.

    Parameters
    ----------
    labelled_C : NDArray[np.int64]
        All clients' labels.
    predicted_C : NDArray[np.int64]
        Samples of all pools by predicted class.
    labels : int
        Labels to be split.
    """
    equal = Fraction(int(labelled_C.sum()) + labels, len(labelled_C))
    lacking = [max(Fraction(0), equal - count) for count in labelled_C.tolist()]
    capacity = [
        count if lack else 0 for count, lack in zip(predicted_C.tolist(), lacking, strict=True)
    ]
    return allocate(lacking, capacity, labels)


def class_share(
    budgets_C: NDArray[np.int64], own_C: NDArray[np.int64], all_C: NDArray[np.int64]
) -> Fraction:
    """Return a client's share of the classes' labels: Σ_c b_c u_c / U_c."""
    counts = zip(budgets_C.tolist(), own_C.tolist(), all_C.tolist(), strict=True)
    return sum((Fraction(b * u, whole) for b, u, whole in counts if whole), start=Fraction(0))


def rounded(shares: Sequence[float], labels: int) -> list[int]:
    """Round shares to whole numbers of this sum, by largest remainder; of equals the first.

    Where clients have left, the shares of the others are less than that, and are raised alike.
    """
    whole = sum(map(Fraction, shares))
    if not whole:
        return [0] * len(shares)
    parts = [round(Fraction(share) * labels * _PARTS / whole) for share in shares]
    counts = [part // _PARTS for part in parts]
    order = sorted(range(len(parts)), key=lambda k: (-(parts[k] % _PARTS), k))
    for k in order[: labels - sum(counts)]:
        counts[k] += 1
    return counts


def predicted_classes(pool: PoolView, num_classes: int) -> NDArray[np.int64]:
    """Return how many samples of a pool the global model takes for each class. Shape (C,)."""
    if not len(pool):
        return np.zeros(num_classes, np.int64)
    classes_N = pool.signal(Signal.GLOBAL_LOGITS).argmax(dim=1).cpu()
    return torch.bincount(classes_N, minlength=num_classes).numpy()


def make_split(settings: Settings) -> Split | None:
    """Return what clients are asked for a run's split; None where nobody has to be asked."""
    floor, cap = settings.budget_floor, settings.budget_cap
    if settings.budget_split == "missing":
        return MissingSplit(floor, cap)
    if settings.budget_split == "threshold":
        strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
        if isinstance(strategy, ScoringStrategy) and strategy.comparable_scores:
            return ThresholdSplit(floor, cap, strategy)
        raise ConfigError([f"budget-split='threshold': {not_comparable(settings)}"])
    return None


def not_comparable(settings: Settings) -> str:
    """Return why a run's query strategy has no threshold over all clients, or nothing."""
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    if not isinstance(strategy, ScoringStrategy):
        return f"strategy={settings.strategy!r} gives samples no scores"
    if strategy.comparable_scores:
        return ""
    return f"scores of strategy={settings.strategy!r} do not mean the same at all clients"


def comparable_strategies() -> list[str]:
    """Return the query strategies whose scores of the global model mean the same everywhere."""
    return [name for name in strategy_names() if _is_comparable(name)]


def _is_comparable(name: str) -> bool:
    kind = strategy_class(name)
    if not issubclass(kind, ScoringStrategy):
        return False
    asks_one = issubclass(kind, OneModelStrategy)
    strategy = make_strategy(name, {"model": "global"} if asks_one else {})
    return isinstance(strategy, ScoringStrategy) and strategy.comparable_scores
