"""A package of a user's own with one component of each kind: installed, and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file
from support.documented_package import ON_BACKBONE, SETTINGS, write_package

from ahfal_app.api import RunResult
from ahfal_app.labels.store import LabelStore
from ahfal_app.plugins import FAMILIES

ROOT = Path(__file__).parent.parent


def installed(folder: Path) -> dict[str, str]:
    """Install the package as `pip install --target` would; return an environment that has it."""
    write_package(folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    about = folder / "ward-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ward\nVersion: 1.0\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    folders = [str(folder), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def ahfal(
    program: list[str], environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def settings_file(
    tmp_path: Path, data_dir: Path, settings: Mapping[str, object] = SETTINGS, **more: object
) -> str:
    values = {
        **settings,
        "output-dir": str(tmp_path / "runs"),
        "data-dir": str(data_dir),
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def check_run(folder: Path, settings: Iterable[str] = FAMILIES) -> RunResult:
    """See that each component of the package did its part; `settings` choose one each."""
    run = RunResult.read(folder)
    said = (folder / "said.txt").read_text().splitlines()
    assert len(said) == len(run.metrics.records) == 6
    assert "cycle/metrics/ward-worst-class=" in said[-1]
    last = run.metrics.cycles[-1]
    tested = [each for each in last.class_accuracy if each is not None]
    assert last.metrics["ward-worst-class"] == min(tested)
    assert len(last.class_accuracy) == 3
    environment = json.loads((folder / "environment.json").read_text())
    assert {each["setting"] for each in environment["components"]} == set(settings)
    assert {(each["package"], each["version"]) for each in environment["components"]} == {
        ("ward", "1.0")
    }
    assert environment["data"]["class_names"] == ["across", "along", "both"]
    store = LabelStore.open_existing(folder / "clients" / "0" / "labels.sqlite")
    with closing(store):
        annotators = {entry.annotator for entry in store.entries()}
    assert annotators == {"tired"}
    return run


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return installed(tmp_path_factory.mktemp("package"))


def check_run_on_backbone(folder: Path) -> None:
    """See that the package's backbone gave the features that a head was trained on."""
    check_run(folder, (set(FAMILIES) - {"model"}) | {"backbone"})
    backbone = json.loads((folder / "environment.json").read_text())["backbone"]
    assert (backbone["name"], backbone["features"]) == ("ward-patches", 64)
    assert backbone["preprocessing"]["size"] == 96
    model = load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in model.items()} == {
        "head.weight": (3, 64),
        "head.bias": (3,),
    }


#: What the components cannot take, and what is said about it.
REFUSALS = {
    "strategy.model=globl": "did you mean 'global'?",
    "oracle.errors=1.5": "oracle.errors=1.5: allowed is number, ≥ 0, ≤ 1",
    "dataset.images=7": "dataset.images=7: allowed is integer, ≥ 30",
    "model.width=true": "model.width=True: allowed is integer, ≥ 8",
    "aggregation.fewest=4": "aggregation.fewest=4: there are 3",
    "local-update.shar=0.1": "did you mean 'share'?",
    "local-update=ward-smoothd": "did you mean 'ward-smoothed'?",
    "aggregation=ward-equal-weight": "did you mean 'ward-equal-weights'?",
    "oracle=tired": "allowed is ",
    "backbone=ward-patch": "did you mean 'ward-patches'?",
}

#: Gives one command line after the other, as `ahfal` would be given them, in one process, in
#: which sweeps do their runs, too.
_COMMANDS = """
import contextlib, io, json, sys
from ahfal_app.cli import main
from support.sweeps import sweeps_here
here, told = contextlib.ExitStack(), []
here.enter_context(sweeps_here())
for arguments in json.loads(sys.argv[1]):
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            main(arguments)
            code = 0
        except SystemExit as ended:
            code = ended.code
    told.append((code, stdout.getvalue(), stderr.getvalue()))
print(json.dumps(told))
"""


Told = tuple[int, str, str]


def ahfal_in_turn(environment: dict[str, str], *commands: Sequence[str]) -> list[Told]:
    """Return what each command line comes to: exit code, output, errors."""
    done = ahfal([sys.executable, "-c", _COMMANDS], environment, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return [tuple(told) for told in json.loads(done.stdout)]


@pytest.mark.slow
def test_one_of_each_runs_and_what_they_cannot_take_is_refused_before(
    tmp_path: Path, data_dir: Path, environment: dict[str, str]
) -> None:
    """All in one process of its own, which is what takes long."""
    places = {"refused": SETTINGS, "taken": SETTINGS, "on backbone": ON_BACKBONE}
    for place in places:
        (tmp_path / place).mkdir()
    refused, *taken = (
        settings_file(tmp_path / place, data_dir, settings, name="own")
        for place, settings in places.items()
    )
    told = ahfal_in_turn(
        environment,
        *(["run", refused, change] for change in REFUSALS),
        *(["run", settings] for settings in taken),
    )
    for code, _, errors in (told.pop(), told.pop()):
        assert code == 0, errors
    check_run(tmp_path / "taken" / "runs" / "own")
    check_run_on_backbone(tmp_path / "on backbone" / "runs" / "own")
    assert not (tmp_path / "refused" / "runs").exists()
    for (change, why), (code, _, errors) in zip(REFUSALS.items(), told, strict=True):
        assert code == 1, change
        assert why in errors
        assert "Traceback" not in errors


@pytest.mark.slow
def test_a_sweep_does_again_what_ran_with_other_code(tmp_path: Path, data_dir: Path) -> None:
    package = tmp_path / "package"
    environment = installed(package)
    experiment = tmp_path / "experiment.yaml"
    values = {**SETTINGS, "data-dir": str(data_dir), "cycles": 1, "rounds": 1}
    experiment.write_text(yaml.safe_dump({**values, "sweep": {"seed": [0]}}))

    out = tmp_path / "sweep"
    sweep = ["sweep", str(experiment), "--out", str(out), "--jobs", "1"]
    first, again = ahfal_in_turn(environment, sweep, sweep)
    assert (first[0], again[0]) == (0, 0), (first, again)
    assert "1 of 1 runs are done already" not in first[1]
    assert "1 of 1 runs are done already" in again[1]
    assert len(list((out / "runs").iterdir())) == 1
    module = package / "ward" / "logit_gap.py"
    module.write_text(module.read_text().replace("- top_N2[:, 0]", "- 2 * top_N2[:, 0]"))
    ((code, output, errors),) = ahfal_in_turn(environment, sweep)
    assert code == 0, errors
    assert "1 of 1 runs are done already" not in output
    assert len(list((out / "runs").iterdir())) == 2


@pytest.mark.slow
def test_one_of_each_in_a_clean_environment_on_both_engines(tmp_path: Path, data_dir: Path) -> None:
    """As a user would: an empty environment, AHFAL from its checkout, the package beside it."""
    write_package(tmp_path / "package")
    env = tmp_path / "env"
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(pins["constraint-dependencies"]))
    python = ["--python", str(env / "bin" / "python")]
    for command in (
        ["uv", "venv", "--quiet", "--python", sys.executable, str(env)],
        ["uv", "pip", "install", "--quiet", *python, "-c", str(constraints), "-e", str(ROOT)],
        ["uv", "pip", "install", "--quiet", *python, "--no-deps", str(tmp_path / "package")],
    ):
        subprocess.run(command, check=True)
    program = [str(env / "bin" / "ahfal"), "run"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    results = []
    for engine in ("in-process", "flower"):
        file = settings_file(tmp_path, data_dir, name=engine)
        done = ahfal(program, environment, file, "--engine", engine)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(check_run(tmp_path / "runs" / engine))
    assert results[0].accuracies == results[1].accuracies
