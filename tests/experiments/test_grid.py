"""Labels say what is run: whatever contradicts them is refused, and repetitions are told."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ahfal_app.errors import ConfigError
from ahfal_app.experiments.files import Experiment, load_experiment
from ahfal_app.experiments.report import write_sweep_report
from ahfal_app.experiments.scales import Scale
from ahfal_app.experiments.sweep import run_sweep


def load(
    folder: Path, text: str, scale: Scale = Scale.PAPER, overrides: dict[str, object] | None = None
) -> Experiment:
    (folder / "a.yaml").write_text(text)
    return load_experiment(folder / "a.yaml", scale, overrides)


def refusal(
    folder: Path, text: str, scale: Scale = Scale.PAPER, overrides: dict[str, object] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, scale, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("axes", "key"),
    [
        ("{alpha: [0.1, 1.0], variant: {a: {alpha: 0.3}, b: {}}}", "alpha"),
        ("{variant: {a: {alpha: 0.3}, b: {}}, alpha: [0.1, 1.0]}", "alpha"),
        ("{one: {a: {tau: 3}}, two: {b: {rounds: 2}, c: {tau: 4}}}", "tau"),
        ("{strategy.balance: [none], variant: {a: {strategy.balance: none}}}", "strategy.balance"),
        ("{seed: [0, 1], variant: {a: {seed: 5}, b: {}}}", "seed"),
    ],
)
def test_two_axes_that_set_the_same_key_are_refused(tmp_path: Path, axes: str, key: str):
    assert f"both set {key}; allowed is one axis" in refusal(tmp_path, f"sweep: {axes}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("seed: [0, 1, 0]", "sweep.seed: 0 is there twice"),
        ("seed: [10, 010]", "sweep.seed: 10 is there twice"),
        ("rounds: [1e1, 10]", "sweep.rounds: 10 is there twice"),
        ("alpha: [1, 1.0]", "sweep.alpha: 1.0 is there twice"),
    ],
)
def test_a_value_that_is_there_twice_is_refused(tmp_path: Path, values: str, message: str):
    assert message in refusal(tmp_path, f"sweep: {{{values}}}")


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("{rounds: [20, 50, 100]}", "sweep.rounds: 10 is run for 50 at --scale small"),
        ("{rounds: [5, 10, 20]}", "sweep.rounds: 10 is run for 20 at --scale small"),
        ("{local-epochs: [50]}", "sweep.local-epochs: 5 is run for 50"),
        ("{max-train-samples: [0, 5000]}", "sweep.max-train-samples: 10000 is run for 0"),
        ("{x: {short: {rounds: 50}, long: {rounds: 100}}}", "rounds=10 is run for 'short' and"),
        ("{x: {file: {}, long: {rounds: 100}}}", "rounds=10 is run for 'file' and 'long'"),
    ],
)
def test_a_scale_that_collapses_an_axis_is_refused(tmp_path: Path, axes: str, message: str):
    text = f"rounds: 30\nsweep: {axes}"
    assert message in refusal(tmp_path, text, Scale.SMALL)
    assert load(tmp_path, text).warnings == ()


def test_what_a_scale_keeps_apart_is_run(tmp_path: Path):
    text = """
    rounds: 100
    sweep:
      rounds: [5, 10]
      x: {a: {local-epochs: 10, tau: 3}, b: {local-epochs: 20, tau: 4}}
    """
    assert load(tmp_path, text, Scale.SMALL).warnings == ()
    # An override names a value that is run, so that there is no axis left.
    text = "sweep: {rounds: [20, 50]}"
    (run,) = load(tmp_path, text, Scale.SMALL, {"rounds": 20}).runs
    assert run.settings.rounds == 20


def test_overrides_over_groups_are_refused(tmp_path: Path):
    text = "sweep: {x: {low: {alpha: 0.1}, high: {alpha: 1.0}, file: {}}}"
    message = refusal(tmp_path, text, overrides={"alpha": 0.1})
    assert "alpha=0.1: sweep.x sets it, too (low: 0.1, high: 1.0)" in message
    # One that changes nothing else than the points themselves say, or nothing of them.
    text = "sweep: {x: {a: {alpha: 0.1, tau: 3}, b: {alpha: 0.1}}}"
    assert len(load(tmp_path, text, overrides={"alpha": 0.1, "rounds": 2}).runs) == 2


def test_a_value_that_an_inherited_axis_would_hide_is_refused(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("alpha: 0.5\nsweep: {alpha: [0.1, 1.0], seed: [0, 1]}")
    message = refusal(tmp_path, "base: base.yaml\nalpha: 0.3")
    assert "alpha=0.3: base.yaml sweeps it" in message
    assert "allowed is sweep: {alpha: [0.3]}" in message
    experiment = load(tmp_path, "base: base.yaml\nsweep: {alpha: [0.3]}")
    assert experiment.axes == {"alpha": (0.3,), "seed": (0, 1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {alpha: {0.1: {alpha: 1.0}}}", "sweep.alpha: 0.1 stands for alpha=1.0"),
        ("sweep: {alpha: {0.1: {tau: 3}}}", "sweep.alpha: 0.1 stands for alpha=0.3"),
        ("sweep: {strategy: {entropy: {strategy: margin}}}", "'entropy' stands for strategy='mar"),
        ("augment: crop\nsweep: {augment: {none: {}}}", "'none' stands for augment='crop'"),
    ],
)
def test_a_group_is_not_called_as_another_value(tmp_path: Path, text: str, message: str):
    assert message in refusal(tmp_path, text)


def test_a_group_may_be_called_as_its_own_value_or_as_nothing_that_is_one(tmp_path: Path):
    for axes in (
        "{alpha: {0.1: {alpha: 0.1}, low: {alpha: 0.2}}}",
        "{augment: {none: {augment: none}, all of it: {augment: crop-flip}}}",
        "{dataset: {small: {dataset: digits}}}",
        "{name: {first: {tau: 3}}}",
    ):
        assert load(tmp_path, f"sweep: {axes}").runs


@pytest.mark.parametrize(
    ("axes", "warning"),
    [
        ("{x: {full: {}, same: {tau: 12.0}}}", "x=full and x=same: one run"),
        ("{x: {full: {}, same: {tau: 12}}, seed: [0, 1]}", "x=full and x=same: one run"),
        ("{x: {a: {}, b: {strategy.balance: inverse-count}}}", "x=a and x=b: one run"),
        ("{tracker: [none, tensorboard]}", "tracker=none and tracker=tensorboard: one run"),
        ("{num-clients: [0, 10]}", "num-clients=0 and num-clients=10: one run"),
        ("{tau: [3, 4], x: {a: {}, b: {tracker: none}}}", "labels (at tau=3 and 1 more)"),
    ],
)
def test_two_points_that_are_one_run_are_told(tmp_path: Path, axes: str, warning: str):
    experiment = load(tmp_path, f"sweep: {axes}")
    (told,) = experiment.warnings
    assert warning in told
    assert len({run.name for run in experiment.runs}) < len(experiment.runs)


def test_a_parameter_that_makes_a_difference_is_another_run(tmp_path: Path):
    text = "sweep: {x: {a: {}, b: {strategy.balance: none}, c: {strategy.toggle: local}}}"
    experiment = load(tmp_path, text)
    assert experiment.warnings == ()
    assert len({run.name for run in experiment.runs}) == 3


def test_the_smallest_scale_tells_what_it_makes_one(tmp_path: Path):
    experiment = load(tmp_path, "sweep: {model: [resnet8, mobilenet-v2]}", Scale.SMOKE)
    assert experiment.warnings == (
        "a.yaml: model=resnet8 and model=mobilenet-v2: one run under several labels",
    )


@pytest.mark.usefixtures("sweeps_here")
def test_repetitions_are_told_where_they_are_run_and_reported(tmp_path: Path, data_dir: Path):
    text = f"""
    data-dir: {data_dir}
    rounds: 1
    local-epochs: 1
    num-clients: 3
    max-train-samples: 300
    max-test-samples: 60
    cycles: 1
    strategy: random
    sweep: {{x: {{a: {{}}, b: {{tau: 12.0}}}}}}
    """
    experiment = load(tmp_path, text)
    output = io.StringIO()
    run_sweep([experiment], tmp_path / "out", Console(file=output, width=200), jobs=1)
    assert "warning: a.yaml: x=a and x=b: one run under several labels" in output.getvalue()
    plan = json.loads((tmp_path / "out/experiments/a-paper.json").read_text())
    assert plan["warnings"] == list(experiment.warnings)
    assert (
        "x=a and x=b: one run under several labels"
        in write_sweep_report(tmp_path / "out").read_text()
    )


class TestPaperNumbers:
    SWEEP = "sweep: {strategy: [random, ahfal], alpha: [0.1, 1.0], seed: [0]}\n"

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ("{strategy: random, accuracy: 0.6615}", "paper.accuracy=0.6615: allowed is percent"),
            ("{strategy: random, accuracy: 1.0}", "paper.accuracy=1.0: allowed is percent"),
            ("{strategy: random, accuracy: 101}", "paper.accuracy=101: .*100"),
            ("{strategy: random, accuracy: '66'}", "paper.accuracy='66': .*number"),
            ("{strategy: random, accuracy: true}", "paper.accuracy=True: .*number"),
            ("{strategy: random, acuracy: 66}", "paper.accuracy=.*required"),
            ("{strategy: random, accuracy: 66, sdt: 1}", "paper.sdt=1: .*did you mean 'std'"),
            ("{strategi: random, accuracy: 66}", "paper.strategi='random': .*mean 'strategy'"),
            ("{strategy: ahfall, accuracy: 66}", "paper.strategy='ahfall': .*mean 'ahfal'"),
            ("{alpha: 0.3, accuracy: 66}", r"paper.alpha=0.3: allowed is 0.1 \| 1.0"),
            ("{alpha: [0.1], accuracy: 66}", r"paper.alpha=\[0.1\]: allowed is"),
            ("{seed: 0, accuracy: 66}", "paper.seed=0: allowed are accuracy, std, strategy"),
            ("{tau: 12, accuracy: 66}", "paper.tau=12: allowed are"),
            ("66", "paper=66"),
        ],
    )
    def test_typos_and_fractions_are_refused(self, tmp_path: Path, entry: str, message: str):
        good = "{strategy: random, alpha: 0.1, accuracy: 66}"
        with pytest.raises(ConfigError, match=rf"{message}.*\(entry 2\)"):
            load(tmp_path, f"{self.SWEEP}paper: [{good}, {entry}]")

    def test_two_numbers_for_one_point_are_refused(self, tmp_path: Path):
        entries = "[{strategy: random, accuracy: 66}, {alpha: 0.1, accuracy: 67}]"
        message = refusal(tmp_path, f"{self.SWEEP}paper: {entries}")
        assert "entries 1 and 2 are about the same point" in message

    def test_an_axis_that_is_not_swept_now_is_still_one(self, tmp_path: Path):
        entries = "[{strategy: random, alpha: 0.1, accuracy: 66, std: 0.5}]"
        text = f"{self.SWEEP}paper: {entries}"
        experiment = load(tmp_path, text, overrides={"alpha": 0.1})
        assert experiment.paper[0].labels == {"strategy": "random", "alpha": 0.1}


def test_a_base_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "x.yaml").write_text("tau: 7\nsweep: {seed: [3]}")
    monkeypatch.setenv("HOME", str(home))
    (run,) = load(tmp_path, "base: ~/x.yaml").runs
    assert (run.settings.tau, run.settings.seed) == (7, 3)
    assert "base='~no-such-user/x.yaml': no home folder" in refusal(
        tmp_path, "base: ~no-such-user/x.yaml"
    )
