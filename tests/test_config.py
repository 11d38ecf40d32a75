"""Settings: every problem at once, each naming key, value and what is allowed."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.cli import main
from ahfal_app.config import Settings, parse_settings, setting_fields, share_of
from ahfal_app.config_sources import read_arguments
from ahfal_app.errors import ConfigError
from ahfal_app.server.preflight import check_data, check_settings
from ahfal_app.server.start import prepare
from ahfal_app.settings_table import settings_toml

ROOT = Path(__file__).parent.parent
MOBILENET = {"model": "mobilenet-v2"}


def problems(values: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_data(check_settings(values))
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0}, "alpha=0: allowed is number, > 0"),
        ({"alpha": -1.5}, "alpha=-1.5"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"alpha": "much"}, "alpha='much': allowed is number"),
        ({"rounds": 2.5}, "rounds=2.5: allowed is integer"),
        ({"rounds": True}, "rounds=True: allowed is integer"),
        ({"reset-model": "yes"}, "reset-model='yes': allowed is true | false"),
        ({"target-fraction": 0.05}, "target-fraction=0.05: allowed is at least initial-fraction"),
        ({"query-fraction": 0.0}, "query-fraction=0.0: allowed is number, > 0"),
        (
            {"initial-labels": 10, "target-labels": 30},
            "query-labels=0: allowed is at least 1 with initial-labels=10, target-labels=30, or "
            "none of initial-labels, query-labels, target-labels",
        ),
        (
            {"initial-labels": 10, "query-labels": 5, "target-labels": 9},
            "target-labels=9: allowed is at least initial-labels=10",
        ),
        *(
            (
                {"label-steps": steps},
                f"label-steps={steps!r}: allowed are at least two numbers from 1, each above the "
                "one before",
            )
            for steps in ("10", "0,10", "10,50,50", "10,50,20")
        ),
        ({"label-steps": "10;50"}, "label-steps='10;50': allowed is "),
        ({"label-steps": "10,"}, "label-steps='10,': allowed is "),
        ({"label-steps": 10}, "label-steps=10: allowed is "),
        (
            {"label-steps": "10,50", "initial-labels": 10, "query-labels": 5},
            "initial-labels=10: allowed is 0 with label-steps='10,50'",
        ),
        ({"label-steps": "1500,1600"}, "label-steps='1500,1600': the largest client has 14"),
        (
            {"label-steps": "9,20", "arrivals": "count", "arrival-start": 8, "arrival-rate": 4},
            "label-steps='9,20': allowed is at most arrival-start=8 at the start",
        ),
        (
            {"initial-labels": 1500, "query-labels": 5, "target-labels": 1600},
            "initial-labels=1500: the largest client has 14",
        ),
        (
            {"oracle": "page", "classes": "skip,0,1,2,3,4,5,6,7,8,9"},
            "classes='skip': allowed is any name but 'skip' and the empty one",
        ),
        ({"budget": "all"}, "budget='all': allowed is `client` | `global`"),
        (
            {"budget-split": "equal"},
            "budget-split='equal': has no effect with budget='client'; allowed is nothing, or "
            "budget='global'",
        ),
        ({"dataset": "none"}, "partition='dirichlet-balanced': allowed is 'sites' with dataset="),
        ({"dataset": "none"}, "evaluate='server': allowed is 'sites' with dataset='none'"),
        ({"dataset": "none", "evaluate": "both"}, "evaluate='both': allowed is 'sites' with"),
        ({"dataset": "none"}, "classes='': allowed are at least two names"),
        ({"dataset": "none"}, "image-size=0: allowed is at least 1 with dataset='none'"),
        (
            {"dataset": "none", "vector-length": 5, "image-size": 8},
            "image-size=8: allowed is 0 with vector-length=5",
        ),
        (
            {"dataset": "none", "vector-length": 5, "augment": "crop"},
            "augment='crop': allowed is auto | none with vector-length=5",
        ),
        (
            {"dataset": "none", "vector-length": 5, "image-channels": 1},
            "image-channels=1: allowed is 3 with vector-length=5",
        ),
        (
            {"dataset": "none", "vector-length": 5, "backbone": "timm/resnet18"},
            "backbone='timm/resnet18': allowed is 'none' with vector-length=5",
        ),
        ({"feature-views": 9}, "feature-views=9: allowed is integer, ≥ 0, ≤ 8"),
        ({"feature-views": 1}, "feature-views=1: allowed is 0 without a backbone"),
        (
            {"feature-views": 1, "backbone": "timm/resnet18", "tune": "all"},
            "feature-views=1: allowed is 0 with tune='all'",
        ),
        (
            {"feature-views": 1, "backbone": "timm/resnet18", "augment": "none"},
            "feature-views=1: allowed is 0 with augment='none'",
        ),
        ({"image-channels": 1}, "image-channels=1: allowed with dataset='none' alone"),
        ({"image-channels": 2}, "image-channels=2: allowed is `1` | `3`"),
        ({"vector-length": 5}, "vector-length=5: allowed with dataset='none' alone"),
        ({"vector-length": 32769}, "vector-length=32769: allowed is integer, ≥ 0, ≤ 32768"),
        ({"strategy": "entrpy"}, "strategy='entrpy': allowed is ahfal | "),
        ({"strategy": "entrpy"}, "did you mean 'entropy'?"),
        ({"alhpa": 0.1}, "alhpa: unknown setting; did you mean 'alpha'?"),
        ({"partition": "dirichlet-ballanced"}, "did you mean 'dirichlet-balanced'?"),
        ({"model": "resnet9"}, "did you mean 'resnet8'?"),
        ({"oracle": "people"}, "oracle='people': allowed is "),
        ({**MOBILENET, "model.head-kernel": 2}, "model.head-kernel=2: allowed is `3` | `1`"),
        ({**MOBILENET, "model.head-kernel": True}, "head-kernel=True: allowed is `3` | `1`"),
        ({**MOBILENET, "model.head-kernel": "1"}, "head-kernel='1': allowed is `3` | `1`"),
        ({"precision": "fp16"}, "precision='fp16': allowed is `auto` | `fp32` | `bf16`"),
        ({"device": "cuda:77"}, "device='cuda:77': allowed is auto, or what is there: cpu"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"seed": -1}, "seed=-1"),
        ({"num-clients": 2000}, "num-clients=2000: allowed is at most 143"),
        ({"strategy.balanse": "none"}, "strategy.balanse"),
        ({"strategy.balance": "equal"}, "strategy.balance='equal'"),
        ({"strategy": "random", "strategy.balance": "none"}, "strategy.balance"),
        (
            {"num-clients": 100, "query-fraction": 0.001, "target-fraction": 0.101,
             "initial-fraction": 0.1},
            "the budget is 0 labels",
        ),
        ({"dataset": "./missing-folder"}, "missing-folder"),
    ],
)  # fmt: skip
def test_refusals_name_key_value_and_what_is_allowed(values, message: str, data_dir: Path):
    assert message in problems({"data-dir": str(data_dir), **values})


def test_all_problems_are_told_at_once():
    text = problems(
        {
            "alpha": 0,
            "tua": 12,
            "strategy": "entrpy",
            "model": "resnet9",
            "seed": "x",
            "initial-fraction": 0.5,
            "target-fraction": 0.4,
        }
    )
    assert text.startswith("6 settings cannot be used:")
    for key in ("alpha=", "tua", "strategy=", "model=", "seed=", "target-fraction="):
        assert f"- {key}" in text


def test_nothing_is_written_when_settings_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError):
        prepare({"output-dir": str(tmp_path / "runs"), "alpha": 0})
    assert not (tmp_path / "runs").exists()


def _saved(folder: Path, labels: list[object], feature: object) -> str:
    images = [np.full((4, 4), i, np.uint8) for i in range(len(labels))]
    features = Features({"image": Image(), "label": feature})
    Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(folder)
    return str(folder)


def test_data_sets_that_cannot_be_learnt_are_refused(tmp_path: Path, data_dir: Path):
    one_class = _saved(tmp_path / "one", [0] * 40, Value("int64"))
    unlabelled = _saved(tmp_path / "none", [None] * 40, Value("int64"))
    for folder in (one_class, unlabelled):
        assert f"dataset={folder!r}" in problems({"dataset": folder, "data-dir": str(data_dir)})


def test_budget_of_a_share_is_exact():
    settings = parse_settings({})
    assert [settings.labelled_amount(cycle) for cycle in range(7)] == [
        Fraction(n, 100) for n in (10, 15, 20, 25, 30, 35, 35)
    ]
    assert settings.num_cycles == 6
    assert [settings.labels_due(cycle, 5000) for cycle in range(6)] == [
        500, 750, 1000, 1250, 1500, 1750,
    ]  # fmt: skip
    assert settings.labels_due(1, 141) == 22  # ceil(21.15)


@given(
    initial=st.integers(1, 50),
    query=st.integers(1, 30),
    more=st.integers(0, 50),
    size=st.integers(1, 10_000),
)
def test_cycles_reach_the_target_exactly_and_never_go_beyond(
    initial: int, query: int, more: int, size: int
):
    settings = parse_settings(
        {
            "initial-fraction": initial / 100,
            "query-fraction": query / 100,
            "target-fraction": (initial + more) / 100,
        }
    )
    due = [settings.labels_due(cycle, size) for cycle in range(settings.num_cycles)]
    assert due == sorted(due)
    assert due[0] == -(-size * initial // 100)
    assert due[-1] == -(-size * (initial + more) // 100)
    assert all(b - a <= -(-size * query // 100) for a, b in pairwise(due))


@given(
    initial=st.integers(1, 50),
    query=st.integers(1, 30),
    more=st.integers(0, 50),
    size=st.integers(1, 100),
)
def test_labels_in_numbers_stand_before_fractions_and_reach_the_target_exactly(
    initial: int, query: int, more: int, size: int
):
    settings = parse_settings(
        {
            "initial-labels": initial,
            "query-labels": query,
            "target-labels": initial + more,
            "target-fraction": 0.9,
        }
    )
    due = [settings.labels_due(cycle, size) for cycle in range(settings.num_cycles)]
    assert settings.num_cycles == 1 + -(-more // query)
    expected = [min(initial + cycle * query, initial + more, size) for cycle in range(len(due))]
    assert due == expected
    assert settings.labels_of_all(0, 3 * size, 3) == 3 * due[0]


@given(percent=st.integers(1, 100), count=st.integers(1, 1000))
def test_share_of_a_count_is_exact(percent: int, count: int):
    assert share_of(percent / 100, count) == -(-percent * count // 100)


def test_settings_survive_being_written_and_read():
    settings = parse_settings({"seed": 3, "strategy.balance": "none", "learning-rate": 1e-3})
    assert parse_settings(settings.to_flat()) == settings
    assert settings.parameters_of("strategy") == {"balance": "none"}


def test_empty_strategy_parameter_is_its_default():
    assert parse_settings({"strategy.balance": ""}).parameters == {}


def test_arguments_override_files_and_keep_their_types(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\nalpha: 0.5\nreset-model: false\n")
    values = read_arguments(
        [str(file), "seed=2", "learning-rate=1e-3", "name=007", "compile=never"]
    )
    assert values == {
        "seed": 2,
        "alpha": 0.5,
        "reset-model": False,
        "learning-rate": 1e-3,
        "name": "007",
        "compile": "never",
    }


@pytest.mark.parametrize("key", setting_fields())
def test_every_value_of_a_setting_can_be_given_as_an_argument(key: str):
    field = setting_fields()[key]
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    for value in (field.default, *choices):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        values = read_arguments([f"{key}={text}"])
        assert values == {key: value}
        assert type(values[key]) is type(value)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\xff"])
def test_files_that_are_not_settings(tmp_path: Path, content: str):
    file = tmp_path / "config.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_arguments([str(file)])


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_arguments(["nowhere.yaml"])


def test_every_setting_has_a_meaning_and_a_group():
    for key, field in setting_fields().items():
        assert field.description, key
        assert isinstance(field.json_schema_extra, dict), key


def test_manifest_has_every_setting_with_its_default():
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert manifest == tomllib.loads(settings_toml())["tool"]["flwr"]["app"]["config"]
    assert parse_settings(manifest) == Settings()


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path: Path):
    values = read_arguments([str(path)])
    assert check_settings(values).num_cycles > 1


@pytest.mark.parametrize("program", ["import ahfal_app.config", "import ahfal_app.labels.store"])
def test_light_modules_do_not_import_torch(program: str):
    check = f"{program}; import sys; assert not {{'torch', 'flwr'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.slow
def test_help_does_not_import_torch():
    program = (
        "import sys; from ahfal_app.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'flwr', 'datasets', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_command_line_tells_errors_and_exits_with_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["run", "alpha=0", "strategy=entrpy"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "alpha=0" in told
    assert "did you mean 'entropy'" in told
    assert "Traceback" not in told


def test_settings_that_contradict_each_other_hide_no_other_problem():
    values = {
        "strategy": "random",
        "align": "estimated",
        "privacy.epsilon": 3.0,
        "aggregation": "krum",
        "num-clients": 3,
        "rounds": 0,
        "device": "cuda:99",
    }
    with pytest.raises(ConfigError) as caught:
        check_settings(values)
    keys = {problem.split("=")[0] for problem in caught.value.problems}
    assert keys == {"rounds", "privacy.epsilon", "align", "aggregation.malicious-clients", "device"}


def test_where_nobody_is_asked_a_class_may_be_called_like_a_skip() -> None:
    loaded = check_data(check_settings({"classes": "skip,0,1,2,3,4,5,6,7,8,9"}))
    assert loaded.num_classes == 11
