from __future__ import annotations

import io

from rich.console import Console

from ahfal_app.ledger import Ledger
from ahfal_app.results.progress import Progress
from ahfal_app.results.records import CycleRecord, Failure, RoundRecord


def observed(times: list[float], terminal: bool = False, failures: tuple[Failure, ...] = ()) -> str:
    """Run two rounds per time, with one cycle at the end, and return what was written."""
    file = io.StringIO()
    clock = iter(times)
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    progress = Progress(console, clock=lambda: next(clock))
    with progress:
        progress.run_started(num_cycles=2, rounds=len(times))
        for number in range(1, len(times) + 1):
            progress.round_done(
                RoundRecord(
                    cycle=0,
                    round=number,
                    clients=3,
                    failed=failures,
                    num_examples=30,
                    train_loss=1 / number,
                )
            )
        progress.cycle_done(
            CycleRecord(
                cycle=0,
                labels=30,
                labels_per_client=(10, 10, 10),
                accuracy=0.5,
                class_accuracy=(0.5, 0.5),
                loss=None,
                mean=(0.5, 0.5),
                deviation=(0.1, 0.2),
                low=(True, False),
                tau=12,
                budget=6,
                bought=4,
                pending=2,
                ledger=Ledger(allotted=60, spent=34, reserved=2, free=24),
            )
        )
    return file.getvalue()


def test_plain_lines_keep_their_distance_but_the_last_round_is_told() -> None:
    lines = observed([0, 0.5, 1.9, 2.1, 3.0, 3.1]).splitlines()
    assert lines == [
        "cycle 1/2 round 1/6: 3 clients, training loss 1.0000",
        "cycle 1/2 round 4/6: 3 clients, training loss 0.2500",
        "cycle 1/2 round 6/6: 3 clients, training loss 0.1667",
        "cycle 1/2: test accuracy 50.00% with 30 labels, 1 of 2 classes low-variance, "
        "4 of 6 labels bought, 2 pending",
    ]


def test_failures_are_told_word_by_word() -> None:
    reason = "[red]no markup[/red] " + "and no wrapping " * 20
    lines = observed([0.0], failures=(Failure(client=2, reason=reason),)).splitlines()
    assert lines[0] == f"warning: cycle 1/2 round 1/1: client 2: {reason}"


def test_terminal_gets_a_bar() -> None:
    text = observed([0.0, 0.1], terminal=True)
    assert "2/4" in text
    assert "cycle 1/2 round 2/2" in text
    assert "test accuracy 50.00%" in text


def test_ending_twice_does_no_harm() -> None:
    progress = Progress(Console(file=io.StringIO()))
    progress.run_started(1, 1)
    progress.run_done()
    progress.run_done()
