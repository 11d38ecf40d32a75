"""When rules would have ended a run, and what that would have saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ahfal_app.config import Settings
from ahfal_app.learning_curve import Curve, fit_curve
from ahfal_app.plugins import STOPPING
from ahfal_app.results.costs import amount, money
from ahfal_app.results.reading import Run
from ahfal_app.results.records import CycleRecord
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent
from ahfal_app.stopping import CycleResult, StoppingRule, make_rules

#: What is recorded of the stop set, by the name it has in a summary.
SERIES = ("kappa", "changed", "delta_f_macro", "delta_f_worst", "uncertainty")


@dataclass(frozen=True)
class WouldStop:
    """Where a rule would have ended a run.

    Attributes
    ----------
    rule : str
        Its name.
    cycle : int | None
        From 0; None where it would not have ended it.
    labels : int | None
        Labels that this cycle was trained on.
    accuracy : float | None
        Its test accuracy.
    saved_labels : int | None
        Labels that would not have been bought, of those that were planned.
    """

    rule: str
    cycle: int | None = None
    labels: int | None = None
    accuracy: float | None = None
    saved_labels: int | None = None


def planned_labels(run: Run) -> int | None:
    """Return how many labels the run was to have at its end; None where that is not known."""
    planned = run.environment.get("labels", {}).get("planned")
    return planned if isinstance(planned, int) else None


def cycle_results(
    cycles: Sequence[CycleRecord], sizes: Sequence[int], settings: Settings
) -> list[CycleResult]:
    """Return recorded cycles as stopping rules see them.

    Parameters
    ----------
    cycles : Sequence[CycleRecord]
        All from the first one on.
    sizes : Sequence[int]
        Number of samples that each was tested with.
    settings : Settings
        The run's settings.
    """
    return [
        CycleResult(
            each.labels,
            round(each.accuracy * size),
            size,
            each.stop_set,
            *purchase_before(cycles[:cycle]),
            settings.purchase_growth(cycle),
        )
        for cycle, (each, size) in enumerate(zip(cycles, sizes, strict=True))
    ]


def purchase_before(cycles: Sequence[CycleRecord]) -> tuple[int | None, int]:
    """Return what was asked for after the last of these cycles, and what had not come of it.

    The first is None where that is not known: of the first cycle's labels, and of cycles that an
    older version or a run's end has recorded without a purchase.
    """
    last = cycles[-1] if cycles else None
    return (last.budget, last.pending) if last is not None and last.budget else (None, 0)


def saved_labels(run: Run) -> int:
    """Return how many of the planned labels were not bought because a rule ended the run."""
    cycles, planned = run.metrics.cycles, planned_labels(run)
    if not cycles or not cycles[-1].stopped_by or planned is None:
        return 0
    return max(0, planned - cycles[-1].ledger.spent)


def would_have_stopped(run: Run) -> list[WouldStop]:
    """Return for each rule, as it is set or by its defaults, where it would have ended the run.

    Rules whose series was not recorded are left out, and so is a target that nobody has set.
    """
    history = _history(run)
    if not history:
        return []
    is_observed = any(each.observed is not None for each in history)
    return [
        _first_stop(run, rule, history) for rule in _rules(run) if is_observed or not rule.observes
    ]


def stopping_summary(run: Run) -> dict[str, Any]:
    """Return what `summary.json` holds of stopping."""
    cycles = run.metrics.cycles
    series = {
        name: [
            None if cycle.stop_set is None else getattr(cycle.stop_set, name) for cycle in cycles
        ]
        for name in SERIES
    }
    return {
        "rules": run.settings.stopping,
        "mode": run.settings.stopping_mode,
        "planned_labels": planned_labels(run),
        "saved_labels": saved_labels(run),
        "series": {
            name: values for name, values in series.items() if values != [None] * len(values)
        },
        "promised_gains": promised_gains(run),
        "would_have_stopped": [asdict(each) for each in would_have_stopped(run)],
    }


def promised_gains(run: Run) -> list[dict[str, Any]]:
    """Return what the curve of each cycle promised of its purchase, and what that brought.

    As `stopping=gain` goes by it, but with the labels that were bought: test accuracies, as shares.
    """
    cycles, gains = run.metrics.cycles, []
    for count in range(1, len(cycles)):
        until, now, following = cycles[:count], cycles[count - 1], cycles[count]
        try:
            fitted = fit_curve([c.labels for c in until], [c.accuracy for c in until])
        except ValueError:
            continue  # Too few points for a curve.
        found = fitted.range_of(partial(_gain, now.labels, following.labels))
        observed = following.accuracy - now.accuracy
        gains.append({"cycle": now.cycle, **asdict(found), "observed": observed})
    return gains


def _gain(now: int, following: int, curve: Curve) -> float:
    return curve(following) - curve(now)


def stopping_table(run: Run) -> TextTable | None:
    """Tell where each rule would have ended the run; None where there is nothing to tell."""
    found, cycles = would_have_stopped(run), run.metrics.cycles
    if not found or len(cycles) < 2:
        return None
    settings = run.settings
    has_price = settings.label_cost > 0
    headings = ["Rule", "After cycle", "Labels", "Test accuracy", "Below the last", "Labels saved"]
    rows = []
    for each in found:
        row = [each.rule, *["not in these cycles"], *[""] * (4 + has_price)]
        if each.cycle is not None and each.accuracy is not None and each.labels is not None:
            saved = each.saved_labels or 0
            row = [
                each.rule,
                f"{each.cycle + 1}",
                f"{each.labels:,}",
                percent(each.accuracy),
                f"{100 * (cycles[-1].accuracy - each.accuracy):.2f} points",
                f"{saved:,}",
            ]
            row += [money(amount(saved, settings.label_cost), settings.currency)] * has_price
        rows.append(row)
    return TextTable(
        title="Where rules would have ended the run",
        headings=[*headings, *["Saved"] * has_price],
        rows=rows,
        numbers=frozenset(range(1, len(headings) + has_price)),
        note="Each rule alone, as it is set, or by its defaults; labels saved are of those that "
        "were planned. A rule that goes by the test accuracy has chosen by the test set.",
    )


def _rules(run: Run) -> list[StoppingRule]:
    settings = run.settings
    chosen = [name for name in STOPPING.chosen(settings.stopping) if name in STOPPING.names()]
    given = settings.parameters_of(STOPPING.setting)
    own = make_rules(",".join(chosen), given) if chosen else []
    others = [
        name for name in STOPPING.own_names() if name not in (*chosen, STOPPING.alone, "target")
    ]
    return [
        *(rule for rule in own if rule.name != STOPPING.alone),
        *(rule for name in others for rule in make_rules(name, {})),
    ]


def _history(run: Run) -> list[CycleResult]:
    """Return the recorded cycles as rules see them; none where a test's size is not known."""
    # Runs of an earlier version have not recorded it with each test.
    known = run.environment.get("data", {}).get("test")
    cycles = run.metrics.cycles
    sizes = [each.tests[0].samples if each.tests else known for each in cycles]
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    return cycle_results(cycles, whole, run.settings) if len(whole) == len(cycles) else []


def _first_stop(run: Run, rule: StoppingRule, history: list[CycleResult]) -> WouldStop:
    # After the last planned cycle there is nothing left to stop.
    for count in range(1, min(len(history), run.settings.num_cycles - 1) + 1):
        if rule.stops(history[:count]):
            cycle, planned = run.metrics.cycles[count - 1], planned_labels(run)
            had = cycle.labels + cycle.held_out
            saved = max(0, planned - had) if planned is not None else None
            return WouldStop(rule.name, cycle.cycle, cycle.labels, cycle.accuracy, saved)
    return WouldStop(rule.name)
