"""What people are told of a policy that the server learns."""

from __future__ import annotations

import math
import statistics

from ahfal_app.results.reading import Run
from ahfal_app.results.tables import TextTable

#: The figure by which the policy is learned, in points.
REWARD = "reward"

# A mean that is so many of its standard errors away from 0 is hardly chance.
_FAR = 2.0


def policy_table(run: Run) -> TextTable | None:
    """Give each cycle's figures of the strategy's half at the server; None where it has none."""
    told = [cycle for cycle in run.metrics.cycles if cycle.policy]
    if not told:
        return None
    names = list(dict.fromkeys(name for cycle in told for name in cycle.policy))
    return TextTable(
        title="Policy",
        headings=("Cycle", *(name[0].upper() + name[1:] for name in names)),
        rows=[
            (f"{cycle.cycle + 1}", *(_number(cycle.policy.get(name)) for name in names))
            for cycle in told
        ],
        numbers=frozenset(range(len(names) + 1)),
        note=_note([value for cycle in told if (value := cycle.policy.get(REWARD)) is not None]),
    )


def _note(rewards: list[float]) -> str:
    """Say how far the rewards are above their noise."""
    text = "What the query strategy's half at the server tells of itself, once a cycle is trained."
    if len(rewards) < 2:
        return text
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    text += f" Rewards are {mean:.3f} in the mean, with a deviation of {deviation:.2f}"
    if not mean:
        return f"{text}."
    needed = math.ceil((_FAR * deviation / mean) ** 2)
    return (
        f"{text}, in {len(rewards)} cycles. A mean like that is told from 0 by some {needed} of "
        "them; which choices it came from takes many more, as training alone raises it, too."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
