"""What is written about the benchmarks can be done; what they measure is no matter here."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("benchmarks/*.py")]
COMMAND = re.compile(r"(?P<how>[^\n`]*)python benchmarks/(?P<script>\w+)\.py(?P<rest>[^\n`#]*)")
COMMANDS = [
    (page.relative_to(ROOT).as_posix(), match["how"].strip(), match["script"], match["rest"])
    for page in PAGES
    for line in page.read_text(encoding="utf-8").splitlines()
    if "python benchmarks/" in line
    for match in COMMAND.finditer(line)
]


def load(script: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module(script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_find_what_they_import(script: str, monkeypatch: pytest.MonkeyPatch):
    assert callable(load(script, monkeypatch).main)


@pytest.mark.parametrize(("page", "how", "script", "rest"), COMMANDS)
def test_written_commands_work(
    page: str, how: str, script: str, rest: str, monkeypatch: pytest.MonkeyPatch
):
    assert how == "uv run", f"{page}: a way of starting that nobody has tried"
    assert script in SCRIPTS
    module = load(script, monkeypatch)
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(rest)])
    module._arguments()


def test_the_table_has_all_scripts():
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)\.py` \|", page, re.MULTILINE)) == SCRIPTS
    assert {script for _, _, script, _ in COMMANDS} == set(SCRIPTS)


def test_a_data_set_is_dealt_out_to_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cifar_sites = load("cifar_sites", monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(0)
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    for split, size in (("train", 60), ("test", 20)):
        pixels = generator.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
        table = {"img": [Image.fromarray(each) for each in pixels], "label": [0, 1] * (size // 2)}
        Dataset.from_dict(table, features).to_parquet(data / f"{split}-0.parquet")
    work = tmp_path / "work"
    work.mkdir()
    plan = cifar_sites.Plan(("a", "b"), "b", images=40, test_images=10, alpha=5.0, seed=0)
    sites = cifar_sites.write_data(data, work, plan)
    assert sum(len(site.truth) for site in sites.values()) == 40
    assert {label for site in sites.values() for label in site.truth.values()} == {"cat", "dog"}
    files = {
        path.relative_to(work / "sites" / "a/images") for path in work.glob("sites/a/**/*.jpg")
    }
    assert {path.as_posix() for path in files} == set(sites["a"].truth)
    assert len(Dataset.from_parquet(str(work / "test-set" / "test.parquet"))) == 10


@pytest.mark.slow
def test_forecasts_are_those_of_the_recorded_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The page and the table of every forecast, from the summaries that are there."""
    forecasts = load("forecasts", monkeypatch)
    results = ROOT / "results"
    forecasts.write(forecasts.cases(results), results, tmp_path)
    for name in ("README.md", "forecasts.csv"):
        assert (tmp_path / name).read_text() == (ROOT / "results" / "forecasts" / name).read_text()


def test_the_check_of_a_gpu_selects_tests():
    """What it selects by name must not be gone, or be of a tier that it leaves out."""
    script = (ROOT / "benchmarks" / "gpu" / "check.sh").read_text(encoding="utf-8")
    (stage,) = re.findall(r"stage tests \d+ \$python -m pytest (.*?[^\\])\n", script, re.DOTALL)
    arguments = [word for word in shlex.split(stage.replace("\\\n", " ")) if word != "-q"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line for line in found.stdout.splitlines() if "::" in line]
    assert len(names) >= 5, found.stdout + found.stderr
