"""Every experiment file, tried at the smallest scale by the command that a person would type.

In this process, with the network that trains fastest, and with no charts of single runs: sweeps
with processes of their own are tested with the other sweeps, and these would spend most of their
time on convolutions and charts. Those of sweeps are drawn; as files they are written where all
strategies are compared.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from filelock import FileLock
from support.charts import OF_SWEEPS, with_charts, with_sketches
from support.sweeps import sweeps_here

from ahfal_app.cli import main
from ahfal_app.config import parse_settings
from ahfal_app.config_sources import read_yaml

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("conf/paper/*.yaml"), *ROOT.glob("conf/experiments/*.yaml")])
#: Of many strategies, on data that are the same at this scale: one split says as much as four.
ONE_SPLIT = {
    "coordinated-digits",
    "few-labels-digits",
    "findings-cifar10",
    "findings-digits",
    "label-steps-cifar10",
    "label-steps-digits",
    "pretrained-cifar10",
    "pretrained-few-labels",
    "strategies-digits",
    "together-cifar10",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the folder of a sweep over all files, which one process runs for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "smoke"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _sweep(folder)
    return folder


def _sweep(out: Path) -> None:
    of_one = [file for file in FILES if file.stem in ONE_SPLIT]
    _sweep_files([file for file in FILES if file not in of_one], out, with_sketches())
    _sweep_files(of_one, out, with_charts(OF_SWEEPS), "alpha=1.0")


def _sweep_files(
    files: list[Path], out: Path, charts: AbstractContextManager[None], *more: str
) -> None:
    named = [*map(str, files), "model=mlp", *more]
    command = ["sweep", *named, "--scale", "smoke", "--out", str(out)]
    told = io.StringIO()
    with (
        sweeps_here(),
        charts,
        contextlib.redirect_stdout(told),
        pytest.raises(SystemExit) as ended,
    ):
        main(command)
    # Each failure has a line of its own, with the run and the error.
    problems = [line for line in told.getvalue().splitlines() if line.startswith("failed:")]
    assert not problems, "\n".join(problems)
    assert not ended.value.code, told.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_an_experiment_runs_and_is_reported(file: Path, out: Path) -> None:
    name = f"{file.stem}-smoke"
    plan = json.loads((out / "experiments" / f"{name}.json").read_text())
    rows = list(csv.DictReader((out / "tables" / f"{name}.csv").read_text().splitlines()))
    # Every cycle of every run of the grid: two, or one in an experiment that buys nothing.
    runs = [
        parse_settings(read_yaml(out / "runs" / r["folder"] / "config.yaml")) for r in plan["runs"]
    ]
    assert {run.num_cycles for run in runs} <= {1, 2}
    assert len(rows) == sum(run.num_cycles for run in runs)
    assert {row["folder"] for row in rows} == {run["folder"] for run in plan["runs"]}
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    page = (out / f"report-{name}.html").read_text()
    if reference := read_yaml(file).get("reference"):
        assert f"Differences to {reference}, in points" in page
    assert "runs are missing" not in page
    pictures = list((out / "figures").glob(f"{name}-*.svg"))
    assert pictures
    assert page.count("<svg") == len(pictures)
    for kind, table in (("md", "**Final test accuracy in %**"), ("tex", r"\begin{table}")):
        assert table in (out / "tables" / f"{name}.{kind}").read_text()
    assert f'href="report-{name}.html"' in (out / "report.html").read_text()
