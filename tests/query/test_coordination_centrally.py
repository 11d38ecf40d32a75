"""Clients that choose together, beside one party that holds all samples and goes the slow way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.coordinating import chosen_together, contexts_for, pool_at

from ahfal_app.query import make_strategy
from ahfal_app.query.core.coordination import CoordinatedStrategy
from ahfal_app.query.core.questions import Question

Points = NDArray[np.float64]
Kernel = Callable[[Points], Points]


def made(name: str, **parameters: Any) -> CoordinatedStrategy:
    strategy = make_strategy(name, {k.replace("_", "-"): v for k, v in parameters.items()})
    assert isinstance(strategy, CoordinatedStrategy)
    return strategy


@dataclass
class Slow:
    """A client's samples, of which the first are its pool, and how much of each is covered."""

    points: Points
    size: int
    budget: int
    covered: Points
    bought: list[int]

    def new(self, kernel: Kernel, point: Points) -> Points:
        return np.maximum(0.0, self.kernel_at(kernel, point) - self.covered)

    def kernel_at(self, kernel: Kernel, point: Points) -> Points:
        return kernel(np.linalg.norm(self.points - point, axis=1))

    def best(self, kernel: Kernel) -> int | None:
        free = [n for n in range(self.size) if n not in self.bought]
        gains = [self.new(kernel, self.points[n]).sum() for n in free]
        if not gains or max(gains) <= 1e-9:
            return None
        return free[int(np.argmax(np.array(gains) >= max(gains) - 1e-9))]

    def nearest(self, point: Points) -> tuple[float, int]:
        distances = np.linalg.norm(self.points[: self.size] - point, axis=1)
        return min((d, n) for n, d in enumerate(distances) if n not in self.bought)

    def choose_alone(self, kernel: Kernel) -> None:
        is_fresh = False
        while len(self.bought) < self.budget:
            best = self.best(kernel)
            if best is None and is_fresh:
                free = [n for n in range(self.size) if n not in self.bought]
                self.bought += free[: self.budget - len(self.bought)]
            elif best is None:
                self.covered, is_fresh = np.zeros(len(self.points)), True
            else:
                self.covered = np.maximum(
                    self.covered, self.kernel_at(kernel, self.points[best])
                )  # fmt: skip
                self.bought.append(best)
                is_fresh = False


def covered_centrally(
    pools: list[Points],
    labelled: list[Points],
    budgets: list[int],
    kernel: Kernel,
    least: int,
    all_propose: bool,
) -> dict[int, list[int]]:
    """Return what the clients buy by the published algorithm, one point at a time."""
    clients = []
    for pool, known, budget in zip(pools, labelled, budgets, strict=True):
        both = np.concatenate([pool, known])
        covered = np.zeros(len(both))
        for point in known:
            covered = np.maximum(covered, kernel(np.linalg.norm(both - point, axis=1)))
        clients.append(Slow(both, len(pool), min(budget, len(pool)), covered, []))
    while any(len(each.bought) < each.budget for each in clients):
        proposed = []
        for each in clients:
            may_propose = all_propose or len(each.bought) < each.budget
            best = each.best(kernel) if may_propose else None
            if best is not None:
                new = each.new(kernel, each.points[best])
                if new.sum() ** 2 / (new**2).sum() >= least - 1e-9:
                    proposed.append(new @ each.points / new.sum())
        if not proposed:
            break
        gains = [sum(each.new(kernel, point).sum() for each in clients) for point in proposed]
        point = proposed[int(np.argmax(np.array(gains) >= max(gains) - 1e-9))]
        with_budget = [c for c, each in enumerate(clients) if len(each.bought) < each.budget]
        buyer = min(with_budget, key=lambda c: (clients[c].nearest(point)[0], c))
        clients[buyer].bought.append(clients[buyer].nearest(point)[1])
        for each in clients:
            each.covered = np.maximum(each.covered, each.kernel_at(kernel, point))
    for each in clients:
        each.choose_alone(kernel)
    return {client: each.bought for client, each in enumerate(clients)}


def federation(seed: int, sizes: list[int]) -> tuple[list[Points], list[Points]]:
    generator = np.random.default_rng(seed)
    pools = [generator.standard_normal((size, 2)) for size in sizes]
    return pools, [generator.standard_normal((2, 2)) for _ in sizes]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("proposers", ["with-budget", "all"])
@pytest.mark.parametrize(
    ("name", "parameters", "kernel"),
    [
        (
            "coordinated-prob-cover",
            {"radius": 0.6, "batch": "one"},
            lambda distances: (distances < 0.6).astype(float),
        ),
        ("coordinated-max-herding", {"radius": 0.7}, lambda d: np.exp(-np.square(d / 0.7))),
    ],
)
def test_covering_by_sums_is_covering_by_one_who_sees_all(
    name: str, parameters: dict[str, Any], kernel: Kernel, proposers: str, seed: int
) -> None:
    sizes, budgets, least = [14, 9, 20], [5, 7, 0 if seed % 2 else 4], 1 + seed % 3
    pools, labelled = federation(seed, sizes)
    strategy = made(name, normalise=False, least_region=least, proposers=proposers, **parameters)
    views = {c: pool_at(pools[c], labelled[c]) for c in range(3)}
    chosen = chosen_together(strategy, views, contexts_for(budgets, [2, 2, 2]))
    all_propose = proposers == "all"
    assert chosen == covered_centrally(pools, labelled, budgets, kernel, least, all_propose)


def clustered_centrally(
    pools: list[Points],
    labelled: list[Points],
    budgets: list[int],
    centres: Points,
    limit: int,
    iterations: int,
) -> dict[int, list[int]]:
    """Return what clusters of all samples take in turns, from where their centres begin."""
    clients = [np.concatenate(pair) for pair in zip(pools, labelled, strict=True)]
    for _ in range(iterations):
        before, totals, counts = centres, np.zeros_like(centres), np.zeros((len(centres), 1))
        for points in clients:
            nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
            for k in range(len(centres)):
                # Of two samples in a cluster, which is nearer is a matter of rounding.
                totals[k] += np.round(points[nearest == k].sum(axis=0) * 2**10) / 2**10
                counts[k] += (nearest == k).sum()
        centres = np.where(counts, totals / np.maximum(counts, 1), centres)
        if np.linalg.norm(centres - before, axis=1).max() < 1e-4:
            break
    of_pool = [np.linalg.norm(each[:, None] - centres, axis=2) for each in pools]
    of_known = [np.linalg.norm(each[:, None] - centres, axis=2).argmin(axis=1) for each in labelled]
    known = np.bincount(np.concatenate(of_known), minlength=len(centres))
    sizes = known + sum(np.bincount(d.argmin(axis=1), minlength=len(centres)) for d in of_pool)
    order = sorted(range(len(centres)), key=lambda k: (known[k], -sizes[k]))
    bought: dict[int, list[int]] = {c: [] for c in range(len(pools))}
    for group in ([k for k in order if sizes[k] > limit], [k for k in order if sizes[k] <= limit]):
        gave = True
        while gave:
            gave = False
            for k in group:
                offers = [
                    (distances[n, k], c, n)
                    for c, distances in enumerate(of_pool)
                    if len(bought[c]) < min(budgets[c], len(pools[c]))
                    for n in range(len(pools[c]))
                    if n not in bought[c] and distances[n].argmin() == k
                ]
                if offers:
                    _, client, pick = min(offers)
                    bought[client].append(pick)
                    gave = True
    return bought


@pytest.mark.parametrize("seed", range(6))
def test_clustering_by_sums_is_clustering_by_one_who_sees_all(seed: int) -> None:
    budgets = [5, 7, 0 if seed % 2 else 4]
    pools, labelled = federation(seed, [14, 9, 20])
    strategy = made(
        "coordinated-typicality", normalise=False, least_region=2, min_cluster_size=seed % 3,
        max_clusters=4 + 3 * seed, initial=("local-centroids", "public")[seed % 2],
    )  # fmt: skip
    asked: list[Question] = []
    answer = strategy.answer

    def heard(question: Question, *rest: Any) -> Any:
        asked.append(question)
        return answer(question, *rest)

    strategy.answer = heard  # type: ignore[method-assign]
    views = {c: pool_at(pools[c], labelled[c]) for c in range(3)}
    chosen = chosen_together(strategy, views, contexts_for(budgets, [2, 2, 2]))
    centres = next(question.arrays["centres"] for question in asked if question.name == "assign")
    iterations = (10, 20)[seed % 2]
    expected = clustered_centrally(pools, labelled, budgets, centres, seed % 3, iterations)
    assert {c: sorted(ids) for c, ids in chosen.items()} == {
        c: sorted(ids) for c, ids in expected.items()
    }
