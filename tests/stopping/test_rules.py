"""Stopping rules by hand, and what all of them share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.errors import ConfigError, UnknownComponent
from ahfal_app.plugins import STOPPING
from ahfal_app.stopping import CycleResult, make_rule

#: Accuracies of 10,000 tests with 100, 200, … labels; the curve's case by hand.
NOISY = [7020, 7556, 7855, 8020, 8086]


def history(*right: int, tests: int = 10_000) -> list[CycleResult]:
    return [CycleResult(100 * number, each, tests) for number, each in enumerate(right, 1)]


def test_wilsons_lower_bound_by_hand() -> None:
    """Of 90 of 100 it is (90 + 1.9207) / 103.8415 - 1.96 √(90 · 10 / 100 + 0.9604) / 103.8415."""
    lower = (90 + 1.92073) / 103.84146 - 1.959964 * (9 + 0.960365) ** 0.5 / 103.84146
    past = history(50, 60, 90, tests=100)
    assert make_rule("target", {"accuracy": lower - 1e-4}).stops(past)
    assert not make_rule("target", {"accuracy": lower + 1e-4}).stops(past)
    assert "0.9000, at least 0.82" in make_rule("target", {"accuracy": 0.8}).stops(past)


def test_more_tests_tell_more() -> None:
    rule = make_rule("target", {"accuracy": 0.88})
    assert not rule.stops(history(50, 60, 90, tests=100))
    assert rule.stops(history(5000, 6000, 9000))


def test_gain_by_hand() -> None:
    """The curve promises 0.008252 of the next hundred labels, at most 0.009482."""
    past = history(*NOISY)
    assert not make_rule("gain", {"least": 0.005}).stops(past)
    assert not make_rule("gain", {"least": 0.0094}).stops(past)
    told = make_rule("gain", {"least": 0.01}).stops(past)
    assert (
        told
        == "100 more labels promise 0.0083 of test accuracy, at most 0.0095, and 0.01 is wanted"
    )


def test_a_curve_takes_four_cycles() -> None:
    rule = make_rule("gain", {"least": 0.9, "after": 1})
    assert not rule.stops(history(*NOISY[:3]))
    flat = history(5000, 5000, 5000, 5000)
    assert make_rule("gain", {"after": 4}).stops(flat)


def test_nothing_stops_before_its_time_or_without_patience() -> None:
    good = history(9900, 9900, 9900, 9900)
    for after in (1, 3, 4, 5):
        assert bool(make_rule("target", {"after": after}).stops(good)) == (after <= 4)
    swings = history(9900, 9900, 5000, 9900, 9900)
    for patience in (1, 2, 3):
        rule = make_rule("target", {"patience": patience})
        assert bool(rule.stops(swings)) == (patience <= 2)


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=12), st.sampled_from(STOPPING.own_names())
)
def test_any_history_gets_an_answer(right: list[int], name: str) -> None:
    """A rule is a function of the history, and says why it stops."""
    past = history(*right, tests=500)
    told = make_rule(name, {}).stops(past)
    assert told == make_rule(name, {}).stops(list(past))
    if name == "none" or len(right) < 3:
        assert told == ""


def test_what_is_no_rule_is_refused() -> None:
    with pytest.raises(UnknownComponent, match="did you mean 'target'"):
        make_rule("targets", {})
    for parameters in ({"accuracy": 1.5}, {"patience": 0}, {"level": 1}):
        with pytest.raises(ConfigError, match="stopping"):
            make_rule("target", parameters)
