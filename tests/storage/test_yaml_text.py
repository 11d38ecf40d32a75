"""YAML 1.2's types, in files and on the command line alike; no key twice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.config import parse_settings
from ahfal_app.config_sources import read_arguments, read_yaml
from ahfal_app.errors import ConfigError
from ahfal_app.server.preflight import check_settings
from ahfal_app.storage import yaml_text
from ahfal_app.storage.yaml_text import RepeatedKey, dump_yaml, load_yaml

#: A plain word, and what YAML 1.2's core schema takes it for (section 10.3.2); 1.1 differs.
WORDS = [
    ("010", 10),
    ("08", 8),
    ("-012", -12),
    ("+12", 12),
    ("0o17", 15),
    ("0x1F", 31),
    ("1e-3", 0.001),
    ("1.5E+2", 150),
    ("1e3", 1000),
    ("-2e0", -2),
    (".5", 0.5),
    ("1.", 1.0),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("1:30", "1:30"),
    ("1:30.5", "1:30.5"),
    ("190:20:30", "190:20:30"),
    ("1_000", "1_000"),
    ("0b11", "0b11"),
    ("0o8", "0o8"),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("Off", "Off"),
    ("True", True),
    ("2026-01-01", "2026-01-01"),
    ("~", None),
    ("'010'", "010"),
    ('"1e3"', "1e3"),
]


@pytest.mark.parametrize(("word", "meaning"), WORDS)
def test_words_mean_what_they_mean_in_yaml_1_2(word: str, meaning: object):
    read = load_yaml(f"key: {word}")
    assert read == {"key": meaning}
    assert type(read["key"]) is type(meaning)


def test_not_a_number_and_too_large_ones():
    assert math.isnan(load_yaml("key: .nan")["key"])  # type: ignore[index]
    assert load_yaml("1e999") == math.inf
    # No integer of a thousand digits is made of five characters.
    assert isinstance(load_yaml("1e300"), float)
    with pytest.raises(yaml.YAMLError, match="no integer"):
        load_yaml("9" * 5000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha: 0.1\nrounds: 3\nalpha: 0.2", "line 3: 'alpha' is there twice, first in line 1"),
        ("alpha: 0.1\n'alpha': 0.1", "line 2: 'alpha' is there twice"),
        ("sweep:\n  tau: [1]\n  tau: [2]", "line 3: 'tau' is there twice, first in line 2"),
        ("sweep: {tau: [1], tau: [2]}", "line 1: 'tau' is there twice"),
        ("paper: [{accuracy: 1, accuracy: 2}]", "'accuracy' is there twice"),
        ("1: a\n'1': b", "'1' is there twice"),
        ("1: a\n1.0: b", "'1.0' is there twice"),
        ("1: a\ntrue: b", "'True' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(RepeatedKey, match=message):
        load_yaml(text)
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml, .*{message}"):
        read_yaml(file)


def test_a_mapping_that_is_taken_over_may_be_changed():
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\nd: [*b, *b]"
    assert load_yaml(text) == {
        "a": {"x": 1},
        "b": {"x": 2},
        "c": {"x": 2, "y": 3},
        "d": [{"x": 2}, {"x": 2}],
    }


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.text(max_size=12)
        | st.sampled_from([word for word, _ in WORDS if "'" not in word and '"' not in word])
        | st.integers()
        | st.floats(allow_nan=False)
        | st.booleans(),
        max_size=5,
    )
)
def test_what_is_written_is_read_again_by_either_version(values: dict[str, object]):
    text = dump_yaml(values)
    for read in (load_yaml(text), yaml.safe_load(text)):
        assert read == values
        assert [type(v) for v in read.values()] == [type(v) for v in values.values()]


@pytest.mark.parametrize("text", ["1e3", "1000", "01000", "1.0e3", "0x3E8", "1000.0"])
def test_files_and_the_command_line_take_the_same_numbers(tmp_path: Path, text: str):
    file = tmp_path / "a.yaml"
    file.write_text(f"rounds: {text}\nalpha: {text}\nseed: 010\nweight-decay: 1e-3\n")
    arguments = [f"rounds={text}", f"alpha={text}", "seed=010", "weight-decay=1e-3"]
    for settings in (parse_settings(read_yaml(file)), parse_settings(read_arguments(arguments))):
        assert (settings.rounds, settings.alpha) == (1000, 1000.0)
        assert type(settings.rounds) is int
        assert (settings.seed, settings.weight_decay) == (10, 0.001)


def test_a_components_parameters_take_the_same_numbers():
    values = read_arguments(["strategy=logo", "strategy.epochs=5e1", "strategy.learning-rate=1e-3"])
    settings = check_settings(values)
    assert settings.parameters_of("strategy") == {"epochs": 50, "learning-rate": 0.001}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:30", "rounds='1:30': allowed is integer"),
        ("1_000", "rounds='1_000': allowed is integer"),
        ("1e-3", "rounds=0.001: allowed is integer"),
        ("1.5", "rounds=1.5: allowed is integer"),
        ("true", "rounds=True: allowed is integer"),
    ],
)
def test_what_is_no_whole_number_is_refused_in_both(tmp_path: Path, text: str, message: str):
    file = tmp_path / "a.yaml"
    file.write_text(f"rounds: {text}")
    for values in (read_yaml(file), read_arguments([f"rounds={text}"])):
        with pytest.raises(ConfigError, match=message):
            parse_settings(values)


def test_a_run_resumes_with_settings_that_look_like_numbers(tmp_path: Path):
    settings = parse_settings({"name": "1e3", "classes": "no,yes", "data-dir": "010"})
    file = tmp_path / "config.yaml"
    file.write_text(settings.to_yaml())
    assert parse_settings(read_yaml(file)) == settings


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=5,
    )
)
def test_the_fast_parser_reads_what_the_other_one_reads(values: dict[str, object]):
    text = dump_yaml(values)
    slow = yaml.load(text, yaml_text._Loader)
    assert yaml.load(text, yaml_text._FastLoader) == slow == load_yaml(text)


def test_the_fast_parser_is_there_and_errors_show_the_place():
    assert issubclass(yaml_text._FastLoader, yaml.CSafeLoader)
    with pytest.raises(yaml.YAMLError, match=r"rounds: \[1, 2\n"):
        load_yaml("rounds: [1, 2\nseed: 1")
