"""Forecasts on curves whose answer is known, and what cannot be told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_run import make_fake_run

from ahfal_app.cli import main
from ahfal_app.results.forecast import (
    Points,
    budget_table,
    forecast,
    forecast_budget,
    forecast_runs,
    forecast_runs_budget,
    forecast_table,
)

N = [100, 200, 300, 400, 500]
NOISY = [0.702, 0.7556, 0.7855, 0.802, 0.8086]


class TestForecast:
    def test_labels_cycles_and_time(self) -> None:
        found = forecast(N, NOISY, 0.82, per_cycle=100, seconds_per_cycle=10)
        assert found.labels is not None
        assert found.cycles is not None
        assert found.seconds is not None
        assert round(found.labels.point) == 614
        assert (found.cycles.low, found.cycles.point, found.cycles.high) == (1, 2, 16)
        assert found.seconds.point == 20
        assert found.reason == ""

    def test_an_end_that_nobody_knows(self) -> None:
        found = forecast(N, NOISY, 0.83, per_cycle=100, seconds_per_cycle=10)
        assert found.labels is not None
        assert found.cycles is not None
        assert math.isinf(found.labels.high)
        assert math.isinf(found.cycles.high)

    def test_what_was_reached_is_no_forecast(self) -> None:
        assert forecast(N, NOISY, 0.78, 100, 10).reached == 300

    @pytest.mark.parametrize(
        ("accuracy", "points", "said"),
        [
            (0.9, 3, "3 different numbers of labels; a curve takes 4"),
            (0.95, 5, "the curve that fits best ends at 0.9202, below 0.95"),
            (0.88, 5, "more than 2000 labels, 4 times what was bought"),
        ],
    )
    def test_what_the_data_do_not_say(self, accuracy: float, points: int, said: str) -> None:
        found = forecast(N[:points], NOISY[:points], accuracy, 100, 10)
        assert found.labels is None
        assert f"not from these data: {said}" in found.reason


class TestBudget:
    def test_accuracy_and_time_by_hand(self) -> None:
        found = forecast_budget(N, NOISY, 100, per_cycle=100, seconds_per_cycle=10)
        assert found.accuracy is not None
        bounds = found.accuracy.low, found.accuracy.point, found.accuracy.high
        assert bounds == pytest.approx((0.807460, 0.818980, 0.821673), abs=1e-6)
        assert found.of_a_run is not None
        assert (found.of_a_run.low, found.of_a_run.high) == pytest.approx(
            (0.794572, 0.834561), abs=1e-6
        )
        assert (found.cycles, found.seconds) == (1, 10)

    @given(st.integers(1, 1500))
    def test_a_curve_of_the_form_gives_its_own_answer(self, budget: int) -> None:
        accuracies = [0.9 - 2 * n**-0.5 for n in N]
        found = forecast_budget(N, accuracies, budget, 100, 10)
        assert found.accuracy is not None
        assert found.accuracy.point == pytest.approx(0.9 - 2 * (500 + budget) ** -0.5, abs=1e-6)
        assert found.accuracy.low <= found.accuracy.point <= found.accuracy.high
        assert found.cycles == -(-budget // 100)

    @pytest.mark.parametrize(
        ("budget", "points", "said"),
        [(100, 3, "a curve takes 4"), (1501, 5, "2001 labels are more than 2000, 4 times")],
    )
    def test_what_the_data_do_not_say(self, budget: int, points: int, said: str) -> None:
        found = forecast_budget(N[:points], NOISY[:points], budget, 100, 10)
        assert found.accuracy is None
        assert said in found.reason


class TestCost:
    POINTS = Points(tuple(N), tuple(NOISY), 100, 10.0, 5, 0.35, 2.0, "EUR")

    def test_of_an_accuracy_by_hand(self) -> None:
        """It takes 614.1 labels, so 615: 215.25; 115 more and 2 cycles of 5 rounds: 40.25 + 20."""
        table = forecast_table(forecast_runs(self.POINTS, 0.82), self.POINTS)
        rows = {row[0]: row[1:] for row in table.rows}
        assert rows["labels in all"] == ("581", "615", "2,073")
        assert rows["cost of all labels"] == ("203.35 EUR", "215.25 EUR", "725.55 EUR")
        assert rows["cost to come"] == ("38.35 EUR", "60.25 EUR", "710.55 EUR")

    def test_without_an_end(self) -> None:
        table = forecast_table(forecast_runs(self.POINTS, 0.83), self.POINTS)
        rows = {row[0]: row[1:] for row in table.rows}
        assert rows["cost of all labels"][2] == rows["cost to come"][2] == "no end known"

    def test_of_a_budget_by_hand(self) -> None:
        """150 labels at 0.35 and two cycles of 5 rounds at 2."""
        table = budget_table(forecast_runs_budget(self.POINTS, 150), self.POINTS)
        assert table.rows[-1][2] == "72.50 EUR"
        assert table.title == "150 more labels, 650 in all"

    def test_what_has_no_price_has_no_cost(self) -> None:
        free = replace(self.POINTS, label_cost=0.0, round_cost=0.0)
        for table in (
            forecast_table(forecast_runs(free, 0.82), free),
            budget_table(forecast_runs_budget(free, 150), free),
        ):
            assert not any("cost" in row[0] for row in table.rows)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_fake_run(tmp_path)
    for accuracy, said in (("0.2", "has it already"), ("0.99", "not from these data")):
        with pytest.raises(SystemExit) as ended:
            main(["forecast", str(folder), "--accuracy", accuracy, "--label-cost", "0.5"])
        assert ended.value.code == 0
        assert said in " ".join(capsys.readouterr().out.split())
    priced = make_fake_run(tmp_path, name="priced", label_cost=0.5, currency="CHF")
    for arguments, said in (
        (["--budget", "5000"], "5,000 more labels, 22,500 in all"),
        (["--budget", "5000"], "2,500 CHF"),
        (["--budget", "5000", "--label-cost", "2", "--currency", "USD"], "10,000 USD"),
        (["--budget", "50000000"], "not from these data"),
        (["--accuracy", "0.65"], "CHF"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["forecast", str(priced), *arguments])
        assert ended.value.code == 0
        assert said in " ".join(capsys.readouterr().out.split())
    for arguments in ([], ["--budget", "5", "--accuracy", "0.5"]):
        with pytest.raises(SystemExit) as ended:
            main(["forecast", str(priced), *arguments])
        assert ended.value.code == 1
        assert "--accuracy, --budget: allowed is one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["forecast", str(folder), "--accuracy", "1.5"])
    assert ended.value.code == 1
    assert "allowed is a share above 0 and below 1" in capsys.readouterr().err
