"""What a sweep's runs say of data that come over time: accuracy on what comes, and forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.results import ExperimentResults, RunResult
from ahfal_app.experiments.tables import NOTHING, mean_text
from ahfal_app.results.records import CycleRecord
from ahfal_app.results.tables import TextTable


def prequential_accuracy(cycles: Iterable[CycleRecord]) -> float | None:
    """Return how much of what came was predicted rightly before any of it was labelled, in percent.

    Each sample by the model of the cycle before the one that it came for, all alike; None where
    nothing came, as outside of simulation.
    """
    tests = [c.arrivals.tests for c in cycles if c.arrivals is not None]
    told = [test for test in tests if test is not None and test.next_count]
    if not told:
        return None
    return 100 * sum(t.next_right for t in told) / sum(t.next_count for t in told)


def mean_deviations(cycles: Iterable[CycleRecord]) -> tuple[float, float] | None:
    """Return the classes' mean deviation with and without forgetting, in points, over the cycles.

    None where nothing is forgotten.
    """
    told = [
        (statistics.fmean(c.deviation), statistics.fmean(c.forgetting.deviation))
        for c in cycles
        if c.forgetting is not None and c.deviation is not None
    ]
    if not told:
        return None
    forgetting, plain = zip(*told, strict=True)
    return 100 * statistics.fmean(forgetting), 100 * statistics.fmean(plain)


def changed_sides(cycles: Iterable[CycleRecord]) -> float | None:
    """Return how many classes are on another side of τ for forgetting, on average over cycles."""
    told = [
        sum(a != b for a, b in zip(c.low, c.forgetting.low, strict=True))
        for c in cycles
        if c.forgetting is not None and c.low is not None
    ]
    return statistics.fmean(told) if told else None


def stream_table(results: ExperimentResults) -> TextTable | None:
    """Return what is known of arrivals and of forgetting; None where data neither come nor go."""
    rows = []
    for point in results.settings_points:
        for method in results.methods:
            runs = results.at(point, method)
            cells = [_over_seeds(runs, figure) for figure in _FIGURES.values()]
            if any(cell != NOTHING for cell in cells):
                rows.append((point_text(point) or "all", str(method), *cells))
    if not rows:
        return None
    return TextTable(
        title="Data that come over time",
        headings=("Where", results.method_axis, *_FIGURES),
        rows=rows,
        numbers=frozenset(range(2, 2 + len(_FIGURES))),
        note="Right before: of all samples that came after the first cycle, how many the model of "
        "the cycle before predicted rightly, before any was labelled. Deviation: of the clients' "
        "class shares, the mean over classes and cycles, with labels that count less as they grow "
        "old and with all alike; and how many classes are on another side of τ for it. Mean ± "
        "standard deviation over seeds (their number in brackets).",
    )


def _over_seeds(
    runs: Iterable[RunResult], figure: Callable[[tuple[CycleRecord, ...]], float | None]
) -> str:
    told = {run.seed: figure(run.run.metrics.cycles) for run in runs}
    return mean_text({seed: value for seed, value in told.items() if value is not None})


def _deviation(place: int) -> Callable[[tuple[CycleRecord, ...]], float | None]:
    def figure(cycles: tuple[CycleRecord, ...]) -> float | None:
        both = mean_deviations(cycles)
        return None if both is None else both[place]

    return figure


#: What each column is called, and what makes it of a run's cycles.
_FIGURES: dict[str, Callable[[tuple[CycleRecord, ...]], float | None]] = {
    "Right before, %": prequential_accuracy,
    "Deviation, points": _deviation(0),
    "Without forgetting": _deviation(1),
    "Classes that changed sides": changed_sides,
}
