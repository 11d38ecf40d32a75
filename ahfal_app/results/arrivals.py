"""What a report says of samples that come and go, and of labels that are forgotten.

Shape suffixes: C classes, T cycles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.drift import smoothed_divergence
from ahfal_app.forgetting import bias_warning, weights
from ahfal_app.results.reading import Run
from ahfal_app.results.records import ArrivalsRecord, CycleRecord
from ahfal_app.results.tables import TextTable
from ahfal_app.results.units import percent


def arrivals_table(run: Run) -> TextTable | None:
    """List what had come and gone in each cycle; None where all samples are there."""
    rows = [(cycle, cycle.arrivals) for cycle in run.metrics.cycles if cycle.arrivals is not None]
    if not rows:
        return None
    headings: tuple[str, ...] = (
        "Cycle",
        "Arrived",
        "New",
        "Open",
        "Expired",
        "Skipped",
        "Labelled",
        "Pending",
        "Free",
    )
    known = run.settings.simulates_arrivals
    if known:
        headings += ("Accuracy on what comes next",)
    so_far = forgetful_accuracy([told for _, told in rows], run.settings.forget)
    if known and run.settings.forget:
        headings += ("The same, weighted over cycles",)
    drifts = run.settings.covariate_drift != "none"
    if drifts:
        headings += ("Accuracy as images look", "Severity")
    return TextTable(
        title="Arrivals",
        headings=headings,
        rows=[
            _row(cycle, told, run.settings, share)
            for (cycle, told), share in zip(rows, so_far, strict=True)
        ],
        numbers=frozenset(range(len(headings))),
        note=_note(run, rows[-1][1]),
    )


def forgetful_accuracy(told: Sequence[ArrivalsRecord], half_life: float) -> list[float | None]:
    """Return after each cycle the accuracy on what came next, of all cycles until then.

    The right ones over all, Σ λ^(t - j) r_j / Σ λ^(t - j) n_j with λ = 2^(-1 / half-life): a sample
    weighs half as much after each half-life. None where nothing has come.

    Parameters
    ----------
    told : Sequence[ArrivalsRecord]
        One for each cycle, in order.
    half_life : float
        In cycles; 0: all weigh the same.
    """
    tests = [each.tests for each in told]
    right_T = np.array([each.next_right if each else 0 for each in tests], np.float64)
    count_T = np.array([each.next_count if each else 0 for each in tests], np.float64)
    found: list[float | None] = []
    for number in range(1, len(told) + 1):
        weights_T = weights(number, half_life)
        whole = float(weights_T @ count_T[:number])
        found.append(float(weights_T @ right_T[:number]) / whole if whole else None)
    return found


def _row(
    cycle: CycleRecord, told: ArrivalsRecord, settings: Settings, so_far: float | None
) -> tuple[str, ...]:
    figures, ledger = told.figures, cycle.ledger
    labelled = cycle.labels + cycle.held_out
    cells = [f"{cycle.cycle + 1}", *(f"{count:,}" for count in (figures.arrived, figures.new))]
    cells += [f"{count:,}" for count in (figures.open, figures.expired, figures.skipped)]
    # The ledger is as of the purchase after the cycle.
    cells += [f"{labelled:,}", f"{cycle.pending:,}", f"{ledger.free:,}"]
    tests = told.tests
    if settings.simulates_arrivals:
        is_tested = tests is not None and tests.next_count
        cells.append(percent(tests.next_right / tests.next_count) if tests and is_tested else "n/a")
        if settings.forget:
            cells.append("n/a" if so_far is None or not is_tested else percent(so_far))
    if settings.covariate_drift != "none":
        cells.append(percent(tests.accuracy) if tests else "n/a")
        cells.append("n/a" if tests is None or tests.level is None else f"{tests.level:.2f}")
    return tuple(cells)


def _note(run: Run, last: ArrivalsRecord) -> str:
    settings = run.settings
    words = [
        "Arrived, new, open, expired (not asked for in time) and skipped samples are as of the "
        "purchase of the labels that the cycle is trained on; pending and free labels as of the "
        "purchase after it."
    ]
    if settings.simulates_arrivals:
        words.append(
            "Accuracy on what comes next is that of the cycle's model on the samples that come for "
            "the next one, before any of them is labelled; samples that come again do not count."
        )
        if settings.forget:
            words.append(
                "Weighted, a sample counts half as much after each half-life of `forget` cycles."
            )
        words.append(f"{last.unseen or 0:,} samples never come within the run.")
    if settings.arrival_exhausted == "recycle":
        words.append("What comes again depends on what was bought, and so on the query strategy.")
    distances = [
        (each.figures.new, each.distance)
        for cycle in run.metrics.cycles
        if (each := cycle.arrivals) is not None and each.distance is not None
    ]
    if distances:
        weights, values = zip(*distances, strict=True)
        mean = float(np.average(values, weights=weights))
        words.append(
            f"Stock bends the path: in the mean {percent(mean)} of what came for a client was of "
            "another class than wanted."
        )
    return " ".join(words)


def arrived_classes(run: Run) -> NDArray[np.int64] | None:
    """Return how many samples of each class came in each cycle, where that is known. (T, C)."""
    rows = [c.arrivals.classes for c in run.metrics.cycles if c.arrivals and c.arrivals.classes]
    return np.array(rows, np.int64) if rows else None


def mix_table(run: Run, bought_TC: NDArray[np.int64] | None) -> TextTable | None:
    """Compare the classes that came with those that were bought of them; None where unknown.

    The divergence from the test set's classes is with half a count added to each.

    Parameters
    ----------
    run : Run
        The run.
    bought_TC : NDArray[np.int64] | None
        Samples of each class that were chosen after each cycle.
    """
    arrived_TC = arrived_classes(run)
    if arrived_TC is None or bought_TC is None or len(arrived_TC) < 2:
        return None
    test_C = _test_classes(run.metrics.cycles)
    rows = []
    # What is chosen after a cycle is of what has come for the next.
    for place in range(min(len(bought_TC), len(arrived_TC) - 1)):
        arrived_C, bought_C = arrived_TC[place + 1], bought_TC[place]
        if not bought_C.any() or not arrived_C.any():
            continue
        distance = 0.5 * np.abs(arrived_C / arrived_C.sum() - bought_C / bought_C.sum()).sum()
        divergence = "n/a" if test_C is None else f"{smoothed_divergence(bought_C, test_C):.3f}"
        counts = (f"{arrived_C.sum():,}", f"{bought_C.sum():,}")
        rows.append((f"{place + 2}", *counts, percent(float(distance)), divergence))
    if not rows:
        return None
    return TextTable(
        title="Classes of what came and of what was bought",
        headings=("For cycle", "Came", "Bought", "Total variation", "KL from the test set"),
        rows=rows,
        numbers=frozenset(range(5)),
        note="With pool-memory=0 or above 1, what is bought may have come before.",
    )


def _test_classes(cycles: Sequence[CycleRecord]) -> NDArray[np.int64] | None:
    tests = cycles[-1].tests
    if not tests or not tests[0].confusion:
        return None
    counts_C: NDArray[np.int64] = np.array(tests[0].confusion, np.int64).sum(axis=1)
    return counts_C


def tasks_table(run: Run) -> TextTable | None:
    """Tell the accuracy of each task's classes after its end; None where there are no tasks."""
    task_C = class_tasks(run)
    cycles = [cycle for cycle in run.metrics.cycles if cycle.tests and cycle.tests[0].confusion]
    if task_C is None or not run.is_complete or not run.metrics.cycles:
        return None
    accuracy_EG = task_accuracies(run.metrics.cycles, task_C, run.settings.num_cycles)
    if accuracy_EG is None or not cycles:
        return None
    groups = accuracy_EG.shape[1]
    rows = [
        (f"{end + 1}", *(percent(float(a)) if end >= g else "" for g, a in enumerate(row)))
        for end, row in enumerate(accuracy_EG)
    ]
    forgotten = average_forgetting(accuracy_EG)
    return TextTable(
        title="Accuracy by task",
        headings=("After task", *(f"Task {group + 1}" for group in range(groups))),
        rows=rows,
        numbers=frozenset(range(groups + 1)),
        note="The mean of each task's classes on the test set. Average forgetting: "
        f"{100 * forgotten:.1f} points, best before less last, over all tasks but the last. All "
        "labels are trained on in every cycle"
        + (", by a model that starts afresh." if run.settings.reset_model else "."),
    )


def class_tasks(run: Run) -> NDArray[np.int64] | None:
    """Return the task, from 0, that each class belongs to, (C,); None where there are none."""
    tasks = (run.partition.get("arrivals") or {}).get("tasks")
    return None if tasks is None else np.array(tasks, np.int64)


def task_accuracies(
    cycles: Sequence[CycleRecord], task_C: NDArray[np.int64], num_cycles: int
) -> NDArray[np.float64] | None:
    """Return the accuracy of each task's classes after each task, (ends, tasks), or None."""
    groups = int(task_C.max()) + 1
    task_T = np.arange(num_cycles) * groups // num_cycles
    last_E = [int(np.flatnonzero(task_T == group)[-1]) for group in range(groups)]
    if last_E[-1] >= len(cycles):
        return None
    return accuracies_by_task([cycles[last] for last in last_E], task_C)


def accuracies_by_task(
    cycles: Sequence[CycleRecord], task_C: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean accuracy of each task's classes in each cycle, (T, tasks).

    NaN where no class of a task has a test sample.
    """
    accuracy_TC = np.array(
        [[np.nan if a is None else a for a in cycle.class_accuracy] for cycle in cycles], np.float64
    )
    groups = range(int(task_C.max()) + 1)
    return np.stack([_mean_of_known(accuracy_TC[:, task_C == each]) for each in groups], axis=1)


def _mean_of_known(values_TC: NDArray[np.float64]) -> NDArray[np.float64]:
    known_TC = ~np.isnan(values_TC)
    mean_T = np.full(len(values_TC), np.nan)
    np.divide(
        np.where(known_TC, values_TC, 0).sum(axis=1),
        known_TC.sum(axis=1),
        out=mean_T,
        where=known_TC.any(axis=1),
    )
    return mean_T


def first_cycles(num_tasks: int, num_cycles: int) -> list[int]:
    """Return the cycle, from 0, in which each task's classes first come."""
    return [-(-task * num_cycles // num_tasks) for task in range(num_tasks)]


def average_forgetting(accuracy_EG: NDArray[np.float64]) -> float:
    """Return the mean over all tasks but the last of (best before the end - at the end).

    Parameters
    ----------
    accuracy_EG : NDArray[np.float64]
        Accuracy of each task (columns) after each task (rows); above the diagonal it is not read.
    """
    last = len(accuracy_EG) - 1
    drops = [accuracy_EG[g:last, g].max() - accuracy_EG[last, g] for g in range(last)]
    return float(np.mean(drops)) if drops else 0.0


def forgetting_table(run: Run) -> TextTable | None:
    """Tell what forgetting changes of the class statistics; None where nothing is forgotten."""
    settings, rows = run.settings, []
    for cycle in run.metrics.cycles:
        told = cycle.forgetting
        if told is None or cycle.deviation is None or cycle.low is None:
            continue
        sizes = told.effective
        effective = f"{min(sizes):.1f} to {max(sizes):.1f}" if sizes else "n/a"
        plain, changed = (
            told.deviation,
            sum(a != b for a, b in zip(cycle.low, told.low, strict=True)),
        )
        means = [100 * sum(each) / len(each) for each in (cycle.deviation, plain)]
        rows.append(
            (f"{cycle.cycle + 1}", effective, *(f"{mean:.2f}" for mean in means), f"{changed}")
        )
    if not rows:
        return None
    warnings = statistics_warnings(run)
    return TextTable(
        title=f"Forgetting: labels count half as much after {settings.forget:g} cycles",
        headings=(
            "Cycle",
            "Effective labels of a client",
            "Mean deviation (points)",
            "Without forgetting",
            "Classes on another side of τ",
        ),
        rows=rows,
        numbers=frozenset(range(5)),
        note=f"In the last cycle: {warnings[-1]}." if warnings else "",
    )


def statistics_warnings(run: Run) -> list[str]:
    """Return why the newest class statistics may be noise; empty where nobody sees a reason."""
    told = [c for c in run.metrics.cycles if c.forgetting is not None and c.mean is not None]
    warning = statistics_warning(told[-1], run.settings) if told else ""
    return [warning] if warning else []


def statistics_warning(cycle: CycleRecord, settings: Settings) -> str:
    """Return why a cycle's class statistics may be noise; empty where nobody sees a reason."""
    if cycle.forgetting is None or cycle.mean is None or settings.dispersion != "deviation":
        return ""
    return bias_warning(cycle.mean, cycle.forgetting.effective, cycle.tau)
