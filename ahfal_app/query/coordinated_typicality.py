"""TypiClust by all clients together: clusters of the federation, and samples at their centres.

Shape suffixes: N samples in the pool, P samples in pool and labelled set, D embedding width, K
clusters, k clusters of one client, Q nearest samples of which distances are told, B samples to buy.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.budgets import allocate
from ahfal_app.query.core.clustering import k_means, weighted_centres
from ahfal_app.query.core.coordination import (
    CoordinatedStrategy,
    Coordinator,
    Decisions,
    FederationFacts,
    Memory,
)
from ahfal_app.query.core.picking import SAME, ranked
from ahfal_app.query.core.points import directions, row_blocks
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

#: Integers per unit, and the largest number, of embeddings of length 1, and of others.
_UNITS, _LARGEST = {True: 2**20, False: 2**10}, {True: 1.0, False: 2.0**10}

#: Iterations at the server, over what clients tell of their clusters.
_SERVER_ITERATIONS = 10

#: Centres that move less than this are where they stay.
_STILL = 1e-4

#: Most distances that a client tells in a step: memory does not follow from what a server asks.
_MOST_DISTANCES = 2**24

#: In place of a distance, where a client has no such sample.
_NONE = -1.0

_INITIAL, _MOMENTS, _ASSIGN, _DISTANCES = "initial", "moments", "assign", "distances"

Centres = NDArray[np.float64]


class CoordinatedTypicality(CoordinatedStrategy):
    """The sample nearest to each centre of all clients' clusters, fewest labels first.

    Labelled sets and pools of all clients are clustered by k-means, from embeddings of the global
    model, of which the server sees sums and counts alone. Clusters take turns, those with the
    fewest labels in the whole federation first and among these the largest; in each turn the client
    with budget whose sample is nearest to the centre labels it. It is the sample *nearest to the
    centre*, as published, and not the most typical one as of `typicality`.

    What the paper leaves open: there are as many clusters as labels after the purchase, at most
    `max-clusters`. They begin from the centres of each client's own clusters, together twice as
    many, of which the server makes theirs (`initial=local-centroids`; of clusters of at least
    `least-region` samples), or from points that are drawn with the mean and the deviations of all
    samples (`public`), which tells nothing of a single client; so they do, too, where no client has
    a cluster that is large enough. Then centres are moved 10 times (20 times), or until they move
    by less than 10⁻⁴. A sample counts for the cluster that it is in; distances are told of the
    ⌈B/K⌉ + 1 nearest of each, and of more where these do not suffice. Clusters of at most
    `min-cluster-size` samples wait until all others have given theirs.
    Ties go to the lowest cluster, client and id. After `steps` each client takes its samples that
    are nearest to centres.
    """

    name: ClassVar[str] = "coordinated-typicality"
    paper: ClassVar[str] = (
        "Mohr and Weinshall, Coordination on a budget, 2026 (arXiv 2608.18634), section 4.2"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.GLOBAL_EMBEDDINGS, Signal.LABELLED_GLOBAL_EMBEDDINGS}
    )

    class Parameters(CoordinatedStrategy.Parameters):
        """Clusters, and where they begin."""

        max_clusters: int = Field(
            default=500, ge=1, description="Largest number of clusters, whatever the budget."
        )
        min_cluster_size: int = Field(
            default=5,
            ge=0,
            description="Clusters up to this size wait until all others have given their samples.",
        )
        initial: Literal["local-centroids", "public"] = Field(
            default="local-centroids",
            description="Whether centres begin at those of the clients' clusters, or at points "
            "drawn from sums over all.",
        )
        least_region: int = Field(
            default=5,
            ge=1,
            description="Fewest samples of a cluster whose centre a client tells.",
        )
        normalise: bool = Field(
            default=True, description="Whether embeddings are scaled to length 1."
        )

        steps: int = Field(
            default=200,
            ge=4,
            le=10_000,
            description="Most steps of a cycle; after them clients choose the rest by themselves.",
        )

    parameters: Parameters

    @property
    def reveals(self) -> frozenset[Reveal]:
        """What the server learns of single clients."""
        if self.parameters.initial == "public":
            return frozenset({Reveal.DISTANCES})
        return of_means(self.parameters.least_region) | {Reveal.DISTANCES}

    # --- the server's half --------------------------------------------------------------

    @property
    def most_samples(self) -> int:
        """As many as the sums over clusters can hold, and those of squares in whole numbers."""
        units, largest = _UNITS[self.parameters.normalise], _LARGEST[self.parameters.normalise]
        return LARGEST_PART // int(max(units * largest, largest**2)) - 1

    def coordinator(self, facts: FederationFacts) -> Coordinator:
        """Return the server's half: the beginning, the centres, and the turns."""
        wanted = sum(facts.labelled.values()) + sum(facts.budgets.values())
        number = max(1, min(wanted, self.parameters.max_clusters))
        centres_KD, left, iterations = np.empty((0, facts.width)), facts.most_steps, 10
        if self.parameters.initial == "local-centroids":
            centres_KD = yield from self._local_centres(facts, number)
            left -= 1
        if not len(centres_KD):
            # Also where no client has a cluster that is large enough to be told.
            centres_KD = yield from self._public_centres(facts, number)
            left, iterations = left - 1, 20
        for _ in range(min(iterations, left - 1)):
            moved_KD = yield from self._moved(facts, centres_KD)
            still = np.square(moved_KD - centres_KD).sum(axis=1).max() < _STILL**2
            centres_KD, left = moved_KD, left - 1
            if still:
                break
        return (yield from self._turns(facts, centres_KD, left))

    def _local_centres(
        self, facts: FederationFacts, number: int
    ) -> Generator[Step, Answers, Centres]:
        """Return the centres of what clients tell of their own clusters."""
        sizes = [facts.labelled[client] + facts.pools[client] for client in facts.clients]
        shares_M = allocate(sizes, sizes, 2 * number)
        most = max(1, int(shares_M.max()))
        largest = _LARGEST[self.parameters.normalise] * 1.001
        answers = yield Step(
            _INITIAL,
            broadcast={"clients": np.array(facts.clients, dtype=np.int64), "clusters": shares_M},
            clear={
                "centres": ClearForm((most, facts.width), -largest, largest),
                "sizes": ClearForm((most,), 0, facts.most_samples),
            },
        )
        told = list(answers.clear.values())
        sizes_k = np.concatenate([each["sizes"] for each in told])
        centres_kD = np.concatenate([each["centres"] for each in told])[sizes_k > 0]
        generator = facts.generator(f"{self.name}.server")
        return weighted_centres(
            centres_kD, sizes_k[sizes_k > 0], number, _SERVER_ITERATIONS, generator
        )

    def _public_centres(
        self, facts: FederationFacts, number: int
    ) -> Generator[Step, Answers, Centres]:
        """Return points drawn with the mean and the deviations of all samples."""
        units, largest = _UNITS[self.parameters.normalise], _LARGEST[self.parameters.normalise]
        # Of large clients with large embeddings the squares are told in coarser units.
        while (facts.most_samples + 1) * units * largest**2 > LARGEST_PART:
            units //= 2
        most = (facts.most_samples + 1) * units
        answers = yield Step(
            _MOMENTS,
            broadcast={"units": np.array([units], dtype=np.int64)},
            sums={
                "totals": SumForm((facts.width,), math.ceil(most * largest), is_signed=True),
                "squares": SumForm((facts.width,), math.ceil(most * largest**2)),
                "number": SumForm((1,), facts.most_samples),
            },
        )
        samples = max(1, int(answers.sums["number"][0]))
        mean_D = answers.sums["totals"] / units / samples
        variance_D = np.maximum(answers.sums["squares"] / units / samples - mean_D**2, 0.0)
        generator = facts.generator(f"{self.name}.public")
        drawn_KD = generator.standard_normal((number, facts.width))
        return np.asarray(mean_D + drawn_KD * np.sqrt(variance_D))

    def _moved(
        self, facts: FederationFacts, centres_KD: Centres
    ) -> Generator[Step, Answers, Centres]:
        """Return the means of the clusters; an empty one keeps its centre."""
        units, largest = _UNITS[self.parameters.normalise], _LARGEST[self.parameters.normalise]
        most = math.ceil((facts.most_samples + 1) * units * largest)
        answers = yield Step(
            _ASSIGN,
            broadcast={"centres": centres_KD},
            sums={
                "totals": SumForm(centres_KD.shape, most, is_signed=True),
                "counts": SumForm((len(centres_KD),), facts.most_samples),
            },
        )
        return moved(centres_KD, answers.sums["totals"] / units, answers.sums["counts"])

    def _turns(
        self, facts: FederationFacts, centres_KD: Centres, left: int
    ) -> Generator[Step, Answers, Decisions]:
        """Let clusters take turns, and return which samples of which clusters each client buys."""
        number = math.ceil(sum(facts.budgets.values()) / len(centres_KD)) + 1
        number = min(number, max(1, _MOST_DISTANCES // len(centres_KD)))
        answers = yield self._distances(facts, centres_KD, 0, number)
        turns = Turns(facts.budgets, answers)
        sizes_K, labelled_K = answers.sums["sizes"], answers.sums["labelled"]
        order = sorted(range(len(centres_KD)), key=lambda k: (labelled_K[k], -sizes_K[k]))
        limit = self.parameters.min_cluster_size
        large = [k for k in order if sizes_K[k] > limit]
        small = [k for k in order if sizes_K[k] <= limit]
        for clusters in (large, small):
            turns.go_round(clusters)
            while left > 1 and turns.lacks(clusters):
                left -= 1
                turns.told((yield self._distances(facts, centres_KD, turns.known, number)))
                turns.go_round(clusters)
        return {
            client: {"centres": centres_KD, "clusters": clusters_B, "ranks": ranks_B}
            for client, (clusters_B, ranks_B) in turns.bought().items()
        }

    def _distances(
        self, facts: FederationFacts, centres_KD: Centres, first: int, number: int
    ) -> Step:
        size, form = len(centres_KD), SumForm((len(centres_KD),), facts.most_samples)
        return Step(
            _DISTANCES,
            broadcast={"centres": centres_KD, "ranks": np.array([first, number], dtype=np.int64)},
            # Asked once: of a client that leaves in between, the difference would be its part.
            sums={} if first else {"sizes": form, "labelled": form},
            clear={"distances": ClearForm((number, size), _NONE, 1e9)},
        )

    # --- the clients' half --------------------------------------------------------------

    def answer(
        self, question: Question, pool: PoolView, context: QueryContext, memory: Memory | None
    ) -> tuple[Memory, Answer]:
        """Return sums over clusters, or distances to centres; nothing needs to be remembered."""
        points_PD = self._points(pool)
        if question.name == _INITIAL:
            return {}, self._own_clusters(question, points_PD, context)
        if question.name == _MOMENTS:
            return {}, self._moments(question, points_PD)
        if question.name not in (_ASSIGN, _DISTANCES):
            names = f"{_INITIAL} | {_MOMENTS} | {_ASSIGN} | {_DISTANCES}"
            raise ValueError(f"{question.name!r}: allowed is {names}")
        clusters = self._clusters(question, points_PD, len(pool))
        if question.name == _ASSIGN:
            totals_KD, counts_K = clusters.sums()
            totals_KD = (totals_KD * _UNITS[self.parameters.normalise]).round()
            sums = {"totals": _integers(totals_KD), "counts": _integers(counts_K)}
            return {}, Answer(sums=sums)
        first, number = question.integers("ranks", 2, highest=_MOST_DISTANCES).tolist()
        if number * clusters.number > _MOST_DISTANCES:
            raise ValueError(
                f"{question.name}: {number} for each of {clusters.number} centres; allowed are "
                f"{_MOST_DISTANCES} together"
            )
        sizes_K, labelled_K = clusters.counts(), clusters.labelled()
        sums = {} if first else {"sizes": _integers(sizes_K), "labelled": _integers(labelled_K)}
        return {}, Answer(sums=sums, clear={"distances": clusters.distances(first, number)})

    def choose(
        self, decision: Question, pool: PoolView, context: QueryContext, memory: Memory
    ) -> NDArray[np.int64]:
        """Return the samples that are named by cluster and rank, then those nearest to centres."""
        clusters = self._clusters(decision, self._points(pool), len(pool))
        clusters_B = decision.integers("clusters", None, highest=clusters.number - 1)
        ranks_B = decision.integers("ranks", len(clusters_B), highest=len(pool) - 1)
        if len(clusters_B) > context.budget:
            raise ValueError("decision: more samples than this client has budget for")
        named_B = clusters.ranked(clusters_B, ranks_B)
        rest_N = clusters.by_distance()
        rest_N = rest_N[~np.isin(rest_N, named_B)]
        rest_N = rest_N[: context.budget - len(named_B)]
        ids_B: NDArray[np.int64] = pool.ids_N[np.concatenate([named_B, rest_N])]
        return ids_B

    def _points(self, pool: PoolView) -> Tensor:
        """Return embeddings of the pool, then of the labelled set, float64. Shape (P, D)."""

        def points() -> Tensor:
            both_PD = torch.cat(
                [
                    pool.signal(Signal.GLOBAL_EMBEDDINGS),
                    pool.signal(Signal.LABELLED_GLOBAL_EMBEDDINGS),
                ]
            ).double()
            if self.parameters.normalise:
                return directions(both_PD)
            return both_PD.clamp(-_LARGEST[False], _LARGEST[False])

        return pool.once((self.name, self.parameters.normalise), points)

    def _clusters(self, question: Question, points_PD: Tensor, size: int) -> _Clusters:
        centres_KD = question.floats("centres", None, points_PD.shape[1])
        most = self.parameters.max_clusters
        if not 1 <= len(centres_KD) <= most:
            raise ValueError(f"{question.name}: {len(centres_KD)} centres; allowed are 1 to {most}")
        return _Clusters(points_PD, torch.tensor(centres_KD).to(points_PD.device), size)

    def _own_clusters(self, question: Question, points_PD: Tensor, context: QueryContext) -> Answer:
        """Return the centres of this client's own clusters, of those that are large enough."""
        clients_M = question.integers("clients", None, highest=2**31)
        # Together they have twice as many as there will be in the end.
        highest = 2 * self.parameters.max_clusters
        shares_M = question.integers("clusters", len(clients_M), highest=highest)
        most = max(1, int(shares_M.max(initial=0)))
        own = int(shares_M[clients_M == context.client].sum())
        if own > len(points_PD):
            raise ValueError(f"{question.name}: {own} clusters of {len(points_PD)} samples")
        centres_kD, sizes_k = np.zeros((most, points_PD.shape[1])), np.zeros(most)
        if own:
            generator = context.generator(f"{self.name}.initial")
            numbers_P = torch.from_numpy(k_means(points_PD, own, generator)).to(points_PD.device)
            counts_k = torch.bincount(numbers_P, minlength=own)
            totals_kD = points_PD.new_zeros(own, points_PD.shape[1])
            totals_kD.index_add_(0, numbers_P, points_PD)
            is_told_k = counts_k >= self.parameters.least_region
            told_kD = totals_kD[is_told_k] / counts_k[is_told_k][:, None]
            centres_kD[: len(told_kD)] = told_kD.cpu().numpy()
            sizes_k[: len(told_kD)] = counts_k[is_told_k].cpu().numpy()
        return Answer(clear={"centres": centres_kD, "sizes": sizes_k})

    def _moments(self, question: Question, points_PD: Tensor) -> Answer:
        finest = _UNITS[self.parameters.normalise]
        units = int(question.integers("units", 1, lowest=1, highest=finest)[0])
        return Answer(
            sums={
                "totals": _integers((points_PD.sum(dim=0) * units).round()),
                "squares": _integers((points_PD.square().sum(dim=0) * units).round()),
                "number": np.array([len(points_PD)], dtype=np.int64),
            }
        )


class Turns:
    """Clusters that take turns; in each the nearest client with budget gives a sample.

    Parameters
    ----------
    budgets : Mapping[int, int]
        How many samples each client may give.
    answers : Answers
        What clients told of the nearest samples of each cluster.
    """

    def __init__(self, budgets: Mapping[int, int], answers: Answers) -> None:
        self._left = dict(budgets)
        self._distances: dict[int, NDArray[np.float64]] = {}
        self._used: dict[int, NDArray[np.int64]] = {}
        self._bought: dict[int, list[tuple[int, int]]] = {client: [] for client in budgets}
        self.told(answers)

    @property
    def known(self) -> int:
        """How many of the nearest samples of each cluster are known."""
        return len(next(iter(self._distances.values()), np.empty(0)))

    def told(self, answers: Answers) -> None:
        """Take in distances of the next nearest samples, of the clients that are still there."""
        for client, told in answers.clear.items():
            before = self._distances.get(client, told["distances"][:0])
            self._distances[client] = np.concatenate([before, told["distances"]])
            self._used.setdefault(client, np.zeros(told["distances"].shape[1], dtype=np.int64))
        for client in set(self._left) - set(answers.clients):
            del self._left[client]
            self._distances.pop(client, None)

    def go_round(self, clusters: Sequence[int]) -> None:
        """Let clusters take turns until none gives a known sample, or all is bought."""
        gave = True
        while gave and any(self._left.values()):
            gave = sum([self._give(cluster) for cluster in clusters]) > 0

    def lacks(self, clusters: Sequence[int]) -> bool:
        """Whether clients with budget may have more samples of these clusters than are known."""
        last = self.known - 1
        return any(
            left and any(self._distances[client][last, k] >= 0 for k in clusters)
            for client, left in self._left.items()
        )

    def bought(self) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return each client's samples as clusters and ranks in them, in the order of the turns."""
        pairs = {
            client: np.array(self._bought[client], dtype=np.int64).reshape(-1, 2)
            for client in self._left
        }
        return {client: (pair[:, 0], pair[:, 1]) for client, pair in pairs.items()}

    def _give(self, cluster: int) -> bool:
        offers = {}
        for client, left in self._left.items():
            rank = int(self._used[client][cluster])
            if left and rank < self.known and self._distances[client][rank, cluster] >= 0:
                offers[client] = float(self._distances[client][rank, cluster])
        if not offers:
            return False
        most = min(offers.values()) * (1 + SAME)
        client = min(each for each, distance in offers.items() if distance <= most)
        self._bought[client].append((cluster, int(self._used[client][cluster])))
        self._used[client][cluster] += 1
        self._left[client] -= 1
        return True


class _Clusters:
    """Which of a client's samples are in which cluster, the first `size` of them its pool's."""

    def __init__(self, points_PD: Tensor, centres_KD: Tensor, size: int) -> None:
        self.number = len(centres_KD)
        self._points_PD, self._size = points_PD, size
        self._clusters_P = nearest_centres(points_PD, centres_KD)
        squared_P = (points_PD - centres_KD[self._clusters_P]).square().sum(dim=1)
        self._distances_N = squared_P[:size].sqrt()
        in_order_N = ranked(-self._distances_N)
        self._in_order_N = in_order_N.cpu().numpy()
        clusters_N = self._clusters_P[:size][in_order_N]
        by_cluster_N = torch.argsort(clusters_N, stable=True)
        #: Positions by cluster, and in each by rising distance.
        self._grouped_N = in_order_N[by_cluster_N]
        self._sizes_K = torch.bincount(clusters_N, minlength=self.number)
        self._starts_K = self._sizes_K.cumsum(0) - self._sizes_K

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return sums of the samples (K, D), and how many (K,), labelled ones among them."""
        totals_KD = self._points_PD.new_zeros(self.number, self._points_PD.shape[1])
        totals_KD.index_add_(0, self._clusters_P, self._points_PD)
        return totals_KD, self.counts()

    def counts(self) -> Tensor:
        """Return how many samples each cluster has, labelled ones among them. Shape (K,)."""
        return torch.bincount(self._clusters_P, minlength=self.number)

    def labelled(self) -> Tensor:
        """Return how many labelled samples each cluster has. Shape (K,)."""
        return torch.bincount(self._clusters_P[self._size :], minlength=self.number)

    def distances(self, first: int, number: int) -> NDArray[np.float64]:
        """Return distances of the nearest samples of each cluster from a rank on. Shape (Q, K)."""
        told_QK = np.full((number, self.number), _NONE)
        sizes_K, starts_K = self._sizes_K.cpu().numpy(), self._starts_K.cpu().numpy()
        grouped_N = self._distances_N[self._grouped_N].cpu().numpy()
        for row in range(number):
            has_K = sizes_K > first + row
            told_QK[row, has_K] = grouped_N[starts_K[has_K] + first + row]
        return told_QK

    def ranked(
        self, clusters_B: NDArray[np.int64], ranks_B: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the positions of samples that are named by cluster and rank.

        Raises
        ------
        ValueError
            There is no such sample, or one is named twice.
        """
        sizes_K, starts_K = self._sizes_K.cpu().numpy(), self._starts_K.cpu().numpy()
        if (ranks_B >= sizes_K[clusters_B]).any():
            raise ValueError("decision: a rank that its cluster has not")
        positions_B = self._grouped_N.cpu().numpy()[starts_K[clusters_B] + ranks_B]
        if len(np.unique(positions_B)) != len(positions_B):
            raise ValueError("decision: a sample is named twice")
        return np.asarray(positions_B, dtype=np.int64)

    def by_distance(self) -> NDArray[np.int64]:
        """Return all positions of the pool by rising distance to their centres."""
        return self._in_order_N


def nearest_centres(points_PD: Tensor, centres_KD: Tensor) -> Tensor:
    """Return each point's nearest centre, the lowest of several, int64. Shape (P,)."""
    nearest_P = torch.zeros(len(points_PD), dtype=torch.int64, device=points_PD.device)
    for rows in row_blocks(len(points_PD)):
        squared_RK = torch.cdist(points_PD[rows], centres_KD).square()
        least_R1 = squared_RK.amin(dim=1, keepdim=True)
        # In float64, of which a product cancels half of the digits near a centre.
        level_R1 = least_R1 * (1 + SAME) + 2.0**-40
        nearest_P[rows] = (squared_RK <= level_R1).int().argmax(dim=1)
    return nearest_P


def moved(
    centres_KD: Centres, totals_KD: Centres, counts_K: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the means of clusters; an empty one keeps its centre. Shape (K, D)."""
    means_KD = totals_KD / np.maximum(counts_K, 1)[:, None]
    return np.where(counts_K[:, None] > 0, means_KD, centres_KD)


def _integers(values: Tensor) -> NDArray[np.int64]:
    whole: NDArray[np.int64] = values.to(torch.int64).cpu().numpy()
    return whole
