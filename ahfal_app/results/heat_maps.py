"""The heat maps of a run's report.

Legend of shapes: K clients, C classes, T cycles.

The colour map is cividis: its lightness is monotone, so it reads the same in grey, and
nearly the same with colour-blind eyes (Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ahfal_app.results.records import CycleRecord
from ahfal_app.results.svg import Chart, draw_chart, tick_label

#: With more rows or columns than this, a heat map no longer has numbers in its cells.
_MOST_NUMBERED_CELLS = 12
#: Most tick labels on an axis; beyond, only every n-th is written.
_MOST_TICKS = 25
_WIDTH = 5.0


def partition_map(counts_KC: NDArray[np.int64], class_names: Sequence[str]) -> Chart:
    """Draw the number of samples of each client and class."""
    clients = [str(number) for number in range(len(counts_KC))]
    sizes_K = counts_KC.sum(axis=1)
    return draw_chart(
        "partition",
        "Samples of each client and class",
        f"{len(counts_KC)} clients with {sizes_K.min()} to {sizes_K.max()} samples of "
        f"{counts_KC.shape[1]} classes.",
        (_WIDTH, map_height(len(counts_KC), max(map(len, class_names)))),
        lambda figure: heat_map(
            figure,
            counts_KC,
            clients,
            class_names,
            ("Client", "Class", "Samples"),
        ),
    )


def class_accuracy_map(cycles: Sequence[CycleRecord], class_names: Sequence[str]) -> Chart:
    """Draw the test accuracy of each class by cycle; grey where a class has no test samples."""
    accuracy_TC = np.array(
        [[np.nan if a is None else 100 * a for a in cycle.class_accuracy] for cycle in cycles]
    )
    return _class_map(
        "class-accuracy",
        "Test accuracy of each class",
        accuracy_TC,
        class_names,
        [cycle.cycle + 1 for cycle in cycles],
        "Test accuracy (%)",
    )


def arrivals_map(counts_TC: NDArray[np.int64], class_names: Sequence[str]) -> Chart:
    """Draw how many samples of each class came, by cycle."""
    return _class_map(
        "arrivals",
        "Samples of each class that came",
        counts_TC.astype(np.float64),
        class_names,
        range(1, len(counts_TC) + 1),
        "Samples that came",
    )


def selection_map(counts_TC: NDArray[np.int64], class_names: Sequence[str]) -> Chart:
    """Draw how many samples of each class were selected, by cycle."""
    numbers = range(1, len(counts_TC) + 1)
    return _class_map(
        "selections",
        "Selected samples of each class",
        counts_TC.astype(np.float64),
        class_names,
        numbers,
        "Selected samples",
    )


def _class_map(
    name: str,
    title: str,
    values_TC: NDArray[np.float64],
    class_names: Sequence[str],
    cycles: Sequence[int],
    unit: str,
) -> Chart:
    finite = values_TC[np.isfinite(values_TC)]
    extent = f" from {finite.min():.0f} to {finite.max():.0f}" if finite.size else ""
    return draw_chart(
        name,
        title,
        f"{unit} of {len(class_names)} classes in {len(values_TC)} cycles{extent}.",
        (_WIDTH, map_height(len(class_names), 2)),
        lambda figure: heat_map(
            figure,
            values_TC.T,
            class_names,
            [str(cycle) for cycle in cycles],
            ("Class", "Cycle", unit),
        ),
    )


def map_height(rows: int, longest_column_name: int) -> float:
    """Return a heat map's height in inches."""
    cells = min(max(0.27 * rows, 1.6), 4.4)
    return cells + 0.7 + (0.06 * min(longest_column_name, 16) if longest_column_name > 2 else 0)


def heat_map(
    figure: Figure,
    values: NDArray[np.generic],
    rows: Sequence[str],
    columns: Sequence[str],
    words: tuple[str, str, str],
) -> None:
    """Draw numbers as colours; `words` are for the rows, the columns and the numbers."""
    axes = figure.add_subplot()
    colours = colormaps["cividis"].with_extremes(bad="#d0d0d0")
    shown = np.ma.masked_invalid(np.asarray(values, dtype=np.float64))
    image = axes.imshow(shown, cmap=colours, aspect="auto", interpolation="nearest", vmin=0)
    axes.grid(visible=False)
    _ticks(axes, rows, columns)
    axes.set(ylabel=words[0], xlabel=words[1])
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    # The reader's font may be wider than the one that the figure was laid out with.
    bar.set_label(words[2], labelpad=9)
    if max(shown.shape) > _MOST_NUMBERED_CELLS:
        return
    is_bright = shown > 0.5 * shown.max()
    for row, column in np.argwhere(~np.ma.getmaskarray(shown)):
        value = float(shown[row, column])
        colour = "black" if is_bright[row, column] else "white"
        axes.text(column, row, f"{value:.0f}", color=colour, ha="center", va="center", fontsize=8)


def _ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    row_places = range(0, len(rows), math.ceil(len(rows) / _MOST_TICKS))
    axes.set_yticks(list(row_places), [tick_label(rows[place]) for place in row_places])
    names = [tick_label(name) for name in columns]
    places = list(range(0, len(names), math.ceil(len(names) / _MOST_TICKS)))
    upright = max(map(len, names)) > 2 and len(names) > 4
    axes.set_xticks(places, [names[place] for place in places], rotation=90 if upright else 0)
