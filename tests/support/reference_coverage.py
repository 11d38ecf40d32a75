"""Greedy coverage once more, with plain loops and all gains for each pick, as a test oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Of all kernels.
RADIUS = 1.5


def similarity(kernel: str, squared: float) -> float:
    if kernel == "gaussian":
        return math.exp(-squared / RADIUS**2)
    if kernel == "laplace":
        return math.exp(-math.sqrt(squared) / RADIUS)
    if kernel == "student":
        return float(1 + 2 * squared / RADIUS**2) ** -0.75
    return float(squared < RADIUS**2)


def eager_coverage(
    points: Sequence[Sequence[float]],
    size: int,
    weights: Sequence[float],
    kernel: str,
    count: int,
    again: bool,
) -> list[int]:
    """Return the picks among the first `size` points; those after them cover from the start."""

    def k(i: int, j: int) -> float:
        return similarity(kernel, math.dist(points[i], points[j]) ** 2)

    every = range(len(points))
    covered = [max((k(z, n) for z in range(size, len(points))), default=0.0) for n in every]
    picks: list[int] = []
    layers = 0
    while len(picks) < count:
        gains = {
            x: sum(weights[n] * max(0.0, k(x, n) - covered[n]) for n in every)
            for x in range(size)
            if x not in picks
        }
        best = max(gains.values())
        if best < 1e-10:
            if layers or not again:
                return picks + sorted(gains)[: count - len(picks)]
            covered = [0.0 for _ in every]
            layers = 1
            continue
        pick = min(x for x, gain in gains.items() if gain > best - 1e-9)
        picks.append(pick)
        layers = 0
        covered = [max(covered[n], k(pick, n)) for n in every]
    return picks
