"""The leaderboard's tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ahfal_app.benchmark.ranks import LEVEL
from ahfal_app.benchmark.scores import Board
from ahfal_app.experiments.comparison import CONFIDENCE, TEST_NAME
from ahfal_app.experiments.tables import NOTHING
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import seconds_text


def main_table(board: Board) -> TextTable:
    """Return a row for each method, the best by mean rank first."""
    problems = list(board.protocol.problems)
    blocks = len(board.cases)
    areas = {problem: board.mean_areas_M(problem) for problem in problems}
    against = f"p against {board.protocol.reference}"
    headings = (
        "Method",
        "Mean rank",
        *(f"Area, {problem}" for problem in problems),
        "Regret",
        f"Wins of {blocks}",
        against,
        "Time of a run",
    )
    rows = []
    for place in board.order:
        seconds = [run.seconds for run in board.submissions[place].runs]
        rows.append(
            (
                board.methods[place],
                f"{board.mean_ranks_M[place]:.2f}",
                *(f"{areas[problem][place]:.2f}" for problem in problems),
                f"{board.mean_regret_M[place]:.2f}",
                f"{board.wins_M[place]}",
                _p_text(board.against_reference_M[place]),
                seconds_text(float(np.median(seconds))),
            )
        )
    return TextTable(
        title="Methods",
        headings=headings,
        rows=rows,
        numbers=frozenset(range(1, len(headings))),
        note="Area: under the budget curve, the mean test accuracy in % over the labels by the "
        "trapezoidal rule. Mean rank: by area, in each block of data set, split and seed. Regret: "
        "points below the best at a budget, mean over budgets. Wins: blocks without a larger area. "
        f"p: Wilcoxon's signed-rank test of the areas over {blocks} blocks, two-sided, corrected "
        "by Holm's method. Time: the median, on the machine of whoever ran it.",
    )


def difference_table(board: Board) -> TextTable | None:
    """Return differences to the reference by data set, paired by seed; None without a reference."""
    rows = []
    for problem in board.protocol.problems:
        for place, difference, p in board.differences(problem):
            interval = (
                NOTHING
                if difference.low is None
                else f"{difference.low:+.2f} to {difference.high:+.2f}"
            )
            numbers = (f"{difference.mean:+.2f}", interval, _p_text(p), f"{difference.count}")
            rows.append((problem, board.methods[place], *numbers))
    if not rows:
        return None
    return TextTable(
        title=f"Differences to {board.protocol.reference}, in points of area",
        headings=("Data set", "Method", "Difference", "Interval", "p", "Seeds"),
        rows=rows,
        numbers=frozenset({2, 3, 4, 5}),
        note=f"Paired by seed; a seed's area is its mean over the splits. Intervals at "
        f"{CONFIDENCE:.0%} (Student's t), not corrected; p by the {TEST_NAME}, among the methods "
        "of a data set.",
    )


def regret_tables(board: Board) -> Iterator[TextTable]:
    """Yield each data set's regret at each budget."""
    for problem in board.protocol.problems:
        regret_MT = board.regret_MT(problem)
        budgets = [f"{labels:,.0f} labels" for labels in board.budgets_T(problem)]
        yield TextTable(
            title=f"Regret on {problem}, in points",
            headings=("Method", *budgets),
            rows=[
                (board.methods[place], *(f"{value:.2f}" for value in regret_MT[place]))
                for place in board.order
            ],
            numbers=frozenset(range(1, len(budgets) + 1)),
            note="Points of accuracy below the best method at that budget. Of each split by means "
            "over the seeds, then the mean over the splits.",
        )


def entry_table(board: Board) -> TextTable:
    """Return what each submission says of where it comes from."""
    rows = []
    for place in board.order:
        each = board.submissions[place]
        packages = "; ".join(
            f"{p.package or p.name} {p.version or 'unknown'} {p.source[:12]}" for p in each.packages
        )
        machines = "; ".join(
            ", ".join([m.processor, f"{m.cores or 'unknown'} cores", *m.gpus])
            for m in each.machines
        )
        settings = " ".join(f"{key}={value}" for key, value in each.settings.items())
        changed = ", changed" if each.code.dirty else ""
        rows.append(
            (
                each.method,
                f"{each.strategy} {settings}".strip(),
                packages or NOTHING,
                f"{each.code.version} {each.code.hash[:12]}{changed}",
                machines,
            )
        )
    return TextTable(
        title="What was run",
        headings=("Method", "Strategy", "Package, version, source", "AHFAL, code", "Machine"),
        rows=rows,
        note="As the submissions say. Nobody else has run them.",
    )


def friedman_text(board: Board) -> str:
    """Return in words whether the methods differ at all, and what mean ranks must differ by."""
    test, difference = board.friedman, board.critical_difference
    blocks = len(board.cases)
    if test is None or difference is None:
        return "One method or one block: nothing to test."
    says = "they differ" if test.p < LEVEL else "no difference is shown, so that none is told apart"
    return (
        f"Friedman's test over {blocks} blocks: χ² = {test.chi_square:.2f}, Iman and Davenport's F "
        f"= {test.f:.2f} ({test.df} and {test.df_error} degrees of freedom), p {_p_word(test.p)}: "
        f"{says}. Critical difference of mean ranks (Nemenyi, {LEVEL:.0%}): {difference:.2f}."
    )


def _p_word(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _p_text(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
