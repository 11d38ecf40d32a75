"""DCoM once more, with plain loops and everything computed for each pick, as a test oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

INITIAL, LARGEST, RESOLUTION = 0.75, 1.1, 0.05
STEEPNESS, CENTRE = 50, 0.8


def eager_dcom(
    points: Sequence[Sequence[float]],
    size: int,
    labels: Sequence[int],
    probabilities: Sequence[Sequence[float]],
    count: int,
) -> list[int]:
    """Return the picks among the first `size` points; those after them have the labels."""
    every = range(len(points))

    def distance(i: int, j: int) -> float:
        return math.dist(points[i], points[j])

    def covered_by(radii: dict[int, float]) -> set[int]:
        return {n for n in every if any(distance(z, n) < radii[z] for z in radii)}

    labelled = dict(zip(range(size, len(points)), labels, strict=True))
    predicted = [max(range(len(p)), key=lambda c, p=p: p[c]) for p in probabilities]
    share = len(covered_by(dict.fromkeys(labelled, INITIAL))) / len(points)

    def purity(z: int, radius: float) -> float:
        inside = [n for n in every if distance(z, n) < radius]
        return sum(predicted[n] == labelled[z] for n in inside) / len(inside)

    radii = {z: _radius(lambda r, z=z: purity(z, r), 0.4 + 0.2 * share) for z in labelled}
    mean = sum(radii.values()) / len(radii) if radii else INITIAL
    share = len(covered_by(radii)) / len(points)
    whole = 1 + math.exp(-STEEPNESS * (1 - CENTRE))
    competence = round(whole / (1 + math.exp(-STEEPNESS * (share - CENTRE))), 3)
    covered = covered_by({z: min(radius, mean) for z, radius in radii.items()})
    doubts = _scaled([1 - _margin(p) for p in probabilities])
    doubts = [0.0 if n in labelled else doubt for n, doubt in enumerate(doubts)]
    picks: list[int] = []
    while len(picks) < count:
        density = [
            0.0
            if x in labelled or x in picks
            else float(sum(distance(x, n) < mean for n in set(every) - covered))
            for x in every
        ]
        if max(density) == 0:
            covered = set()
            continue
        dense, doubtful = _scaled(density), _scaled(doubts)
        worth = {
            x: competence * doubtful[x] + (1 - competence) * dense[x]
            for x in range(size)
            if x not in picks
        }
        best = max(worth.values())
        pick = min(x for x, value in worth.items() if value > best - 1e-9)
        picks.append(pick)
        doubts[pick] = 0.0
        covered |= {n for n in every if distance(pick, n) < mean}
    return picks


def _margin(probabilities: Sequence[float]) -> float:
    first, second = sorted(probabilities, reverse=True)[:2]
    return first - second


def _scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _radius(purity: object, least: float) -> float:
    assert callable(purity)
    low, high = 0.0, LARGEST
    last = (LARGEST / 2, 0.0)
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        now = purity(middle)
        if last[0] < middle and last[1] == least and now < least:
            return round(last[0], 2)
        low, high = (middle, high) if now >= least else (low, middle)
        last = (middle, now)
    return round((low + high) / 2, 2)
