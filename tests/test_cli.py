"""What people type: which argument is what, where files go, and what is told at once."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest
from support.simulation import TINY, Simulation

from ahfal_app.cli import main
from ahfal_app.config import parse_settings
from ahfal_app.config_sources import is_setting, read_arguments
from ahfal_app.errors import ConfigError, PartitionError
from ahfal_app.experiments.compare import compare_runs
from ahfal_app.server.start import prepare


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a command prints that ends in a named error."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("seed=1", True),
            ("strategy.balance=none", True),
            ("dataset=/data/a=b/c.yaml", True),
            ("output-dir=runs/x.yaml", True),
            ("tauu=3", True),
            ("conf.yaml", False),
            ("runs/alpha=0.1/config.yaml", False),
            ("/runs/alpha=0.1/config.yaml", False),
            ("./alpha=0.1.yaml", False),
            ("~/alpha=0.1.yaml", False),
        ],
    )
    def test_a_path_with_an_equals_sign_is_a_path(self, argument: str, expected: bool):
        assert is_setting(argument) == expected

    def test_a_file_that_is_called_like_a_setting_is_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        assert is_setting("seed=3.yaml")
        (tmp_path / "seed=3.yaml").write_text("tau: 5")
        (tmp_path / "my=settings").write_text("rounds: 4")
        values = read_arguments(["seed=3.yaml", "my=settings", "alpha=0.5"])
        assert values == {"tau": 5, "rounds": 4, "alpha": 0.5}

    def test_a_missing_path_is_told_as_one(self):
        with pytest.raises(ConfigError, match=r"x=1/a\.yaml: No such file"):
            read_arguments(["x=1/a.yaml"])

    @pytest.mark.parametrize("command", ["run", "partition"])
    @pytest.mark.parametrize(
        "key", ["sweep: {seed: [0]}", "base: x.yaml", "paper: []", "reference: x"]
    )
    def test_an_experiment_is_for_sweep(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, key: str
    ):
        file = tmp_path / "experiment.yaml"
        file.write_text(key)
        printed = refused(capsys, command, str(file))
        assert f"{file}: an experiment, since it has {key.split(':')[0]}" in printed
        assert f"`ahfal sweep {file} --out FOLDER` runs it" in printed

    @pytest.mark.usefixtures("sweeps_here")
    def test_sweep_takes_paths_with_an_equals_sign(self, tmp_path: Path, data_dir: Path):
        folder = tmp_path / "tau=5"
        folder.mkdir()
        lines = {**TINY, "data-dir": str(data_dir), "cycles": 1, "rounds": 1}
        lines |= {"max-train-samples": 300}
        (folder / "x.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items()))
        out = tmp_path / "out"
        main_returns(["sweep", str(folder / "x.yaml"), "tau=5", "--out", str(out), "--jobs", "1"])
        plan = json.loads((out / "experiments" / "x-paper.json").read_text())
        assert plan["overrides"] == {"tau": 5}


def main_returns(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code in (0, None)


class TestOutput:
    def test_a_picture_is_an_svg(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        for name in ("p.txt", "p.png", "p", str(tmp_path)):
            out = tmp_path / name
            assert f"--out={str(out)!r}: allowed is the name of a file, with .svg" in refused(
                capsys, "partition", "--out", str(out)
            )
            assert not out.is_file()

    @pytest.mark.usefixtures("charts")
    def test_folders_are_made(self, tmp_path: Path, data_dir: Path):
        out = tmp_path / "a" / "b" / "p.SVG"
        main_returns(["partition", f"data-dir={data_dir}", "--out", str(out)])
        assert "<svg" in out.read_text()

    def test_a_folder_that_cannot_be_is_told_before_anything_is_done(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        (tmp_path / "file").write_text("")
        below = tmp_path / "file" / "below"
        (tmp_path / "x.yaml").write_text("seed: 0")
        for arguments, message in [
            (["partition", "--out", f"{below}.svg"], "cannot be written"),
            (["compare", "a", "b", "--out", f"{below}.html"], "cannot be written"),
            (["compare", "a", "b", "--out", f"{below}.pdf"], "with .html"),
            (["sweep", str(tmp_path / "x.yaml"), "--out", str(below)], "SweepError"),
            (["sweep", str(tmp_path / "x.yaml"), "--out", str(below.parent)], "SweepError"),
            (["certs", "--out", str(below), "--site", "a"], "CertificateError"),
        ]:
            assert message in refused(capsys, *arguments)


class TestCompare:
    def test_a_run_with_itself(
        self, simulation: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        folder = simulation(cycles=1).folder
        link = tmp_path / "link"
        link.symlink_to(folder)
        out = tmp_path / "page.html"
        for other in (folder, folder / "checkpoint" / "..", link):
            printed = refused(capsys, "compare", str(folder), str(other), "--out", str(out))
            assert f"{other}: the same run as {folder}; allowed is each once" in printed
        assert not out.exists()
        # From Python, its rows are told apart all the same.
        results = compare_runs([folder, folder])
        assert results.axes == {"run": (folder.name, f"{folder.name} (2)")}

    def test_runs_of_the_same_name_are_told_apart_by_their_folders(
        self, simulation: Simulation, tmp_path: Path
    ):
        folders = []
        for parent in ("a", "b"):
            place = {"output-dir": str(tmp_path / parent / "runs"), "name": "run"}
            folders.append(simulation(**place, cycles=1).folder)
        results = compare_runs(folders)
        assert results.axes == {"run": ("a/runs/run", "b/runs/run")}
        assert [len(results.at((), method)) for method in results.methods] == [1, 1]


@pytest.mark.slow
def test_a_partition_that_cannot_be_drawn_is_told_at_once(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    values = {
        **simulation.base,
        "partition": "dirichlet",
        "alpha": 0.01,
        "num-clients": 40,
        "min-partition-size": 30,
        "partition-attempts": 11,
    }
    with pytest.raises(PartitionError, match="none of partition-attempts=11 draws"):
        prepare(values)
    assert not Path(simulation.base["output-dir"]).exists()
    from ahfal_app.engine.flower import run_on_flower

    monkeypatch.setattr("ahfal_app.engine.flower._run", lambda *_: pytest.fail("was started"))
    monkeypatch.setattr("ahfal_app.engine.flower.DEFAULT_NUM_CLIENTS", 40)
    with pytest.raises(PartitionError, match="none of partition-attempts=11 draws"):
        run_on_flower({**values, "num-clients": 0}, None)  # type: ignore[arg-type]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's user of whom the system knows nothing but a number."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert os.path.expanduser("~") == "~"


@pytest.mark.usefixtures("homeless")
class TestWithoutHome:
    def test_what_needs_one_says_which_setting_does_without(self):
        for values, key in [
            ({}, "data-dir='~/.cache/ahfal'"),
            ({"data-dir": "~/x"}, "data-dir='~/x'"),
            ({"output-dir": "~/runs"}, "output-dir='~/runs'"),
            ({"resume": "~/run"}, "resume='~/run'"),
            ({"dataset": "~/images"}, "dataset='~/images'"),
        ]:
            with pytest.raises(ConfigError, match=f"{key}: no home folder is known"):
                prepare(values)
        with pytest.raises(ConfigError, match=r"file='~/a.yaml': no home folder"):
            read_arguments(["~/a.yaml"])

    def test_a_run_whose_folders_are_named_needs_none(self, simulation: Simulation):
        assert simulation(cycles=1).summary["complete"]


def test_settings_are_what_they_were(tmp_path: Path):
    """A file that `ahfal run` has written is one that it reads."""
    (tmp_path / "a.yaml").write_text(parse_settings({"seed": 3}).to_yaml())
    assert parse_settings(read_arguments([str(tmp_path / "a.yaml")])).seed == 3
