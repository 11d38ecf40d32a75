"""What a sweep's runs say of policies that servers learn."""

from __future__ import annotations

import statistics

from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.results import ExperimentResults, RunResult
from ahfal_app.experiments.tables import NOTHING
from ahfal_app.results.policy import REWARD
from ahfal_app.results.tables import TextTable

#: What the loss of learning is compared with: that of foretelling the mean of all rewards.
VARIANCE = "variance of rewards"


def policy_figures(result: RunResult) -> dict[str, float]:
    """Return the mean of each of a policy's figures over the last half of a run's cycles.

    Of cycles that have the figure; with `VARIANCE`, the rewards' variance there, where there are
    at least two. Empty where nothing is learned.
    """
    cycles = result.run.metrics.cycles
    told = [cycle.policy for cycle in cycles[len(cycles) // 2 :]]
    values: dict[str, list[float]] = {}
    for policy in told:
        for name, value in policy.items():
            # A figure that is not finite is not there.
            values.setdefault(name, []).extend([] if value is None else [value])
    values = {name: found for name, found in values.items() if found}
    figures = {name: statistics.fmean(found) for name, found in values.items()}
    if len(values.get(REWARD, [])) > 1:
        figures[VARIANCE] = statistics.variance(values[REWARD])
    return figures


def policy_table(results: ExperimentResults) -> TextTable | None:
    """Return the figures of each method's policies, mean over seeds; None where there are none."""
    found = {
        (point, method): [policy_figures(run) for run in results.at(point, method)]
        for point in results.settings_points
        for method in results.methods
    }
    every = [figures for of_runs in found.values() for figures in of_runs]
    names = list(dict.fromkeys(name for figures in every for name in figures))
    if not names:
        return None
    rows = []
    for (point, method), of_runs in found.items():
        cells = [[figures[name] for figures in of_runs if name in figures] for name in names]
        if any(cells):
            means = [f"{statistics.fmean(cell):.4g}" if cell else NOTHING for cell in cells]
            rows.append((point_text(point) or "all", str(method), *means))
    return TextTable(
        title="Policies",
        headings=(
            "Where",
            results.method_axis,
            *(name[0].upper() + name[1:] for name in names),
        ),
        rows=rows,
        numbers=frozenset(range(2, 2 + len(names))),
        note="Mean over the last half of a run's cycles and over the runs. Where a policy's loss "
        "is no smaller than the variance of the rewards, it foretells them no better than their "
        "mean.",
    )
