"""Forecasts on curves whose answer is known, and what cannot be told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.fake_run import make_fake_run

from ahfal_app.cli import main
from ahfal_app.results.forecast import forecast

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


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_fake_run(tmp_path)
    for accuracy, said in (("0.2", "has it already"), ("0.99", "not from these data")):
        with pytest.raises(SystemExit) as ended:
            main(["forecast", str(folder), "--accuracy", accuracy, "--label-cost", "0.5"])
        assert ended.value.code == 0
        assert said in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as ended:
        main(["forecast", str(folder), "--accuracy", "1.5"])
    assert ended.value.code == 1
    assert "allowed is a share above 0 and below 1" in capsys.readouterr().err
