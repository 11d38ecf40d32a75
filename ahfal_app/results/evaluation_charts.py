"""The charts of a run's report that show its last test.

Legend of shapes: C classes, S sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ahfal_app.results.heat_maps import heat_map, map_height
from ahfal_app.results.records import SiteTest, TestRecord
from ahfal_app.results.svg import Chart, draw_chart, tick_label

_WIDTH = 5.0
_BLUE, _VERMILLION, _GREY = "#0072B2", "#D55E00", "#777777"

#: What a test is of, in words.
WHERE = {"server": "the server's test set", "sites": "what the sites hold out"}


def confusion_chart(test: TestRecord, class_names: Sequence[str]) -> Chart | None:
    """Draw the confusion matrix, each row in percent; None where there is none."""
    if not test.confusion:
        return None
    counts_CC = np.array(test.confusion, np.float64)
    tested_C1 = counts_CC.sum(axis=1, keepdims=True)
    shares_CC = np.where(tested_C1 > 0, 100 * counts_CC / np.maximum(tested_C1, 1), np.nan)
    right = counts_CC.trace() / counts_CC.sum() if counts_CC.sum() else 0.0
    return draw_chart(
        f"confusion-{test.where}",
        f"Confusion matrix on {WHERE[test.where]}",
        f"{test.samples} samples of {len(class_names)} classes, {100 * right:.1f} % on the "
        "diagonal.",
        (_WIDTH, map_height(len(class_names), max(map(len, class_names)))),
        lambda figure: heat_map(
            figure,
            shares_CC,
            class_names,
            class_names,
            ("True class", "Predicted class", "Share of the true class (%)"),
        ),
    )


def calibration_chart(test: TestRecord) -> Chart | None:
    """Draw how often predictions are right against how sure they are; None of nothing."""
    bins = [bin_ for bin_ in test.calibration if bin_[0]]
    if not bins:
        return None
    confidence = [100 * (mean or 0.0) for _, _, mean in bins]
    right = [100 * right / tested for tested, right, _ in bins]
    most = max(tested for tested, _, _ in bins)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=_GREY, linestyle="--", linewidth=1)
        axes.plot(confidence, right, color=_BLUE, linewidth=1)
        areas = [12 + 80 * tested / most for tested, _, _ in bins]
        axes.scatter(confidence, right, s=areas, color=_BLUE, zorder=3)
        axes.set(xlim=(0, 102), ylim=(-3, 103))
        axes.set(xlabel="Highest probability (%), mean of a bin", ylabel="Predicted rightly (%)")

    error = test.metrics.get("calibration-error")
    words = "" if error is None else f" Expected calibration error: {100 * error:.1f} %."
    return draw_chart(
        f"calibration-{test.where}",
        f"Calibration on {WHERE[test.where]}",
        f"{len(bins)} bins of confidence.{words}",
        (_WIDTH, 3.4),
        draw,
    )


def sites_chart(sites: Sequence[SiteTest], whole: TestRecord) -> Chart:
    """Draw each site's accuracy with its interval, beside that of all together."""
    shares = [100 * (site.test.metrics["accuracy"] or 0.0) for site in sites]
    bounds = [site.test.intervals.get("accuracy", (0.0, 1.0)) for site in sites]
    everywhere = 100 * (whole.metrics["accuracy"] or 0.0)
    places = np.arange(len(sites))[::-1]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(everywhere, color=_GREY, linestyle="--", linewidth=1)
        below = [share - 100 * low for share, (low, _) in zip(shares, bounds, strict=True)]
        above = [100 * high - share for share, (_, high) in zip(shares, bounds, strict=True)]
        axes.errorbar(
            shares, places, xerr=[below, above], fmt="o", color=_BLUE, capsize=3, linewidth=1.2
        )
        names = [tick_label(site.who) for site in sites]
        step = -(-len(sites) // 25)
        axes.set_yticks(places[::step], names[::step])
        axes.set(xlim=(0, 102), xlabel="Accuracy (%) with its 95 % interval; dashed: all sites")
        axes.grid(visible=False, axis="y")

    return draw_chart(
        "sites",
        "Accuracy at each site",
        f"{len(sites)} sites, from {min(shares):.1f} to {max(shares):.1f} %; all together "
        f"{everywhere:.1f} %.",
        (_WIDTH, 1.1 + min(0.3 * len(sites), 5.0)),
        draw,
    )
