"""The line charts of a run's report.

Legend of shapes: C classes, T cycles.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/) without the yellow,
which is too pale on white; markers and line styles tell classes apart without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ahfal_app.class_statistics import Dispersion, dispersion_percent
from ahfal_app.results.last_rounds import LastRounds
from ahfal_app.results.reading import Metrics
from ahfal_app.results.records import CycleRecord
from ahfal_app.results.svg import Chart, draw_chart, tick_label

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: What is drawn of the stop set, and what it is called.
_PREDICTIONS = (
    ("kappa", "kappa"),
    ("changed", "share changed"),
    ("delta_f_macro", "ΔF, macro"),
    ("uncertainty", "uncertainty"),
)
_MARKERS = ("o", "s", "^", "D", "v", "p", "<")
_LINES = ("-", "--", ":")
_BLUE, _VERMILLION, _PALE_BLUE = _COLOURS[0], _COLOURS[1], _COLOURS[5]

#: How a report calls what is compared with tau, and its unit.
DISPERSION_WORDS: dict[Dispersion, tuple[str, str]] = {
    "deviation": ("Deviation", "percentage points"),
    "coefficient-of-variation": ("Coefficient of variation", "percent"),
}

#: With more classes than this, lines are no longer told apart by name.
_MOST_NAMED_LINES = 12
_WIDTH = 5.0


def learning_curve(
    cycles: Sequence[CycleRecord], last_rounds: Sequence[LastRounds | None] = ()
) -> Chart:
    """Draw the test accuracy against the number of labels.

    Parameters
    ----------
    cycles : Sequence[CycleRecord]
        T cycles.
    last_rounds : Sequence[LastRounds | None]
        The accuracies in each one's last rounds (T), where these were tested.
    """
    labels_T = [cycle.labels for cycle in cycles]
    accuracy_T = [100 * cycle.accuracy for cycle in cycles]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for labels, last in zip(labels_T, last_rounds, strict=False):
            if last is not None:
                axes.vlines(labels, 100 * last.low, 100 * last.high, color=_PALE_BLUE, linewidth=5)
        axes.plot(labels_T, accuracy_T, color=_BLUE, marker="o", clip_on=False, zorder=3)
        for place in {0, len(cycles) - 1}:
            axes.annotate(
                f"{accuracy_T[place]:.1f} %",
                (labels_T[place], accuracy_T[place]),
                # Beside the first cycle's bar, if it has one.
                xytext=(6 if any(last_rounds) and not place else 0, 7 if place else -14),
                textcoords="offset points",
                ha="right" if place else "left",
            )
        axes.margins(x=0.04, y=0.18)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="Labels of all clients", ylabel="Test accuracy (%)")

    points = ", ".join(
        f"{labels} labels {accuracy:.1f} %"
        for labels, accuracy in zip(labels_T, accuracy_T, strict=True)
    )
    return draw_chart(
        "learning-curve",
        "Test accuracy against labels",
        f"Cycle by cycle: {points}.",
        (_WIDTH, 3.2),
        draw,
    )


def rounds_chart(metrics: Metrics) -> Chart:
    """Draw the training loss, and the test accuracy where it was measured, over all rounds."""
    rounds = metrics.rounds
    loss = np.array([np.nan if r.train_loss is None else r.train_loss for r in rounds])
    accuracy = np.array([np.nan if r.test_accuracy is None else r.test_accuracy for r in rounds])
    starts = [
        place for place, r in enumerate(rounds) if place and rounds[place - 1].cycle != r.cycle
    ]
    panels = [("Training loss", loss)]
    if np.isfinite(accuracy).any():
        panels.append(("Test accuracy (%)", 100 * accuracy))

    def draw(figure: Figure) -> None:
        columns = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, values) in zip(columns, panels, strict=True):
            finite = np.isfinite(values)
            # Sparse tests are joined; a lone point would vanish without its marker.
            places = np.flatnonzero(finite) if label != "Training loss" else np.arange(len(values))
            marker = "o" if finite.sum() <= 60 else ""
            axes.plot(places + 1, values[places], color=_BLUE, marker=marker, markersize=3, lw=1.2)
            for start in starts:
                axes.axvline(start + 0.5, color="#999999", linestyle=":", linewidth=1)
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        columns[-1].set_xlabel("Rounds since the start; dotted: a new cycle")

    return draw_chart(
        "rounds",
        "Training over the rounds",
        f"{len(rounds)} rounds; {len(starts)} times a new cycle starts.",
        (_WIDTH, 3.2 if len(panels) == 1 else 4.4),
        draw,
    )


def predictions_chart(cycles: Sequence[CycleRecord]) -> Chart | None:
    """Draw how predictions of the stop set agree with those of the cycle before.

    Returns
    -------
    Chart or None
        None where none were compared.
    """
    compared = [(c.cycle + 1, c.stop_set) for c in cycles if c.stop_set and c.stop_set.compared]
    if not compared:
        return None
    numbers_T = [number for number, _ in compared]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (name, label) in enumerate(_PREDICTIONS):
            values_T = [getattr(values, name) for _, values in compared]
            axes.plot(
                numbers_T,
                values_T,
                color=_COLOURS[place],
                marker=_MARKERS[place],
                linestyle=_LINES[place % len(_LINES)],
                label=label,
            )
        axes.set(xlabel="Cycle", ylabel="From 0 to 1")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        if len(numbers_T) == 1:
            axes.set_xticks(numbers_T)
        figure.legend(loc="outside lower center", ncols=4, handlelength=2.4, columnspacing=1.2)

    last = compared[-1][1]
    return draw_chart(
        "predictions",
        "Predictions of the stop set, from cycle to cycle",
        f"At the end kappa is {last.kappa:.2f}, and {100 * (last.changed or 0.0):.1f} % of the "
        "predictions changed.",
        (_WIDTH, 3.4),
        draw,
    )


def tasks_chart(accuracy_TG: NDArray[np.float64], first_G: Sequence[int]) -> Chart:
    """Draw the accuracy of each task's classes from cycle to cycle.

    Parameters
    ----------
    accuracy_TG : NDArray[np.float64]
        Test accuracy of a task's classes, NaN where there is none. Shape (T, G).
    first_G : Sequence[int]
        The cycle, from 0, in which each task's classes first come.
    """
    numbers_T = np.arange(len(accuracy_TG)) + 1

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for task, accuracy_T in enumerate(accuracy_TG.T):
            style = _LINES[task // len(_COLOURS) % len(_LINES)]
            axes.plot(
                numbers_T,
                100 * accuracy_T,
                color=_COLOURS[task % len(_COLOURS)],
                marker=_MARKERS[task % len(_MARKERS)] if len(numbers_T) <= 60 else "",
                linestyle=style,
                label=f"task {task + 1}",
            )
        for first in first_G[1:]:
            axes.axvline(first + 0.5, color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel="Cycle; dotted: another task comes", ylabel="Test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        if len(numbers_T) == 1:
            axes.set_xticks(numbers_T)
        figure.legend(loc="outside lower center", ncols=4, handlelength=2.4, columnspacing=1.2)

    told = ", ".join(
        f"task {task + 1} {100 * accuracy:.1f} %"
        for task, accuracy in enumerate(accuracy_TG[-1])
        if np.isfinite(accuracy)
    )
    return draw_chart(
        "tasks",
        "Accuracy by task, from cycle to cycle",
        f"At the end: {told}.",
        (_WIDTH, 3.4),
        draw,
    )


def deviation_chart(
    cycles: Sequence[CycleRecord], class_names: Sequence[str], dispersion: Dispersion
) -> Chart | None:
    """Draw each class's dispersion over the clients against the cycles' threshold tau.

    Returns
    -------
    Chart or None
        None where no cycle has selected anything, so that there are no statistics.
    """
    selecting = [cycle for cycle in cycles if cycle.deviation is not None]
    if not selecting:
        return None
    numbers_T = [cycle.cycle + 1 for cycle in selecting]
    deviation_TC = np.array(
        [dispersion_percent(c.mean or (), c.deviation or (), dispersion) for c in selecting]
    )
    what, unit = DISPERSION_WORDS[dispersion]
    low_TC = np.array([cycle.low for cycle in selecting], dtype=bool)
    tau_T = np.array([cycle.tau for cycle in selecting])
    is_fixed = bool((tau_T == tau_T[0]).all())

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        dashes = (0, (6, 3))
        if is_fixed:
            axes.axhspan(0, tau_T[0], color="#f0f0f0", zorder=0)
            axes.axhline(tau_T[0], color="#333333", linewidth=1.2, linestyle=dashes)
        else:
            axes.fill_between(numbers_T, tau_T, color="#f0f0f0", linewidth=0, zorder=0)
            axes.plot(numbers_T, tau_T, color="#333333", linewidth=1.2, linestyle=dashes)
        if len(class_names) <= _MOST_NAMED_LINES:
            _named_lines(axes, numbers_T, deviation_TC, low_TC, class_names)
        else:
            _anonymous_lines(axes, numbers_T, deviation_TC, low_TC)
        axes.set_ylim(0, 1.12 * max(tau_T.max(), deviation_TC.max(), 1.0))
        axes.margins(x=0.06)
        axes.annotate(
            f"τ = {tau_T[0]:g}" if is_fixed else "τ",
            (1, tau_T[-1]),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
        )
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set(xlabel="Cycle", ylabel=f"{what} ({unit})")
        if len(selecting) == 1:
            axes.set_xticks(numbers_T)
        figure.legend(loc="outside lower center", ncols=4, handlelength=2.4, columnspacing=1.2)

    counts = ", ".join(f"{count} of {len(class_names)}" for count in low_TC.sum(axis=1))
    return draw_chart(
        "deviation",
        f"{what} of the classes over the clients",
        f"Classes below the threshold of {_in_words(tau_T)} {unit}, cycle by cycle: {counts}.",
        (_WIDTH, 3.9),
        draw,
    )


def _in_words(tau_T: NDArray[np.float64]) -> str:
    """Return one threshold, or those of the cycles."""
    if (tau_T == tau_T[0]).all():
        return f"{tau_T[0]:g}"
    return ", ".join(f"{tau:.1f}" for tau in tau_T)


def _named_lines(
    axes: Axes,
    numbers_T: Sequence[int],
    deviation_TC: NDArray[np.float64],
    low_TC: NDArray[np.bool_],
    class_names: Sequence[str],
) -> None:
    for place, name in enumerate(class_names):
        colour = _COLOURS[place % len(_COLOURS)]
        line: dict[str, Any] = {"color": colour, "marker": _MARKERS[place % len(_MARKERS)]}
        style = _LINES[place // len(_COLOURS) % len(_LINES)]
        values_T, low_T = deviation_TC[:, place], low_TC[:, place]
        # A leading underscore would hide the name from the legend.
        label = "\u200b" + tick_label(name)
        axes.plot(numbers_T, values_T, linestyle=style, label=label, linewidth=1.2, **line)
        hollow = np.where(low_T, values_T, np.nan)
        axes.plot(numbers_T, hollow, linestyle="", markerfacecolor="white", zorder=3, **line)


def _anonymous_lines(
    axes: Axes,
    numbers_T: Sequence[int],
    deviation_TC: NDArray[np.float64],
    low_TC: NDArray[np.bool_],
) -> None:
    axes.plot(numbers_T, deviation_TC, color="#bbbbbb", linewidth=0.6)
    for is_low, colour, marker, fill, label in (
        (False, _VERMILLION, "^", _VERMILLION, "high-variance class"),
        (True, _BLUE, "o", "white", "low-variance class"),
    ):
        values_TC = np.where(low_TC == is_low, deviation_TC, np.nan)
        points = axes.plot(
            numbers_T,
            values_TC,
            color=colour,
            marker=marker,
            markerfacecolor=fill,
            linestyle="",
            markersize=3.5,
            markeredgewidth=0.8,
        )
        points[0].set_label(label)
    axes.plot(numbers_T, np.median(deviation_TC, axis=1), color="black", label="median class")
