"""`summaries.jsonl`: a sweep goes on from it alone, elsewhere, and reports the same."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ahfal_app.data import sources
from ahfal_app.errors import SweepError
from ahfal_app.experiments.files import load_experiment
from ahfal_app.experiments.report import write_sweep_report
from ahfal_app.experiments.results import RUNS
from ahfal_app.experiments.summaries import SUMMARIES
from ahfal_app.experiments.sweep import SweepResult, run_sweep

pytestmark = pytest.mark.usefixtures("sweeps_here")

FILE = """
title: Tiny
dataset: digits
model: mlp
num-clients: 3
rounds: 1
local-epochs: 1
max-train-samples: 300
max-test-samples: 60
cycles: 2
data-dir: {data_dir}
sweep: {{strategy: [random, entropy], seed: [0, 1]}}
"""


@pytest.fixture(name="file")
def _file(tmp_path: Path, simulation: Any) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE.format(data_dir=simulation.base["data-dir"]))
    return path


def sweep(file: Path, out: Path, force: bool = False, **overrides: object) -> SweepResult:
    experiment = load_experiment(file, overrides=overrides)
    return run_sweep([experiment], out, Console(file=io.StringIO()), 1, force)


def lines_only(before: Path, after: Path, count: int | None = None) -> None:
    """Have a new folder with some lines of a sweep, and nothing else."""
    after.mkdir()
    lines = (before / SUMMARIES).read_text().splitlines(keepends=True)
    (after / SUMMARIES).write_text("".join(lines[:count]))


def tables(out: Path) -> dict[str, str]:
    write_sweep_report(out)
    return {path.name: path.read_text() for path in (out / "tables").iterdir()}


def rows(out: Path) -> list[dict[str, str]]:
    """Rows of all cycles but for how long they took."""
    (table,) = (text for name, text in tables(out).items() if name.endswith(".csv"))
    found = list(csv.DictReader(io.StringIO(table)))
    return [{k: v for k, v in row.items() if "second" not in k.lower()} for row in found]


@pytest.mark.slow
def test_a_sweep_goes_on_from_its_lines_and_reports_the_same(file: Path, tmp_path: Path) -> None:
    whole, half, none = (tmp_path / name for name in ("whole", "half", "none"))
    # What rounds were tested is in the lines, too, though the rounds are not.
    file.write_text(file.read_text().replace("rounds: 1", "rounds: 2\nevaluate-last: 2"))
    assert len(sweep(file, whole).done) == 4
    text = (whole / SUMMARIES).read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    lines_only(whole, half, 2)
    went_on = sweep(file, half)
    assert (len(went_on.done), len(went_on.skipped)) == (2, 2)
    assert len(list((half / RUNS).iterdir())) == 2
    assert rows(half) == rows(whole)
    assert all(float(row["accuracy mean of last rounds"]) > 0 for row in rows(half))
    page = (half / "report.html").read_text()
    assert f"done, 2 of them by {SUMMARIES} alone" in page
    taken = [json.loads(line)["run"] for line in text.splitlines()[:2]]
    assert page.count(f"by {SUMMARIES} alone</t") == 2
    assert all(name in page for name in taken)
    # With all lines nothing is run, and every table is the same, times and bytes among them.
    lines_only(half, none)
    assert sweep(file, none).done == []
    assert tables(none) == tables(half)
    assert SUMMARIES not in (whole / "report.html").read_text()


@pytest.mark.slow
def test_runs_whose_folders_are_there_get_lines_once(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(file, out, strategy="random")
    content = (out / SUMMARIES).read_bytes()
    (out / SUMMARIES).unlink()
    for _ in range(2):
        assert sweep(file, out, strategy="random").done == []
        assert (out / SUMMARIES).read_bytes() == content
    # Other settings are other runs, and what is to be done again has no line to stand for it.
    assert len(sweep(file, out, strategy="random", rounds=2).done) == 2
    shutil.rmtree(out / RUNS)
    assert len(sweep(file, out, strategy="random", force=True).done) == 2
    assert len((out / SUMMARIES).read_text().splitlines()) == 4


@pytest.mark.slow
def test_another_code_is_another_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    sweep(file, out, strategy="random", seed=0)
    lines_only(out, elsewhere)
    for module in ("files", "summaries"):
        monkeypatch.setattr(f"ahfal_app.experiments.{module}.code_hash", lambda: "0" * 64)
    assert len(sweep(file, elsewhere, strategy="random", seed=0).done) == 1


def write_photographs(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label in "ab":
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                values = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(values).save(folder / f"{number}.png")
    return root


@pytest.mark.slow
def test_data_may_lie_elsewhere_and_must_be_the_same(file: Path, tmp_path: Path) -> None:
    first, second = write_photographs(tmp_path / "here"), tmp_path / "there" / "pictures"
    shutil.copytree(first, second)
    settings = {"strategy": "random", "seed": 0, "num-clients": 2, "min-partition-size": 2}
    settings |= {"max-train-samples": 0, "max-test-samples": 0, "initial-fraction": 0.2}
    out = tmp_path / "out"
    sweep(file, out, dataset=str(first), **settings)
    same, other = tmp_path / "same", tmp_path / "other"
    for folder in (same, other):
        lines_only(out, folder)
    moved = sweep(file, same, dataset=str(second), **settings)
    assert (len(moved.done), len(moved.skipped)) == (0, 1)
    assert rows(same) == rows(out)
    changed = shutil.copytree(second, tmp_path / "changed" / "pictures")
    Image.new("RGB", (8, 8)).save(changed / "train" / "a" / "0.png")
    assert len(sweep(file, other, dataset=str(changed), **settings).done) == 1


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_data_that_it_began_with(file: Path, tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "data")
    settings = {"seed": 0, "num-clients": 2, "min-partition-size": 2, "dataset": str(data)}
    settings |= {"max-train-samples": 0, "max-test-samples": 0, "initial-fraction": 0.2}
    out = tmp_path / "out"
    assert len(sweep(file, out, strategy="random", **settings).done) == 1
    assert len(sweep(file, out, strategy="random", **settings).skipped) == 1
    Image.new("RGB", (8, 8)).save(data / "train" / "a" / "20.png")
    sources._load.cache_clear()  # As in another process.
    with pytest.raises(SweepError, match=r"1 runs, such as random-.*, were done with other data"):
        sweep(file, out, **settings)
    assert len(sweep(file, out, force=True, **settings).done) == 2
    # What is no longer here cannot be compared, and what is done of it is done.
    shutil.rmtree(data)
    sources._load.cache_clear()
    assert len(sweep(file, out, **settings).skipped) == 2


@pytest.mark.slow
def test_a_torn_line_is_done_again_and_a_false_one_is_named(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(file, out, strategy="random")
    content = (out / SUMMARIES).read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / SUMMARIES).write_bytes(content[:-20])
    assert len(sweep(file, torn, strategy="random").done) == 1
    assert [json.loads(line)["run"] for line in (torn / SUMMARIES).read_text().splitlines()] == [
        json.loads(line)["run"] for line in content.splitlines()
    ]
    (torn / SUMMARIES).write_bytes(content + b'{"name": "of another version"}\n')
    with pytest.raises(SweepError, match=r"summaries.jsonl, line 3: run: Field required; allowed"):
        sweep(file, torn, strategy="random")
