"""The leaderboard's figures: who can be told apart, and how far each is from the best.

Shapes: M methods, T budgets.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ahfal_app.benchmark.ranks import LEVEL
from ahfal_app.benchmark.scores import Board, newcomers
from ahfal_app.experiments.charts import line_style
from ahfal_app.results.svg import Chart, draw_chart, tick_label

#: Methods whose curves are drawn besides the reference and those that are no baselines.
MOST_CURVES = 5

_WIDTH = 5.4
_ROW = 0.2
_INK, _MARK, _GROUP = "#333333", "#0072B2", "#D55E00"
_LONGEST_NAME = 26
_MOST_TICKS = 8
# What fits beside each other in a legend, even of the widest letters.
_LEGEND_LETTERS = 50


def difference_diagram(board: Board) -> Chart:
    """Draw mean ranks, a row for each method, with a bar along those that cannot be told apart.

    The critical-difference diagram of Demšar (2006), turned so that names have room.
    """
    names = [board.methods[place] for place in board.order]
    ranks = [float(board.mean_ranks_M[place]) for place in board.order]
    new = set(newcomers(board))
    colours = [_GROUP if place in new else _MARK for place in board.order]
    rows = len(names)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.scatter(ranks, range(rows), c=colours, s=26, zorder=3)
        axes.set_yticks(range(rows), [tick_label(name, _LONGEST_NAME) for name in names])
        axes.set_ylim(rows - 0.4, -1.9)
        # Room at the right for the bars, one lane each.
        lane = 0.035 * rows + 0.2
        end = rows + lane * (len(board.groups) + 1)
        axes.set_xlim(0.5, end)
        axes.set_xticks(_rank_ticks(rows))
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("Mean rank (1 is the best)", loc="left")
        axes.spines[["bottom", "right"]].set_visible(False)
        axes.spines["top"].set_visible(True)
        for number, (first, last) in enumerate(board.groups, 1):
            x = rows + lane * number
            axes.plot([x, x], [first - 0.25, last + 0.25], color=_INK, linewidth=2.4)
        if board.critical_difference is not None:
            _draw_ruler(axes, board.critical_difference)

    count = len(board.cases)
    text = (
        f"Mean ranks of {rows} methods over {count} blocks, the best at the top. Methods along one "
        f"bar at the right differ by less than the critical difference (Nemenyi, {LEVEL:.0%}), or "
        "Friedman's test shows no difference of any."
    )
    size = (_WIDTH, 1.0 + _ROW * (rows + 2))
    return draw_chart("ranks", "Critical differences of mean ranks", text, size, draw)


def _draw_ruler(axes: Axes, difference: float) -> None:
    """Draw how long the critical difference is."""
    row, start = -1.1, 1.0
    axes.plot([start, start + difference], [row, row], color=_INK, linewidth=1.2)
    for x in (start, start + difference):
        axes.plot([x, x], [row - 0.25, row + 0.25], color=_INK, linewidth=1.2)
    axes.annotate(
        f"CD = {difference:.2f}",
        (start + difference, row),
        textcoords="offset points",
        xytext=(4, 0),
        va="center",
        fontsize=9,
    )


def _rank_ticks(methods: int) -> list[int]:
    step = 1 if methods <= 10 else 5
    return sorted({1, *range(step, methods + 1, step), methods} - _crowded(methods, step))


def _crowded(methods: int, step: int) -> set[int]:
    """Return the ticks whose numbers would touch the last one."""
    return {tick for tick in range(step, methods, step) if step > 1 and methods - tick < 3}


def shown_methods(board: Board) -> list[int]:
    """Return whose curves are drawn: the best, the reference, and all that are no baselines."""
    wanted = {*board.order[:MOST_CURVES], *newcomers(board)}
    if board.reference is not None:
        wanted.add(board.reference)
    return [place for place in board.order if place in wanted]


def regret_curves(board: Board, problem: str) -> Chart:
    """Draw by how many points methods are below the best at each budget of a data set."""
    regret_MT, budgets_T = board.regret_MT(problem), board.budgets_T(problem)
    shown = shown_methods(board)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, place in enumerate(shown):
            axes.plot(
                budgets_T,
                regret_MT[place],
                label=tick_label(board.methods[place], _LONGEST_NAME),
                linewidth=1.4,
                **line_style(number),
            )
        axes.set(xlabel="Labels, all clients together", ylabel="Points below the best")
        axes.set_ylim(bottom=0)
        axes.set_xticks(budgets_T[:: 1 + len(budgets_T) // _MOST_TICKS])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside lower center", ncols=_columns(board, shown))

    text = f"Regret of some methods on {problem} at each number of labels."
    return draw_chart(f"regret-{problem}", f"Regret on {problem}", text, (_WIDTH, 4.4), draw)


def _columns(board: Board, shown: Sequence[int]) -> int:
    longest = max(len(tick_label(board.methods[place], _LONGEST_NAME)) for place in shown)
    return max(1, min(3, _LEGEND_LETTERS // longest))
