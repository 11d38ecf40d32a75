"""Signals: which end a program, and how it says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from ahfal_app.engine.stopping import Stopped, stopped_by_signals, undisturbed

_OUTSIDE = [signal.SIGTERM, signal.SIGHUP]
_IDS = ["docker stop and Slurm", "a terminal that goes away"]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Have signals do what they do by default, as in a program that a terminal starts."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _OUTSIDE}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", _OUTSIDE, ids=_IDS)
def test_a_signal_ends_what_runs_with_the_code_of_a_shell(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as ended, stopped_by_signals():
        os.kill(os.getpid(), number)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", _OUTSIDE, ids=_IDS)
def test_a_signal_that_is_to_be_ignored_stays_so(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with stopped_by_signals():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("number", [*_OUTSIDE, signal.SIGINT])
def test_nothing_interrupts_what_cleans_up(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with undisturbed():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
