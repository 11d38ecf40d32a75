"""Taking part from a package of one's own, under a protocol of the smallest size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from support.benchmarks import made_up, submission
from support.documented_package import write_package

from ahfal_app import plugins
from ahfal_app.benchmark.protocol import Method
from ahfal_app.benchmark.running import BASELINES, PAGE, SUBMISSION, Benchmark, take_part
from ahfal_app.benchmark.submission import lines_of
from ahfal_app.cli import main
from ahfal_app.errors import ConfigError

pytestmark = pytest.mark.usefixtures("sweeps_here")

SMOKE: dict[str, Any] = {
    "title": "Smoke",
    "version": 1,
    "settings": {
        **{"rounds": 1, "local-epochs": 1, "device": "cpu", "num-clients": 3, "cycles": 2},
        **{"initial-labels": 4, "query-labels": 2, "target-labels": 6},
    },
    "problems": {
        "digits": {"dataset": "digits", "model": "mlp", "max-train-samples": 150},
        "breast-cancer": {"dataset": "breast-cancer", "learning-rate": 0.05},
    },
    "splits": {"mild": {"alpha": 1.0}},
    "seeds": [0, 1],
    "reference": "random",
    "baselines": ["random", "entropy"],
    "free": ["tau"],
    "cached": "kept.jsonl",
}


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(SMOKE))
    return path


@contextmanager
def own_strategy(folder: Path) -> Iterator[None]:
    """Have the documented package installed, with its strategy alone."""
    write_package(folder)
    point = EntryPoint("ward-logit-gap", "ward.logit_gap", "ahfal_app.strategies")

    def points(group: str) -> tuple[EntryPoint, ...]:
        return (point,) if group == "ahfal_app.strategies" else ()

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(plugins, "entry_points", points)
        yield


def ahfal(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_a_method_of_a_user_s_own_runs_and_is_put_beside_the_baselines(
    file: Path, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"data-dir={data_dir}"
    assert ahfal("benchmark", str(file), place, "--lock") == 0
    # The baselines first, by themselves: what is kept with the protocol.
    assert ahfal("benchmark", str(file), place, "--out", str(tmp_path / "first")) == 0
    (tmp_path / "kept.jsonl").write_bytes((tmp_path / "first" / BASELINES).read_bytes())
    assert not (tmp_path / "first" / SUBMISSION).exists()
    capsys.readouterr()

    out = tmp_path / "mine"
    with own_strategy(tmp_path / "package"):
        taking_part = ("strategy=ward-logit-gap", "strategy.model=global", place)
        assert ahfal("benchmark", str(file), *taking_part, "--out", str(out)) == 0
    told = capsys.readouterr().out
    # Two data sets and two seeds of the method alone.
    assert "4 of 4 runs" in told
    assert not (out / BASELINES).exists()
    line = json.loads((out / SUBMISSION).read_text())
    assert line["method"] == "ward-logit-gap strategy.model=global"
    assert line["settings"] == {"strategy.model": "global"}
    (package,) = line["packages"]
    assert (package["setting"], package["name"]) == ("strategy", "ward-logit-gap")
    assert len(line["runs"]) == 4
    assert [run["labels"] for run in line["runs"]] == [[12, 18]] * 4
    assert str(tmp_path) not in (out / SUBMISSION).read_text()

    page = tmp_path / "all.html"
    assert ahfal("leaderboard", str(file), str(out / SUBMISSION), "--out", str(page)) == 0
    assert page.read_text() == (out / PAGE).read_text()
    assert page.read_text().count('<th scope="row">ward-logit-gap strategy.model=global</th>') >= 4
    # A hostile file beside it is refused with its reason, and nothing is written.
    bad = tmp_path / "bad.jsonl"
    line["runs"][0]["accuracy"][0] = 2.0
    bad.write_text(json.dumps({**line, "method": "better"}))
    none = tmp_path / "none.html"
    assert ahfal("leaderboard", str(file), str(bad), "--out", str(none)) == 1
    assert "runs.0.accuracy.0" in capsys.readouterr().err
    assert not none.exists()


@pytest.mark.slow
def test_missing_baselines_are_run_and_other_data_stop_it(
    file: Path, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"data-dir={data_dir}"
    assert ahfal("benchmark", str(file), place, "--lock") == 0
    assert ahfal("benchmark", str(file), place, "--out", str(tmp_path / "first")) == 0
    first = (tmp_path / "first" / BASELINES).read_text().splitlines()
    assert [json.loads(line)["method"] for line in first] == ["random", "entropy"]
    (tmp_path / "kept.jsonl").write_text(first[0] + "\n")
    capsys.readouterr()
    again = ("strategy=random", "--name", "random, again", place)
    out = tmp_path / "again"
    assert ahfal("benchmark", str(file), *again, "--out", str(out)) == 0
    own, other = (json.loads((out / name).read_text()) for name in (SUBMISSION, BASELINES))
    assert (own["method"], other["method"]) == ("random, again", "entropy")

    def without_times(line: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**run, "seconds": 0} for run in line["runs"]]

    # The same method again, elsewhere, comes to the same.
    assert without_times(own) == without_times(json.loads(first[0]))
    assert without_times(other) == without_times(json.loads(first[1]))

    # Alone, without any baseline.
    alone = tmp_path / "alone"
    named = (*again, "--alone", "--out", str(alone))
    assert ahfal("benchmark", str(file), *named) == 0
    assert not (alone / BASELINES).exists()
    assert "1 baselines are missing: entropy." in (alone / PAGE).read_text()

    capsys.readouterr()
    assert ahfal("benchmark", str(file), "strategy=random", place, "--out", str(out)) == 1
    assert "a baseline is called so" in capsys.readouterr().err
    lock = file.with_name("smoke.lock.json")
    fixed = json.loads(lock.read_text())
    fixed["problems"]["breast-cancer"]["data"] = "0" * 64
    lock.write_text(json.dumps(fixed))
    (tmp_path / "kept.jsonl").unlink()
    assert ahfal("benchmark", str(file), place, "--out", str(tmp_path / "other")) == 1
    assert "breast-cancer: the data set has the fingerprint" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["random", "Random", "\uff32andom", "mine", "MINE"])
def test_a_name_that_looks_like_a_baseline_s_is_refused_before_anything_runs(
    name: str, tmp_path: Path
) -> None:
    protocol, lock = made_up({"a": [10, 20]}, ["random"])
    kept = submission(protocol, lock, "mine", {case: [0.5, 0.75] for case in protocol.cases()})
    (tmp_path / "kept.jsonl").write_bytes(lines_of([kept]))
    protocol = protocol.model_copy(update={"cached": "kept.jsonl"})
    benchmark = Benchmark(tmp_path / "made-up.yaml", protocol, lock)
    out = tmp_path / "out"
    with pytest.raises(ConfigError) as refused:
        take_part(benchmark, Method(name, "entropy"), {"a": {}}, out, Console(quiet=True))
    assert f"--name={name!r}: a baseline is called " in str(refused.value)
    assert not out.exists()
