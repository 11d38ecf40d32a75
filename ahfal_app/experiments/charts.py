"""The figures of an experiment's report.

Shapes: T cycles, M methods, C classes, K clients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ahfal_app.class_statistics import dispersion_percent
from ahfal_app.experiments.comparison import summarise
from ahfal_app.experiments.results import (
    ExperimentResults,
    Point,
    RunResult,
    area,
    final_value,
)
from ahfal_app.parameters import Scalar
from ahfal_app.results.figures import DISPERSION_WORDS
from ahfal_app.results.svg import Chart, draw_chart, tick_label

#: Colours of Okabe and Ito without the yellow; with the markers, nothing hangs on colour alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "p", "X", "<", ">")
LINES = ("-", "--", ":")

_SIZE = (5.4, 3.9)

#: Curves that can be told apart in print, how many of more are named as the best, and the others.
_MOST_CURVES, _BEST = 12, 5
_GREY: dict[str, Any] = {"color": "#BBBBBB", "linewidth": 0.7}

_Value = TypeVar("_Value")

# What fits beside each other in a legend of that width, besides the lines.
_LEGEND_LETTERS = 60

# Lines of a legend that a figure has room for, and the height of each further one, in inches.
_LEGEND_LINES = 9
_LINE = 0.19


def learning_curves(results: ExperimentResults, point: Point, name: str) -> Chart:
    """Draw mean and deviation of the accuracy against labels, one line a method.

    Of many methods those of `told_apart` are, and the others are grey.
    """
    named = told_apart(results, point)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for style, method in enumerate(results.methods):
            runs = results.at(point, method)
            if not runs:
                continue
            # Where some seeds have stopped, the mean is that of those that have gone on.
            labels_T = [np.mean(labels) for labels in _by_cycle([r.labels_T for r in runs])]
            curves = [summarise(values) for values in _by_cycle([r.values_T for r in runs])]
            means = [curve.mean for curve in curves]
            if method not in named:
                axes.plot(labels_T, means, zorder=1, **_GREY)
                continue
            place = named.index(method)
            # Apart from each other, or the bars of nine methods would hide one another; but none
            # further from its labels than a hundredth of them all.
            step = min(0.004, 0.02 / len(named))
            shift = (labels_T[-1] - labels_T[0]) * step * (place - len(named) / 2)
            axes.errorbar(
                [float(labels + shift) for labels in labels_T],
                means,
                [curve.std or 0.0 for curve in curves],
                capsize=2,
                linewidth=1.2,
                elinewidth=0.8,
                label=_method_label(method),
                **line_style(style),
            )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="Labels, all clients together", ylabel=f"Test {results.metric} in %")
        _legend_below(figure, named)

    title = f"Learning curves{point_text(point, ': ')}"
    what = f"{results.metric.capitalize()} against labels by method."
    return draw_chart(name, title, what, (_SIZE[0], 4.6), draw)


def told_apart(results: ExperimentResults, point: Point) -> list[Scalar]:
    """Return the methods whose curves can be told apart at a point, in the order of all.

    All of them, or of many the first one, the reference, the five with the largest area under the
    curve, and the one with the smallest.
    """
    methods = [method for method in results.methods if results.at(point, method)]
    if len(methods) <= _MOST_CURVES:
        return methods
    areas = {method: list(results.by_seed(point, method, area).values()) for method in methods}
    ranked = sorted(
        (method for method in methods if areas[method]), key=lambda m: -float(np.mean(areas[m]))
    )
    named = {methods[0], results.reference, *ranked[:_BEST], *ranked[-1:]}
    return [method for method in methods if method in named]


def accuracy_over(results: ExperimentResults, axis: str, rest: Point, name: str) -> Chart:
    """Draw the final accuracy against the numbers on an axis, one line a method.

    Parameters
    ----------
    results : ExperimentResults
        What is done of the experiment.
    axis : str
        The axis.
    rest : Point
        The place on all other axes but the methods'.
    name : str
        What the figure is called.
    """
    values = [float(label) for label in results.axes[axis]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, method in enumerate(results.methods):
            found = [
                list(results.by_seed((*rest, (axis, label)), method, final_value).values())
                for label in results.axes[axis]
            ]
            kept = [(v, summarise(list_)) for v, list_ in zip(values, found, strict=True) if list_]
            axes.errorbar(
                [value for value, _ in kept],
                [summary.mean for _, summary in kept],
                [summary.std or 0.0 for _, summary in kept],
                capsize=2,
                linewidth=1.2,
                elinewidth=0.8,
                label=_method_label(method),
                **line_style(place),
            )
        axes.set(xlabel=axis, ylabel=f"Final test {results.metric} in %")
        if len(values) > 1 and min(values) > 0 and max(values) / min(values) >= 5:
            axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        _legend_below(figure, results.methods)

    title = f"Final {results.metric} over {axis}{point_text(rest, ': ')}"
    what = f"{results.metric.capitalize()} against {axis} by method."
    return draw_chart(name, title, what, (_SIZE[0], 4.6), draw)


def last_rounds(results: ExperimentResults, point: Point, name: str) -> Chart:
    """Draw the range over the last rounds, their mean and the final one, a row a method."""
    found = {m: list(results.last_rounds(point, m).values()) for m in results.methods}
    labels = [tick_label(str(method), 22) for method, runs in found.items() if runs]
    # Means over seeds: the lowest round, the highest, the mean of the rounds, the final one.
    means_M4 = np.array(
        [
            np.mean([(last.low, last.high, last.mean, last.final) for last in runs], axis=0)
            for runs in found.values()
            if runs
        ]
    )

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low_M, high_M, mean_M, final_M = means_M4.T
        places_M = np.arange(len(labels))
        axes.hlines(places_M, low_M, high_M, color="#56B4E9", linewidth=5)
        axes.plot(mean_M, places_M, "o", color="#0072B2", label="mean of the last rounds")
        # Hollow and larger, so that both are seen where they meet.
        style: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": "#D55E00"}
        axes.plot(final_M, places_M, "D", markersize=8, label="final round", **style)
        axes.set_yticks(places_M, labels)
        axes.set(xlabel=f"Test {results.metric} in %", ylim=(len(labels) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=2)

    title = f"Last rounds{point_text(point, ': ')}"
    text = "; ".join(
        f"{label}: {low:.1f} to {high:.1f}, mean {mean:.1f}, final {final:.1f}"
        for label, (low, high, mean, final) in zip(labels, means_M4.tolist(), strict=True)
    )
    return draw_chart(name, title, f"{text}.", (_SIZE[0], 1.4 + 0.32 * len(labels)), draw)


def class_gaps(rows: Sequence[tuple[str, float, float]], point: Point, name: str) -> Chart:
    """Draw the accuracy of high- and of low-variance classes, a pair of bars a method."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = np.arange(len(rows))
        axes.bar(
            places - 0.2, [row[1] for row in rows], 0.4, color="#D55E00", label="high-variance"
        )
        axes.bar(
            places + 0.2,
            [row[2] for row in rows],
            0.4,
            color="#56B4E9",
            hatch="//",
            edgecolor="white",
            label="low-variance",
        )
        axes.set_xticks(places, [tick_label(row[0], 22) for row in rows], rotation=35, ha="right")
        axes.set(ylabel="Mean class accuracy in %")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=2)

    title = f"Classes of high and low variance{point_text(point, ': ')}"
    return draw_chart(name, title, "Mean accuracy of the two halves of the classes.", _SIZE, draw)


def crossover(
    variation_N: NDArray[np.float64],
    difference_N: NDArray[np.float64],
    methods: tuple[Scalar, Scalar],
    name: str,
) -> Chart:
    """Draw the difference of two methods' class accuracies against the coefficient of variation."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, color="#333333", linewidth=1)
        axes.plot(variation_N, difference_N, "o", color="#0072B2", alpha=0.55, markersize=4)
        if len(np.unique(variation_N)) > 1:
            slope, intercept = np.polyfit(variation_N, difference_N, 1)
            ends = np.array([variation_N.min(), variation_N.max()])
            axes.plot(ends, slope * ends + intercept, color="#D55E00", linestyle="--")
        axes.set(
            xlabel="Coefficient of variation of the class over clients",
            ylabel=f"{tick_label(str(methods[0]), 24)} less {tick_label(str(methods[1]), 24)}",
        )

    title = "Class-wise crossover"
    text = "Each point is a class of a run; the dashed line is fitted by least squares."
    return draw_chart(name, title, text, _SIZE, draw)


def deviation_bands(runs: Sequence[RunResult], point: Point, name: str) -> Chart:
    """Draw each class's dispersion over the cycles, mean over seeds, against τ."""
    settings = runs[0].run.settings
    what, unit = DISPERSION_WORDS[settings.dispersion]
    selecting = [
        [c for c in result.run.metrics.cycles if c.mean is not None and c.deviation is not None]
        for result in runs
    ]
    values = [
        [dispersion_percent(c.mean or (), c.deviation or (), settings.dispersion) for c in cycles]
        for cycles in selecting
    ]
    # Classes of different seeds have nothing in common but their rank.
    ranked_TC = np.array([np.sort(each, axis=1).mean(axis=0) for each in _by_cycle(values)])
    taus = [[cycle.tau for cycle in cycles] for cycles in selecting]
    tau_T = np.array([np.mean(each) for each in _by_cycle(taus)])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        cycles_T = np.arange(1, len(ranked_TC) + 1)
        if settings.tau_rule == "fixed":
            axes.axhspan(0, settings.tau, color="#f0f0f0", zorder=0)
            axes.axhline(settings.tau, color="#333333", linestyle=(0, (6, 3)))
        else:
            axes.fill_between(cycles_T, tau_T, color="#f0f0f0", linewidth=0, zorder=0)
            axes.plot(cycles_T, tau_T, color="#333333", linestyle=(0, (6, 3)))
        axes.plot(cycles_T, ranked_TC, color="#0072B2", linewidth=0.8, marker="o", markersize=2.5)
        mean_T = ranked_TC.mean(axis=1)
        # With a marker, or the mean of a single cycle could not be seen.
        axes.plot(cycles_T, mean_T, color="#D55E00", linewidth=2.2, marker="s", label="mean")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        if len(cycles_T) == 1:
            axes.set_xticks(cycles_T)
        axes.set_ylim(0, 1.1 * max(tau_T.max(), ranked_TC.max()))
        axes.set(xlabel="Cycle", ylabel=f"{what} ({unit})")
        figure.legend(loc="outside lower center")

    threshold = f"τ = {settings.tau:g}" if settings.tau_rule == "fixed" else "Otsu's τ"
    title = f"{what} and {threshold}{point_text(point, ': ')}"
    text = "One line for each rank of the classes, mean over seeds; grey: low-variance."
    return draw_chart(name, title, text, _SIZE, draw)


def partition_bubbles(counts_KC: NDArray[np.int64], point: Point, name: str) -> Chart:
    """Draw how a split spreads the classes over the clients: one circle each, area by count."""
    clients, classes = counts_KC.shape

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = np.array(list(itertools.product(range(clients), range(classes))))
        areas = 260 * counts_KC.ravel() / max(1, counts_KC.max())
        axes.scatter(places[:, 0], places[:, 1], areas, color="#0072B2", alpha=0.75, linewidths=0)
        axes.set(xlabel="Client", ylabel="Class", xlim=(-0.7, clients - 0.3))
        axes.set_ylim(-0.7, classes - 0.3)
        if clients <= 20:
            axes.set_xticks(range(clients))
        if classes <= 20:
            axes.set_yticks(range(classes))

    title = f"Partition{point_text(point, ': ')}"
    text = f"Samples of each class at each client; the largest circle is {counts_KC.max():,}."
    return draw_chart(name, title, text, _SIZE, draw)


def point_text(point: Point, before: str = "") -> str:
    """Return a point of the grid in words."""
    words = ", ".join(f"{axis} = {label}" for axis, label in point)
    return f"{before}{words}" if words else ""


def line_style(place: int) -> dict[str, Any]:
    """Return how the lines of a method look; no two of 21 look the same."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place // len(COLOURS) % len(LINES)],
    }


def _method_label(method: Scalar) -> str:
    return tick_label(str(method), 40)


def _legend_below(figure: Figure, methods: Sequence[Scalar]) -> None:
    """Put the legend under the axes, in no more columns than the figure is wide.

    Many lines of it make the figure higher, and not the axes lower.
    """
    longest = max(len(_method_label(method)) for method in methods)
    columns = max(1, min(3, _LEGEND_LETTERS // longest))
    lines = math.ceil(len(methods) / columns)
    figure.set_figheight(figure.get_figheight() + _LINE * max(0, lines - _LEGEND_LINES))
    figure.legend(loc="outside lower center", ncols=columns, columnspacing=1.2)


def _by_cycle(runs: Sequence[Sequence[_Value]]) -> list[list[_Value]]:
    """Return for each cycle the values of the runs that have come so far."""
    cycles = max(map(len, runs), default=0)
    return [[values[cycle] for values in runs if cycle < len(values)] for cycle in range(cycles)]
