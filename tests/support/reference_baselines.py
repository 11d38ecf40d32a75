"""The baselines once more, from their papers' equations with plain loops, as test oracles.

It shares no code with `ahfal_app`, knows no tensors and makes no effort to be fast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from support.reference_ahfal import Row, argmax, softmax


def margin(logits: Row) -> float:
    first, second = sorted(softmax(logits), reverse=True)[:2]
    return first - second


def specialised(logits: Row, counts: Sequence[int]) -> list[float]:
    """Return a prediction specialised by class counts (KAFAL)."""
    known = [c for c, n in enumerate(counts) if n]
    highest = max(logits[c] for c in known)
    weights = [n * math.exp(logits[c] - highest) if n else 0.0 for c, n in enumerate(counts)]
    return [weight / math.fsum(weights) for weight in weights]


def divergence(p: Row, q: Row) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def discrepancy(local: Row, global_: Row, counts: Sequence[int]) -> float:
    """Return half of both divergences between the specialised predictions (KAFAL)."""
    p, q = specialised(local, counts), specialised(global_, counts)
    return (divergence(p, q) + divergence(q, p)) / 2


def gradient(logits: Row, embedding: Row, bias: bool = False) -> list[float]:
    """Return the gradient of the last layer for the predicted class (BADGE)."""
    errors = softmax(logits)
    errors[argmax(logits)] -= 1
    inputs = [*embedding, 1.0] if bias else embedding
    return [error * value for error in errors for value in inputs]


def squared_distance(x: Row, y: Row) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def nearest(points: Sequence[Row], centres: Sequence[Row]) -> list[float]:
    """Return each point's squared distance to its nearest centre."""
    return [min(squared_distance(x, c) for c in centres) for x in points]


def sequence_probabilities(
    points: Sequence[Row], first: int, count: int
) -> dict[tuple[int, ...], float]:
    """Return how likely k-means++ seeding draws each sequence, by multiplying its steps."""
    result = {(first,): 1.0}
    for _ in range(count - 1):
        longer = {}
        for drawn, probability in result.items():
            weights = nearest(points, [points[i] for i in drawn])
            for i, weight in enumerate(weights):
                if weight > 0:
                    longer[(*drawn, i)] = probability * weight / math.fsum(weights)
        result = longer
    return result


def rejection_seeding(
    points: Sequence[Row], first: int, count: int, uniform: Callable[[], float]
) -> list[int]:
    """Return k-means++ seeding by weights that are brought up to date after a rejection."""
    drawn = [first]
    weights = nearest(points, [points[first]])
    up_to_date = True
    while len(drawn) < count:
        target = uniform() * sum(weights)
        i = next(i for i, total in enumerate(itertools.accumulate(weights)) if total > target)
        now = nearest(points, [points[j] for j in drawn])
        if up_to_date or (i not in drawn and uniform() < now[i] / weights[i]):
            drawn.append(i)
            up_to_date = False
        else:
            weights, up_to_date = now, True
    return drawn


def k_center(points: Sequence[Row], distances: Sequence[float], count: int) -> list[int]:
    """Return greedy picks from squared distances to the first centres."""
    left, picked = dict(enumerate(distances)), []
    for _ in range(count):
        pick = max(left, key=lambda i: (left[i], -i))
        del left[pick]
        picked.append(pick)
        left = {i: min(d, squared_distance(points[i], points[pick])) for i, d in left.items()}
    return picked


def typicality(
    points: Sequence[Row], others: Sequence[Row], neighbours: int, squared: bool
) -> list[float]:
    """Return each point's typicality in a cluster that consists of others and itself."""
    used = min(neighbours, (len(others) + 1) // 2)
    result = []
    for x in points:
        distances = sorted(squared_distance(x, y) for y in others)[:used]
        if not squared:
            distances = [math.sqrt(d) for d in distances]
        result.append(1 / (math.fsum(distances) / used + 1e-5) if used else 0.0)
    return result


def typicalities(
    points: Sequence[Row], left: Sequence[int], neighbours: int, squared: bool
) -> dict[int, float]:
    """Return the typicality of each of the samples that are left of a cluster."""
    result = {}
    for i in left:
        others = [points[j] for j in left if j != i]
        [result[i]] = typicality([points[i]], others, neighbours, squared)
    return result


def turns(pool: Sequence[int], labelled: Sequence[int], min_size: int) -> Iterator[int]:
    """Yield the clusters that give a sample, in turn, by each sample's cluster."""
    left = {c: pool.count(c) for c in set(pool)}
    size = {c: pool.count(c) + labelled.count(c) for c in left}
    order = sorted(left, key=lambda c: (labelled.count(c), -size[c], c))
    for large in (True, False):
        tier = [c for c in order if (size[c] > min_size) == large]
        while any(left[c] for c in tier):
            for c in tier:
                if left[c]:
                    left[c] -= 1
                    yield c
