"""`evaluate-last`: the last rounds of each cycle are tested, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_run import make_fake_run
from support.killing import killed_at, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.config import parse_settings
from ahfal_app.errors import ConfigError
from ahfal_app.results.reading import read_run
from ahfal_app.results.report import render_report
from ahfal_app.results.summary import summary_text

#: `rounds`, `evaluate-every`, `evaluate-last`, and the rounds with a test before a cycle's end.
TESTED = [
    (4, 0, 0, []),
    (4, 0, 1, []),
    (4, 0, 2, [3]),
    (10, 0, 5, [6, 7, 8, 9]),
    # All of them, where there are fewer.
    (3, 0, 5, [1, 2]),
    (1, 0, 5, []),
    # Every third, and the last three.
    (10, 3, 3, [3, 6, 8, 9]),
    (6, 2, 2, [2, 4, 5]),
    (6, 2, 0, [2, 4]),
]


@pytest.mark.parametrize(("rounds", "every", "last", "tested"), TESTED)
def test_which_rounds_are_tested(rounds: int, every: int, last: int, tested: list[int]) -> None:
    values = {"rounds": rounds, "evaluate-every": every, "evaluate-last": last}
    settings = parse_settings(values)
    assert [r for r in range(1, rounds + 1) if settings.tests_between(r)] == tested


@pytest.mark.parametrize("value", [-1, 2.5, "all"])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=f"evaluate-last={value!r}: allowed is"):
        parse_settings({"evaluate-last": value})


def test_a_sum_of_the_sites_is_of_one_model_alone() -> None:
    secure = {"evaluate": "sites", "privacy": "secure-aggregation", "evaluate-last": 2}
    with pytest.raises(ConfigError, match=r"evaluate-last=2: allowed is 0 with evaluate='sites'"):
        parse_settings(secure)


@pytest.fixture(name="plain", scope="module")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("plain")
    return Simulation(folder, folder / "data")(cycles=2, rounds=4, name="run")


def test_training_is_the_same_bit_for_bit(plain: Outcome, simulation: Simulation) -> None:
    tested = simulation(cycles=2, rounds=4, name="run", **{"evaluate-last": 3})
    assert tested.result == plain.result
    assert plain.summary["last_rounds_per_cycle"] == {}
    accuracies = [r.test_accuracy for r in tested.metrics.rounds]
    assert [accuracy is not None for accuracy in accuracies] == [False, True, True, False] * 2
    ends = tested.summary["accuracy_per_cycle"]
    assert ends == plain.summary["accuracy_per_cycle"]
    last = tested.summary["last_rounds_per_cycle"]
    assert last["accuracy"] == [[*accuracies[1:3], ends[0]], [*accuracies[5:7], ends[1]]]
    # The test of every round is that of the model that a run with fewer rounds would have left.
    shorter = simulation(cycles=1, rounds=2, name="shorter")
    assert last["accuracy"][0][0] == shorter.summary["final_accuracy"]
    # Every metric of a cycle's test is there.
    assert last.keys() == tested.metrics.cycles[-1].metrics.keys() | {"accuracy"}
    f1 = [r.metrics["macro-f1"] for r in tested.metrics.rounds[1:3]]
    assert last["macro-f1"][0] == [*f1, tested.metrics.cycles[0].metrics["macro-f1"]]


def test_rounds_tested_for_another_reason_are_no_last_ones(simulation: Simulation) -> None:
    both = {"evaluate-every": 1, "evaluate-last": 2}
    outcome = simulation(cycles=1, rounds=4, **both)
    accuracies = [r.test_accuracy for r in outcome.metrics.rounds]
    assert None not in accuracies[:3]
    (found,) = outcome.summary["last_rounds_per_cycle"]["accuracy"]
    assert found == [accuracies[2], outcome.summary["final_accuracy"]]
    assert read_run(outcome.folder).settings.last_rounds == 2


def test_the_sites_test_the_last_rounds_too(simulation: Simulation) -> None:
    outcome = simulation(cycles=1, rounds=3, evaluate="sites", **{"evaluate-last": 2})
    assert [r.test_accuracy is None for r in outcome.metrics.rounds] == [True, False, True]
    (found,) = outcome.summary["last_rounds_per_cycle"]["accuracy"]
    assert len(found) == 2


def test_the_best_model_is_chosen_from_all_that_were_tested(simulation: Simulation) -> None:
    outcome = simulation(cycles=1, rounds=4, keep="best", **{"evaluate-last": 3})
    accuracies = outcome.summary["last_rounds_per_cycle"]["accuracy"][0]
    kept = outcome.summary["kept"]
    assert (kept["compared"], kept["value"]) == (3, max(accuracies))
    assert kept["round"] == 2 + accuracies.index(max(accuracies))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_kill_changes_nothing(share: float, simulation: Simulation) -> None:
    settings: dict[str, object] = {"cycles": 2, "rounds": 3, "evaluate-last": 3}
    straight = uninterrupted(simulation, **settings)
    folder = killed_at(round(share * straight.events), simulation, **settings)
    last = simulation.resume(folder).summary["last_rounds_per_cycle"]
    assert last == straight.summary["last_rounds_per_cycle"]
    assert [len(values) for values in last["accuracy"]] == [3, 3]


@pytest.mark.usefixtures("charts")
def test_a_run_s_own_report_shows_the_range(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, evaluate_rounds=True, evaluate_last=3)
    # 0.7 − 0.5 e^−5.8, 0.7 − 0.5 e^−5.9 and, at the end of the cycle, 0.66 − 0.3 e^−2.75.
    assert "last 3 rounds: accuracy 67.93 % on average, 64.08 to 69.86 %" in summary_text(folder)
    page = render_report(read_run(folder))
    assert "Bars: from the lowest to the highest of the last 3 rounds." in page
    # The first cycle's: 0.7 − 0.5 e^−0.8, 0.7 − 0.5 e^−0.9 and 0.66 − 0.3 e^−0.25.
    for cell in ("46.61 %", "42.64 to 49.67 %", "64.08 to 69.86 %"):
        assert f">{cell}</td>" in page
    plain = make_fake_run(tmp_path / "plain", evaluate_rounds=True)
    assert "last 3 rounds" not in summary_text(plain)
    assert "Bars:" not in render_report(read_run(plain))
