"""p-values of several tests at once."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number by Holm's step-down method.

    What is None is not a test, does not count, and stays None.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        corrected[place] = highest
    return corrected


def holm_limit(others: Sequence[float | None], level: float) -> float:
    """Return the p-value below which one more test is significant beside others, by Holm's method.

    Each other test that is significant before it spares it one: with r of m in all it is
    level / (m - r).

    Parameters
    ----------
    others : Sequence[float | None]
        The other tests' p-values, not corrected; None is not a test.
    level : float
        Of significance, after correction.
    """
    remaining = 1 + sum(p is not None for p in others)
    for p in sorted(p for p in others if p is not None):
        if p * remaining >= level:
            break
        remaining -= 1
    return level / remaining
