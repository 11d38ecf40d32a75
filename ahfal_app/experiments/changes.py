"""What a sweep's runs say of data that change: alarms of the drift test, and accuracy afterwards.

Shape suffix: T cycles.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ahfal_app.arrivals.core.paths import changed
from ahfal_app.arrivals.prior_drift import PriorDrift
from ahfal_app.experiments.charts import point_text
from ahfal_app.experiments.results import ExperimentResults, Point, RunResult
from ahfal_app.experiments.tables import NOTHING, mean_text
from ahfal_app.parameters import Scalar
from ahfal_app.results.tables import TextTable
from ahfal_app.settings import Settings

#: Orders of arrival that leave every cycle's class mix as it was.
_STEADY = frozenset({"random"})

#: How many cycles after a sudden change accuracy is told.
_AFTER = (1, 3, 5)


def first_changed(settings: Settings) -> float:
    """Return the first cycle, from 0, whose data may differ from the first cycle's.

    Of a sudden change the cycle where it comes, infinity where nothing changes, 0 where data change
    steadily, class by class or at random.
    """
    sudden = sudden_change(settings)
    if sudden is not None:
        return sudden
    flat = settings.to_flat()
    is_steady = flat["arrivals"] == "all" or flat["arrival-order"] in _STEADY
    return math.inf if is_steady and flat["covariate-drift"] == "none" else 0


def sudden_change(settings: Settings) -> int | None:
    """Return the cycle, from 0, in which the mix or the look of what arrives changes at once."""
    if settings.arrivals == "all" or settings.num_cycles < 2:
        return None
    paths: set[str] = set()
    if settings.arrival_order == "prior-drift":
        # What is not set is the parameter's default.
        own = PriorDrift.Parameters.model_validate(settings.parameters_of("arrival-order"))
        paths.add(own.path)
    if settings.covariate_drift != "none":
        paths.add(settings.severity_path)
    if paths != {"sudden"}:
        return None
    return int(np.argmax(changed("sudden", settings.num_cycles, 2)))


@dataclass(frozen=True)
class Alarms:
    """A run's comparisons of two windows, before and after its data change.

    Attributes
    ----------
    before, after : tuple[bool, ...]
        Whether each comparison that could be made says drift, those that end before the first cycle
        that may differ, and the others.
    delay : int or None
        Cycles from that one to the first alarm; None where there is none.
    """

    before: tuple[bool, ...]
    after: tuple[bool, ...]
    delay: int | None


def alarms_of(result: RunResult) -> Alarms | None:
    """Return a run's alarms; None where nothing was tested, an indicator being no test."""
    told = [
        (cycle.cycle, cycle.drift.is_drift)
        for cycle in result.run.metrics.cycles
        if cycle.drift is not None
        and cycle.drift.method != "predicted"
        and any(not site.refusal for site in cycle.drift.sites)
    ]
    if not told:
        return None
    change = first_changed(result.run.settings)
    after = [(cycle, is_drift) for cycle, is_drift in told if cycle >= change]
    first = next((cycle for cycle, is_drift in after if is_drift), None)
    return Alarms(
        before=tuple(is_drift for cycle, is_drift in told if cycle < change),
        after=tuple(is_drift for _, is_drift in after),
        delay=None if first is None else int(first - change),
    )


def alarm_table(results: ExperimentResults) -> TextTable | None:
    """Count the drift test's alarms before and after data change; None where nothing is tested."""
    rows = []
    for point, method, runs in _groups(results):
        found = [alarms for run in runs if (alarms := alarms_of(run)) is not None]
        if not found:
            continue
        delays = [alarms.delay for alarms in found if alarms.delay is not None]
        changing = [alarms for alarms in found if alarms.after]
        rows.append(
            (
                point_text(point) or "all",
                str(method),
                _share(said for alarms in found for said in alarms.before),
                _share(said for alarms in found for said in alarms.after),
                f"{len(delays)} of {len(changing)}" if changing else NOTHING,
                f"{statistics.fmean(delays):.1f}" if delays else NOTHING,
            )
        )
    if not rows:
        return None
    return TextTable(
        title="Alarms of the drift test",
        headings=(
            "Where",
            results.method_axis,
            "False alarms",
            "Alarms after the change",
            "Runs with one",
            "Delay in cycles",
        ),
        rows=rows,
        numbers=frozenset(range(2, 6)),
        note="Of the cycles in which any client's class mix could be tested, those in which a test "
        "says drift. False are alarms before a sudden change, and all where nothing changes; data "
        "that change steadily, class by class or at random do so from the first cycle on. Delay: "
        "cycles from the first one that may differ to the first alarm, mean over runs with one.",
    )


def recovery_table(results: ExperimentResults) -> TextTable | None:
    """Return accuracy about a sudden change; None where no run has one."""
    rows = []
    for point, method, runs in _groups(results):
        found = [(run, sudden_change(run.run.settings)) for run in runs]
        changes = [(run, change) for run, change in found if change is not None]
        if not changes:
            continue
        cells = [
            mean_text(
                {
                    run.seed: run.values_T[change + shift]
                    for run, change in changes
                    if change + shift < len(run.values_T)
                    and not math.isnan(run.values_T[change + shift])
                }
            )
            for shift in (-1, *(after - 1 for after in _AFTER))
        ]
        rows.append((point_text(point) or "all", str(method), *cells))
    if not rows:
        return None
    return TextTable(
        title=f"After a sudden change, test {results.metric} in %",
        headings=(
            "Where",
            results.method_axis,
            "Before",
            *(f"{count} cycle{'s' if count > 1 else ''} after" for count in _AFTER),
        ),
        rows=rows,
        numbers=frozenset(range(2, 3 + len(_AFTER))),
        note="On the test set, which does not change, at the end of the last cycle before the "
        "change and of the first, third and fifth after it; mean ± standard deviation over seeds "
        "(their number in brackets).",
    )


def _groups(results: ExperimentResults) -> Iterable[tuple[Point, Scalar, list[RunResult]]]:
    for point in results.settings_points:
        for method in results.methods:
            yield point, method, results.at(point, method)


def _share(said: Iterable[bool]) -> str:
    told = list(said)
    return f"{sum(told)} of {len(told)}" if told else NOTHING
