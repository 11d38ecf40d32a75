"""The outcome of a run in a few numbers: `summary.json` and the last words on a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ahfal_app.results.costs import cost_of, money
from ahfal_app.results.evaluation_tables import size_warning, worst_and_spread
from ahfal_app.results.grants import describe_grants
from ahfal_app.results.kept import kept_of
from ahfal_app.results.last_rounds import last_accuracies, last_rounds_per_cycle
from ahfal_app.results.privacy import describe_privacy
from ahfal_app.results.reading import Run, read_run
from ahfal_app.results.records import CycleRecord
from ahfal_app.results.stopping import stopping_summary
from ahfal_app.results.units import (
    bounds_text,
    bytes_text,
    metric_text,
    percent,
    seconds_text,
)

#: Files worth pointing at, with what they are, in this order.
_FILES = (
    ("report.html", "report"),
    ("summary.json", "summary"),
    ("metrics.jsonl", "all metrics"),
    ("model.safetensors", "global model"),
    ("model-card.md", "model card"),
    ("config.yaml", "settings"),
)


def build_summary(run: Run, stopped: str = "") -> dict[str, Any]:
    """Return what `summary.json` holds.

    Parameters
    ----------
    run : Run
        The run, with all records it has so far.
    stopped : str
        Why the run ended early; empty if it did not.
    """
    settings, cycles, kept = run.settings, run.metrics.cycles, kept_of(run)
    seconds = run.metrics.seconds
    code = run.environment.get("code", {})
    cost = cost_of(run)
    return {
        "name": run.folder.name,
        "strategy": settings.strategy,
        "strategy_parameters": settings.parameters_of("strategy"),
        "dataset": settings.dataset,
        "model": settings.model,
        "seed": settings.seed,
        "num_clients": len(cycles[0].labels_per_client) if cycles else settings.num_clients,
        "partition": settings.partition,
        "alpha": settings.alpha,
        "tau": settings.tau,
        "complete": run.is_complete,
        "stopped": stopped,
        "num_cycles": settings.num_cycles,
        "stopped_by": cycles[-1].stopped_by if cycles else "",
        "final_accuracy": cycles[-1].accuracy if cycles else None,
        "kept": kept.to_json() if kept else None,
        "accuracy_per_cycle": [cycle.accuracy for cycle in cycles],
        "metrics_per_cycle": {
            name: [cycle.metrics.get(name) for cycle in cycles]
            for name in sorted({name for cycle in cycles for name in cycle.metrics})
        },
        "last_rounds_per_cycle": last_rounds_per_cycle(run),
        "labels_per_cycle": [cycle.labels for cycle in cycles],
        "tests": [test.model_dump(mode="json") for test in cycles[-1].tests] if cycles else [],
        "sites": [site.model_dump(mode="json") for site in cycles[-1].sites] if cycles else [],
        "held_out": cycles[-1].held_out if cycles else 0,
        "ledger": asdict(cycles[-1].ledger) if cycles else None,
        "budget": describe_grants(run),
        "cost": cost.to_summary() if cost is not None else None,
        "stopping": stopping_summary(run),
        "seconds": {"total": sum(seconds.values()), **seconds},
        "load": _load(run),
        "privacy": describe_privacy(run),
        "bytes_down": run.metrics.bytes_down,
        "bytes_up": run.metrics.bytes_up,
        "failures": run.metrics.num_failures,
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
        "code_hash": code.get("hash"),
        "version": code.get("version"),
    }


def _load(run: Run) -> dict[str, float] | None:
    """Return the machine's load over all rounds; None where no round knows it."""
    loads = [record.load for record in run.metrics.rounds if record.load is not None]
    return {"median": statistics.median(loads), "most": max(loads)} if loads else None


def status_text(run: Run) -> str:
    """Return in words how far a run has come; empty if it is complete."""
    if run.is_complete:
        return ""
    done = len(run.metrics.cycles)
    text = f"partial: {done} of {run.settings.num_cycles} cycles"
    if begun := [record for record in run.metrics.rounds if record.cycle >= done]:
        text += f" and {len(begun)} of {run.settings.rounds} rounds of the next"
    return f"{text}; stopped: {run.stopped}" if run.stopped else text


def summary_text(folder: Path) -> str:
    """Return the outcome of a run as plain lines.

    Raises
    ------
    ReportError
        The folder lacks `config.yaml` or `metrics.jsonl`, or a file cannot be read.
    """
    run = read_run(folder)
    lines = [_title(run), *filter(None, [status_text(run)])]
    lines += ["  ".join(row) for row in (_row(run, cycle) for cycle in run.metrics.cycles)]
    return "\n".join([*lines, *_closing(run)])


def print_summary(folder: Path, console: Console) -> None:
    """Print the outcome of a run with a table of its cycles.

    Raises
    ------
    ReportError
        The folder lacks `config.yaml` or `metrics.jsonl`, or a file cannot be read.
    """
    run = read_run(folder)
    table = Table(title=Text(_title(run)), title_justify="left", title_style="bold")
    for heading in ("cycle", "test accuracy", "labels", "bought", "low-variance classes"):
        table.add_column(heading, justify="right")
    for cycle in run.metrics.cycles:
        low = "" if cycle.low is None else f"{sum(cycle.low)} of {len(cycle.low)}"
        table.add_row(
            f"{cycle.cycle + 1}",
            percent(cycle.accuracy),
            f"{cycle.labels:,}",
            f"{cycle.bought:,}",
            low,
        )
    console.print(table)
    if status := status_text(run):
        console.print(Text(status, style="yellow"), soft_wrap=True)
    for line in _closing(run):
        console.print(Text(line), soft_wrap=True)


def _title(run: Run) -> str:
    settings = run.settings
    return f"{run.folder.name}: {settings.strategy} on {settings.data_name}, seed {settings.seed}"


def _row(run: Run, cycle: CycleRecord) -> tuple[str, ...]:
    return (
        f"cycle {cycle.cycle + 1}/{run.settings.num_cycles}",
        f"{percent(cycle.accuracy):>8} test accuracy",
        f"{cycle.labels:>9,} labels",
        f"{cycle.bought:>7,} bought",
    )


def _test_lines(cycles: Sequence[CycleRecord]) -> list[str]:
    """Return what the last test says besides the accuracy, and what it cannot tell."""
    last, lines = cycles[-1], list[str]()
    for test in last.tests:
        words = [f"{test.samples:,} samples"]
        for name in ("accuracy", "balanced-accuracy", "macro-f1", "auroc"):
            if test.metrics.get(name) is not None:
                bounds = bounds_text(test.intervals.get(name))
                value = metric_text(name, test.metrics[name])
                words.append(f"{name.replace('-', ' ')} {value} ({bounds})")
        lines.append(
            f"test {'on the server' if test.where == 'server' else 'at the sites'}: "
            + ", ".join(words)
        )
    lines += filter(None, (worst_and_spread(last.sites), size_warning(cycles)))
    return lines


def _last_rounds_line(run: Run) -> str:
    """Return how the accuracy swings in the last cycle's last rounds; empty where nobody knows."""
    last = last_accuracies(run, run.metrics.cycles[-1])
    if last is None:
        return ""
    bounds = bounds_text((last.low, last.high), digits=2)
    return f"last {len(last.values_R)} rounds: accuracy {percent(last.mean)} on average, {bounds}"


def _closing(run: Run) -> list[str]:
    metrics = run.metrics
    lines = []
    if (kept := kept_of(run)) and kept.is_chosen:
        lines.append(f"model of {kept.where}: {kept.why}")
    if metrics.cycles:
        lines += [*_test_lines(metrics.cycles), *filter(None, (_last_rounds_line(run),))]
        ledger = metrics.cycles[-1].ledger
        lines.append(
            f"labels: {ledger.spent:,} spent, {ledger.reserved:,} reserved, {ledger.free:,} free "
            f"of {ledger.allotted:,} allotted"
        )
    if (cost := cost_of(run)) is not None:
        parts = [f"{money(cost.labels, cost.currency)} for labels"]
        if cost.rounds:
            parts.append(f"{money(cost.rounds, cost.currency)} for rounds")
        lines.append(f"paid: {', '.join(parts)}")
    if run.settings.uses_local_dp:
        spent, epsilon = metrics.epsilon_spent, run.settings.epsilon
        lines.append(f"privacy: ε {spent:g} of {epsilon:g} spent on each client's histograms")
    lines.append(
        f"cost: {seconds_text(sum(metrics.seconds.values()))}, "
        f"{bytes_text(metrics.bytes_down)} to clients, {bytes_text(metrics.bytes_up)} from clients"
    )
    if metrics.num_failures:
        plural = "" if metrics.num_failures == 1 else "s"
        lines.append(f"failures: {metrics.num_failures} message{plural} without a usable answer")
    found = [(run.folder / name, what) for name, what in _FILES if (run.folder / name).exists()]
    return lines + [f"{what}: {path}" for path, what in found]
