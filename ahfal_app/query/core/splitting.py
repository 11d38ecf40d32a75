"""How one budget is split over clients by what their samples are: both halves of the exchange.

The server's half asks for sums over the clients, and for a number or two of each; what single
samples are taken for, and how they score, stays where it is. `budget-split=missing` goes by the
classes that all clients together lack, `threshold` by the highest scores of all samples.

Shape suffixes: C classes, K edges.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.budgets import allocate
from ahfal_app.query.core.coordination import (
    Coordination,
    Coordinator,
    Decisions,
    FederationFacts,
    Memory,
)
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.questions import (
    LARGEST_PART,
    Answer,
    ClearForm,
    Question,
    Step,
    SumForm,
)
from ahfal_app.query.core.reveals import Reveal
from ahfal_app.settings import Settings

#: Without `budget-cap` a client gets at most so many equal shares.
EQUAL_SHARES = 4

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
    if settings.budget_split == "missing":
        return MissingSplit(settings.budget_floor, settings.budget_cap)
    return None
