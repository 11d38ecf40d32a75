"""The tables of a run's report that show its last test, and what its size can tell apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ahfal_app.results.records import CycleRecord, SiteTest, TestRecord
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import bounds_text, metric_text, percent

_HEADINGS = {"server": "Server's test set", "sites": "Held out at the sites"}

#: Two-sided 95 %.
_Z = 1.959964

_HOW = (
    "Intervals of 95 %: Wilson's of accuracy, recall and precision; balanced accuracy and macro F1 "
    "from those of their classes (Zou and Donner, 2008); AUROC, one class against the rest, by "
    "Newcombe (2006, method 5), its mean by the mean ends; calibration error by Wilson's of all "
    "bins together. They count the samples of the test alone, not other seeds or other labels."
)
_CHOSEN = (
    " What sites hold out comes from the labels that were bought: chosen by the query strategy, "
    "and not drawn from all of their samples, unless validation-from=initial."
)


def metrics_table(cycle: CycleRecord) -> TextTable | None:
    """Return all metrics of a cycle's tests with their intervals; None of an older run."""
    if not cycle.tests:
        return None
    headings = ["Metric"]
    for test in cycle.tests:
        headings += [_HEADINGS[test.where], "95 %"]
    rows = [("samples", *(cell for test in cycle.tests for cell in (f"{test.samples:,}", "")))]
    for name in cycle.tests[0].metrics:
        cells = [
            cell
            for test in cycle.tests
            for cell in (
                metric_text(name, test.metrics.get(name)),
                bounds_text(test.intervals.get(name)),
            )
        ]
        rows.append((name.replace("-", " "), *cells))
    at_sites = any(test.where == "sites" for test in cycle.tests)
    return TextTable(
        title="Metrics of the last test",
        headings=headings,
        rows=rows,
        numbers=frozenset(range(1, len(headings))),
        note=_HOW + (_CHOSEN if at_sites else ""),
    )


def class_table(test: TestRecord, class_names: Sequence[str]) -> TextTable | None:
    """Return recall, precision and AUROC of each class; None where there are none."""
    if len(test.recall) != len(class_names):
        return None
    columns = (
        (test.recall, test.recall_intervals),
        (test.precision, test.precision_intervals),
        (test.auroc, test.auroc_intervals),
    )
    rows = [
        (
            f"{place}: {name}",
            *(
                cell
                for values, bounds in columns
                for cell in (percent(values[place]), bounds_text(bounds[place]))
            ),
        )
        for place, name in enumerate(class_names)
    ]
    return TextTable(
        title=f"Classes: {_HEADINGS[test.where].lower()}",
        headings=("Class", "Recall", "95 %", "Precision", "95 %", "AUROC", "95 %"),
        rows=rows,
        numbers=frozenset(range(1, 7)),
    )


def sites_table(cycle: CycleRecord) -> TextTable | None:
    """Return each site's figures, who is worst and how far they lie apart; None without any."""
    if not cycle.sites and not cycle.untested:
        return None
    names = ("accuracy", "balanced-accuracy", "macro-f1", "auroc", "calibration-error")
    rows = [
        (
            site.who,
            f"{site.test.samples:,}",
            percent(site.test.metrics.get("accuracy")),
            bounds_text(site.test.intervals.get("accuracy")),
            *(percent(site.test.metrics.get(name)) for name in names[1:]),
        )
        for site in cycle.sites
    ]
    rows += [(failure.who, "", failure.reason, *("",) * len(names)) for failure in cycle.untested]
    return TextTable(
        title="Sites side by side",
        headings=(
            "Site",
            "Held out",
            "Accuracy",
            "95 %",
            "Balanced",
            "Macro F1",
            "AUROC",
            "Calibration error",
        ),
        rows=rows,
        numbers=frozenset(range(1, 8)),
        note=worst_and_spread(cycle.sites),
    )


def worst_and_spread(sites: Sequence[SiteTest]) -> str:
    """Return in words which site is worst and how far sites lie apart; empty of fewer than two."""
    known = [(site.test.metrics["accuracy"], site.who) for site in sites]
    shares = {who: share for share, who in known if share is not None}
    if len(shares) < 2:
        return ""
    worst = min(shares, key=shares.__getitem__)
    mean = sum(shares.values()) / len(shares)
    deviation = math.sqrt(sum((share - mean) ** 2 for share in shares.values()) / len(shares))
    return (
        f"Worst site: {worst} with {percent(shares[worst], 1)}; the best lies "
        f"{100 * (max(shares.values()) - shares[worst]):.1f} points above it; standard deviation "
        f"over sites: {100 * deviation:.1f} points."
    )


def size_warning(cycles: Sequence[CycleRecord]) -> str:
    """Return a warning where the last test is too small for differences that a report shows.

    Empty where it is not. Two accuracies near p on n samples differ by chance by less than
    1.96 √(2 p (1 - p) / n) in 95 of 100 cases.
    """
    if not cycles or not cycles[-1].tests:
        return ""
    samples, share = cycles[-1].tests[0].samples, cycles[-1].accuracy
    least = _Z * math.sqrt(2 * share * (1 - share) / samples) if samples else 1.0
    shares = [cycle.accuracy for cycle in cycles]
    steps = [abs(after - before) for before, after in itertools.pairwise(shares)]
    small = sum(0 < step < least for step in steps)
    if not small:
        return ""
    plural = "step" if len(steps) == 1 else "steps"
    return (
        f"With {samples:,} test samples, accuracies that lie less than {100 * least:.1f} points "
        f"apart cannot be told from chance: {small} of {len(steps)} {plural} between the cycles "
        "shown."
    )
