"""How long a run will still compute, by what it has taken so far."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from ahfal_app.config import Settings
from ahfal_app.results.reading import Metrics

#: A phase in which people are waited for: nobody knows how long that takes.
_OF_PEOPLE = "collect"


def seconds_left(settings: Settings, metrics: Metrics) -> float | None:
    """Return the seconds of computing that are left; None before the first round is done.

    A round's time is taken as a straight line over the labels that it is trained on, fitted to the
    medians of the cycles so far; of one cycle alone, as proportional. What ends a cycle takes its
    median so far. Waiting for labels is not in it, nor that a rule may end the run before.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    metrics : Metrics
        Its records.
    """
    if not metrics.rounds:
        return None
    seconds, examples = defaultdict[int, list[float]](list), defaultdict[int, list[int]](list)
    for each in metrics.rounds:
        seconds[each.cycle].append(sum(each.seconds.values()))
        examples[each.cycle].append(each.num_examples)
    typical = {c: statistics.median(values) for c, values in examples.items()}
    base, slope = _line({typical[c]: statistics.median(values) for c, values in seconds.items()})
    newest = metrics.rounds[-1].cycle
    unit = typical[newest] / float(settings.labelled_amount(newest))
    rounds = 0.0
    for cycle in range(len(metrics.cycles), settings.num_cycles):
        left = max(0, settings.rounds - len(seconds.get(cycle, ())))
        rounds += left * (base + slope * unit * float(settings.labelled_amount(cycle)))
    return rounds + _closing(metrics) * max(0, settings.num_cycles - len(metrics.cycles))


def _line(seconds_by_examples: Mapping[float, float]) -> tuple[float, float]:
    """Return where a line begins and how it rises; it neither begins below 0 nor falls."""
    x_N, y_N = (np.array(list(values)) for values in zip(*seconds_by_examples.items(), strict=True))
    through_origin = 0.0, float(y_N.sum() / max(1.0, x_N.sum()))
    if len(x_N) < 2:
        return through_origin
    slope, base = np.polyfit(x_N, y_N, 1)
    if slope < 0:
        return float(y_N.mean()), 0.0
    return (float(base), float(slope)) if base >= 0 else through_origin


def _closing(metrics: Metrics) -> float:
    """Return what the end of a cycle takes of computing; 0 before there was one."""
    took = [
        sum(seconds for phase, seconds in each.seconds.items() if phase != _OF_PEOPLE)
        for each in metrics.cycles
    ]
    return statistics.median(took) if took else 0.0
