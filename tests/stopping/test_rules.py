"""Stopping rules by hand, and what all of them share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.errors import ConfigError, UnknownComponent
from ahfal_app.plugins import STOPPING
from ahfal_app.stopping import (
    CycleResult,
    Observation,
    StoppingRule,
    make_rule,
    make_rules,
    why_stopped,
)

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


def bought(*cycles: tuple[int, int, int, int]) -> list[CycleResult]:
    """Return cycles of 10,000 tests by labels, right ones, and labels asked for and awaited."""
    return [CycleResult(n, right, 10_000, None, asked, late) for n, right, asked, late in cycles]


def test_labels_that_are_late_are_no_end_of_the_curve() -> None:
    """The curve rises by 0.0083 for the next hundred; with as many labels as before by nothing."""
    rule = make_rule("gain", {"least": 0.005})
    grown = bought(*((100 * n, right, 100, 0) for n, right in enumerate(NOISY, 1)))
    assert not rule.stops(grown)
    assert make_rule("gain", {"least": 0.01}).stops(grown)
    # All of a purchase is late, or images went of which labels were asked for.
    for labels in (500, 497):
        late = [*grown, *bought((labels, NOISY[-1], 100, 100))]
        assert not make_rule("gain", {"least": 0.9}).stops(late)
    # All but one are late: what counts is what a purchase brings, and not the one.
    late = bought(*((100 * n, right, 100, 0) for n, right in enumerate(NOISY[:4], 1)))
    late += bought((401, NOISY[3], 100, 99))
    assert not rule.stops(late)
    assert "100 more labels" in make_rule("gain", {"least": 0.9}).stops(late)
    # The late ones come with a whole purchase, which is no larger for that.
    late = bought(*((100 * n, right, 100, 0) for n, right in enumerate(NOISY[:4], 1)))
    late += bought((400, NOISY[3], 100, 100), (600, 8120, 100, 0))
    assert "100 more labels" in make_rule("gain", {"least": 0.9}).stops(late)
    # What is held out for testing is asked for, and does not come.
    held_out = bought(*((80 * n, right, 100, 0) for n, right in enumerate(NOISY, 1)))
    assert "80 more labels" in make_rule("gain", {"least": 0.9}).stops(held_out)


def test_a_purchase_is_as_large_as_the_steps_have_it() -> None:
    """The curve rises by 0.0083 for the next hundred, and by more than 0.01 for the next 400."""
    *past, last = bought(*((100 * n, right, 100, 0) for n, right in enumerate(NOISY, 1)))
    rule = make_rule("gain", {"least": 0.01})
    assert "100 more labels" in rule.stops([*past, last])
    assert not rule.stops([*past, replace(last, growth=4.0)])
    few = make_rule("gain", {"least": 0.9}).stops([*past, replace(last, growth=0.25)])
    assert "25 more labels" in few


@pytest.mark.parametrize(("name", "window"), [("kappa", 3), ("delta-f", 3), ("change", 1)])
def test_that_cycles_of_the_same_labels_agree_ends_nothing(name: str, window: int) -> None:
    """Nothing came between the fourth cycle and the fifth, so that these have to agree."""
    calm = seen(kappa=1.0, changed=0.0, delta_f_macro=0.0)
    labels = (100, 200, 300, 400, 400, 500, 600, 700, 800)
    past = [CycleResult(n, 50, 100, calm if n > 100 else None) for n in labels]
    ends = [end for end in range(5, 10) if make_rule(name, {"after": 1}).stops(past[:end])]
    assert ends == list(range(5 + window, 10))


def test_how_sure_a_model_is_hangs_on_no_labels_before() -> None:
    sure = CycleResult(400, 50, 100, seen(uncertainty=0.01))
    assert make_rule("uncertainty", {"after": 2}).stops([sure, sure])


def watched(*values: Observation | None) -> list[CycleResult]:
    """Return a history in which nothing but predictions of the stop set tell anything."""
    return [CycleResult(100 * n, 50, 100, each) for n, each in enumerate((None, *values), 1)]


def seen(drawn: int = 100, compared: int = 100, **values: float) -> Observation:
    return Observation(drawn, compared, compared, **values)


def stops_at(rule: StoppingRule, history: list[CycleResult]) -> int:
    """Return the first cycle, from 1, after which a rule stops; 0: none."""
    ends = [end for end in range(1, len(history) + 1) if rule.stops(history[:end])]
    return ends[0] if ends else 0


def test_kappa_by_hand() -> None:
    """Means of three comparisons are 0.988333 and 0.992333: it stops after the fifth cycle."""
    past = watched(*(seen(kappa=each) for each in (0.98, 0.995, 0.99, 0.992)))
    assert stops_at(make_rule("kappa", {}), past) == 5
    assert stops_at(make_rule("kappa", {"kappa": 0.9883}), past) == 4
    assert stops_at(make_rule("kappa", {"window": 1, "kappa": 0.995}), past) == 3
    told = make_rule("kappa", {}).stops(past)
    assert told == (
        "the predictions agree with kappa 0.9923 in the mean of 3 cycles, and 0.99 is enough"
    )


def test_change_of_the_f_measure_by_hand() -> None:
    """All of three have to be below 0.05; 0.05 itself does not count."""
    past = watched(*(seen(delta_f_macro=each) for each in (0.06, 0.04, 0.03, 0.049)))
    assert stops_at(make_rule("delta-f", {}), past) == 5
    past = watched(*(seen(delta_f_macro=each) for each in (0.06, 0.04, 0.03, 0.05)))
    assert stops_at(make_rule("delta-f", {}), past) == 0


def test_the_class_that_changes_most_counts_where_it_is_to() -> None:
    past = watched(*(seen(delta_f_macro=0.01, delta_f_worst=0.2) for _ in range(4)))
    assert stops_at(make_rule("delta-f", {}), past) == 4
    assert stops_at(make_rule("delta-f", {"average": "worst"}), past) == 0


def test_uncertainty_and_change_by_hand() -> None:
    """The entropy of (0.99, 0.01) is 0.080793 of ln 2."""
    past = watched(*(seen(uncertainty=0.080793, changed=0.08) for _ in range(3)))
    assert stops_at(make_rule("uncertainty", {}), past) == 0
    assert stops_at(make_rule("uncertainty", {"uncertainty": 0.09}), past) == 3
    assert stops_at(make_rule("change", {}), past) == 0
    assert stops_at(make_rule("change", {"changed": 0.0799}), past) == 0
    assert stops_at(make_rule("change", {"changed": 0.08}), past) == 3


@pytest.mark.parametrize("name", ["kappa", "change", "delta-f", "uncertainty"])
def test_nothing_is_decided_below_half_of_the_stop_set(name: str) -> None:
    calm = {"kappa": 1.0, "changed": 0.0, "delta_f_macro": 0.0, "uncertainty": 0.0}
    for compared, stops in ((100, 4), (50, 4), (49, 0)):
        past = watched(*(seen(compared=compared, **calm) for _ in range(3)))
        assert stops_at(make_rule(name, {"after": 4}), past) == stops
    # Nor by a cycle of which nothing is known, nor by one from before anybody asked.
    past = watched(seen(**calm), None)
    assert stops_at(make_rule(name, {"after": 3}), past) == 0
    assert stops_at(make_rule(name, {"after": 2}), watched(None)) == 0


def test_a_window_has_to_be_known_as_a_whole() -> None:
    past = watched(*(seen(kappa=1.0, compared=each) for each in (100, 40, 100, 100, 100)))
    assert stops_at(make_rule("kappa", {}), past) == 6


def test_several_rules_hold_in_the_same_cycle_or_one_of_them() -> None:
    past = watched(
        seen(changed=0.0, uncertainty=0.5),
        seen(changed=0.0, uncertainty=0.5),
        seen(changed=0.1, uncertainty=0.01),
        seen(changed=0.0, uncertainty=0.01),
    )
    rules = make_rules("change, uncertainty", {"after": 2, "uncertainty": 0.1})
    assert [rule.name for rule in rules] == ["change", "uncertainty"]
    ends = [
        (bool(why_stopped(rules, "any", past[:end])), bool(why_stopped(rules, "all", past[:end])))
        for end in range(1, 6)
    ]
    assert ends == [(False, False), (True, False), (True, False), (True, False), (True, True)]
    both = why_stopped(rules, "all", past)
    assert "predictions changed" in both
    assert "mean entropy" in both


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
    for names, said in (
        ("none,kappa", "allowed is 'none' alone, or others"),
        ("kappa,kappa", "allowed is each name once"),
        ("kappa,gian", "stopping='gian': allowed is change |"),
        ("kappa,", "stopping='': allowed is"),
    ):
        assert said in " ".join(STOPPING.choice_problems(names))
    for names, key, said in (
        ("kappa,gain", "accuracy", "'kappa,gain' has no such parameter; .*it takes: after, kappa"),
        ("kappa,gain", "leest", "did you mean 'least'"),
        ("kappa,gain", "kappa", r"stopping.kappa=2: allowed is number, > 0, ≤ 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_rules(names, {key: 2})
    for parameters in ({"accuracy": 1.5}, {"patience": 0}, {"level": 1}):
        with pytest.raises(ConfigError, match="stopping"):
            make_rule("target", parameters)
