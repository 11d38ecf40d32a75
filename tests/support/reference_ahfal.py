"""AHFAL once more, written from the paper's equations with plain loops, as a test oracle.

It shares no code with `ahfal_app`, knows no tensors and makes no effort to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Row = Sequence[float]


def softmax(logits: Row) -> list[float]:
    highest = max(logits)
    exponentials = [math.exp(logit - highest) for logit in logits]
    whole = math.fsum(exponentials)
    return [exponential / whole for exponential in exponentials]


def entropy(logits: Row) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(logits) if p > 0)


def argmax(values: Row) -> int:
    return min(range(len(values)), key=lambda c: (-values[c], c))


def deviations(histograms: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """Return the mean and the population deviation of each class's proportion (equation 1)."""
    rows = [[Fraction(n, sum(row)) for n in row] for row in histograms if sum(row)]
    means, spreads = [], []
    for column in zip(*rows, strict=True):
        mean = sum(column, Fraction(0)) / len(rows)
        variance = sum(((p - mean) ** 2 for p in column), Fraction(0)) / len(rows)
        means.append(float(mean))
        spreads.append(math.sqrt(variance))
    return means, spreads


def uncertainty(local: Row, global_: Row, low: Sequence[bool], toggle: str, low_if: str) -> float:
    """Return the score of one sample (equation 3) and its variants."""
    is_low = low[argmax(local)]
    if low_if == "local-or-global":
        is_low = is_low or low[argmax(global_)]
    if toggle == "hybrid" or (toggle == "by-class" and is_low):
        return (entropy(local) + entropy(global_)) / 2
    return entropy(local)


def round_shares(shares: Sequence[Fraction], total: int) -> list[int]:
    """Round shares down, then give single units to the largest fractional parts."""
    rounded = [share.numerator // share.denominator for share in shares]
    while sum(rounded) < total:
        # A class that got its unit has a negative rest and is not served again.
        rests = [share - whole for share, whole in zip(shares, rounded, strict=True)]
        rounded[rests.index(max(rests))] += 1
    return rounded


def class_budgets(
    counts: Sequence[int], pool: Sequence[int], budget: int, mean: Sequence[float] | None = None
) -> list[int]:
    """Return the budgets of equation 4.

    Deficits are shared out by the same weights, or, with the clients' mean proportions, by how
    far each class is below them as long as such a class has samples.
    """
    weights = [Fraction(1) if n == 0 else Fraction(1, n) for n in counts]
    shortfalls = [Fraction(0)] * len(counts)
    if mean is not None:
        labelled = max(1, sum(counts))
        exact = [Fraction(m) - Fraction(n, labelled) for n, m in zip(counts, mean, strict=True)]
        shortfalls = [Fraction(max(0, round(gap * 10**12))) for gap in exact]
    budgets = [0] * len(counts)
    takers, by = set(range(len(counts))), weights
    while sum(budgets) < min(budget, sum(pool)):
        missing = min(budget, sum(pool)) - sum(budgets)
        whole = sum((by[c] for c in takers), Fraction(0))
        order = sorted(takers)
        parts = round_shares([missing * by[c] / whole for c in order], missing)
        for c, part in zip(order, parts, strict=True):
            budgets[c] = min(budgets[c] + part, pool[c])
        takers = {c for c in takers if budgets[c] < pool[c]}
        by = shortfalls if any(shortfalls[c] for c in takers) else weights
    return budgets


def select(
    ids: Sequence[int],
    local: Sequence[Row],
    global_: Sequence[Row],
    counts: Sequence[int],
    low: Sequence[bool],
    budget: int,
    toggle: str = "by-class",
    low_if: str = "local",
) -> set[int]:
    """Return the ids that AHFAL selects with the budgets of equation 4."""
    members: list[list[tuple[float, int]]] = [[] for _ in counts]
    for sample, local_row, global_row in zip(ids, local, global_, strict=True):
        score = uncertainty(local_row, global_row, low, toggle, low_if)
        members[argmax(local_row)].append((-score, sample))
    budgets = class_budgets(counts, [len(group) for group in members], budget)
    chosen: set[int] = set()
    for group, share in zip(members, budgets, strict=True):
        chosen.update(sample for _, sample in sorted(group)[:share])
    return chosen


def ratio_budgets(
    counts: Sequence[int], target: Sequence[Fraction], pool: Sequence[int], budget: int
) -> list[int]:
    """Return the budgets by representation ratio (appendix F), in exact fractions."""
    budget = min(budget, sum(pool))
    available = [c for c in range(len(counts)) if pool[c]]
    labelled = sum(counts)

    def over_target(count: int, c: int) -> Fraction | float:
        return Fraction(count) / target[c] if target[c] else math.inf

    ratio = [
        over_target(n, c) / labelled if labelled else over_target(n, c) * 1
        for c, n in enumerate(counts)
    ]
    rising = sorted(available, key=lambda c: (ratio[c], c))
    missing = [c for c in available if counts[c] == 0]
    budgets = dict.fromkeys(available, 0)
    if missing and len(missing) <= budget:
        for c in missing:
            budgets[c] = min(5, budget // len(missing))
        rest = budget - sum(budgets.values())
        inverse = {c: _inverse(ratio[c]) for c in available}
        whole = sum(inverse.values(), Fraction(0))
        for c in available:
            budgets[c] += math.floor(rest * inverse[c] / whole) if whole else 0
    else:
        for c in available:
            budgets[c] = max(0, math.ceil(target[c] * (labelled + budget) - counts[c]))
    if sum(budgets.values()) > budget:
        budgets = _tiers(rising, ratio, budget)
    while sum(budgets.values()) < budget:
        projected = {c: over_target(counts[c] + budgets[c], c) for c in available}
        for c in sorted(available, key=lambda c: (projected[c], c)):
            if sum(budgets.values()) < budget:
                budgets[c] += 1
    capped = [min(budgets.get(c, 0), pool[c]) for c in range(len(counts))]
    for c in rising:
        while sum(capped) < budget and capped[c] < pool[c]:
            capped[c] += 1
    return capped


def _inverse(ratio: Fraction | float) -> Fraction:
    if isinstance(ratio, float):
        return Fraction(0)
    return 1 / (ratio + Fraction(1, 100)) if ratio else Fraction(100)


def _tiers(rising: list[int], ratio: Sequence[Fraction | float], budget: int) -> dict[int, int]:
    budgets = dict.fromkeys(rising, 0)
    remaining = budget
    for c in rising:
        if remaining <= 3:
            break
        share = Fraction(1, 5)
        if ratio[c] < Fraction(4, 5):
            share = Fraction(3, 10)
        if ratio[c] < Fraction(1, 2):
            share = Fraction(1, 2)
        budgets[c] = max(1, math.ceil(remaining * share))
        remaining -= budgets[c]
    if remaining <= 3:
        for c in rising[:remaining]:
            budgets[c] += 1
    return budgets
