"""AHFAL as a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.simulation import TINY

import ahfal_app
from ahfal_app.config import Settings
from ahfal_app.errors import ConfigError


def place(tmp_path: Path, data_dir: Path) -> dict[str, object]:
    return {**TINY, "output-dir": str(tmp_path / "runs"), "data-dir": str(data_dir)}


def test_a_run_returns_what_came_of_it(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = place(tmp_path, data_dir)
    result = ahfal_app.run({**values, "strategy": "ahfal"}, cycles=2, strategy="entropy")
    assert capsys.readouterr().out == ""
    assert isinstance(result.settings, Settings)
    assert (result.settings.strategy, result.settings.num_cycles) == ("entropy", 2)
    assert len(result.accuracies) == len(result.labels) == 2
    assert result.final_accuracy == result.accuracies[-1]
    assert all(0 <= accuracy <= 1 for accuracy in result.accuracies)
    ledger = result.ledger
    assert ledger.allotted == ledger.spent == result.labels[-1]
    for path in (result.report, result.model, result.summary):
        assert path.is_absolute()
        assert path.is_file()
    again = ahfal_app.RunResult.read(result.folder)
    assert again.accuracies == result.accuracies


def test_a_file_of_settings_and_progress(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(place(tmp_path, data_dir)))
    result = ahfal_app.run(file, cycles=1, name="own", progress=True)
    assert result.folder.name == "own"
    assert "cycle 1/1" in capsys.readouterr().out


def test_what_cannot_be_used_is_refused_before_a_run(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'entropy'"):
        ahfal_app.run(place(tmp_path, data_dir), strategy="entrpy")
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def experiment(tmp_path: Path, data_dir: Path) -> Path:
    file = tmp_path / "two.yaml"
    values = {**TINY, "data-dir": str(data_dir), "cycles": 1, "rounds": 1}
    file.write_text(yaml.safe_dump({**values, "sweep": {"seed": [0, 1]}}))
    return file


@pytest.mark.usefixtures("sweeps_here")
def test_a_sweep_returns_its_runs_and_goes_on(experiment: Path, tmp_path: Path) -> None:
    first, again = (ahfal_app.sweep(experiment, tmp_path / "out", jobs=1) for _ in range(2))
    for swept in (first, again):
        assert not swept.failed
        assert swept.report.is_file()
        assert [run.settings.seed for run in swept.runs] == [0, 1]
    assert [run.folder for run in again.runs] == [run.folder for run in first.runs]


@pytest.mark.slow
def test_a_sweep_from_a_script(experiment: Path, tmp_path: Path) -> None:
    """With its guard, as the docs have it, since its processes import the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import ahfal_app\n"
        'if __name__ == "__main__":\n'
        "    for _ in range(2):\n"
        f"        sweep = ahfal_app.sweep({str(experiment)!r}, {str(tmp_path / 'out')!r}, jobs=1)\n"
        "        print(len(sweep.runs), len(sweep.failed), sweep.report.is_file())\n"
        "        print(*(run.settings.seed for run in sweep.runs))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2 0 True", "0 1"] * 2


def test_importing_it_is_cheap() -> None:
    program = "import ahfal_app, sys; assert not {'torch', 'flwr', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ahfal_app.nothing  # noqa: B018
