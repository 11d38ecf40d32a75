"""What `flwr run --run-config` makes of what people write, by Flower's own parser."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from flwr.common.config import flatten_dict, fuse_dicts, parse_config_args
from hypothesis import example, given
from hypothesis import strategies as st

from ahfal_app.config import Settings, parse_settings
from ahfal_app.engine.flower import _run_config
from ahfal_app.setting_fields import NO_DATASET

ROOT = Path(__file__).parents[2]
_MANIFEST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def _settings(*written: str) -> Settings:
    """Take what stands behind each `--run-config` the way that `flwr run` and a run take it."""
    overrides = parse_config_args(list(written))
    return parse_settings(fuse_dicts(flatten_dict(_MANIFEST), overrides))


def _documented() -> list[str]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found += re.findall(r"--run-config '([^']*)'", path.read_text())
    return found


def test_there_are_examples_in_the_docs():
    assert _documented()


@pytest.mark.parametrize("written", [each for each in _documented() if "…" not in each])
def test_what_the_docs_show_is_taken_whole(written: str):
    keys = re.findall(r"""(?:^|\s)"?([\w.-]+)"?=""", re.sub(r'="[^"]*"', "=", written))
    assert keys
    assert sorted(parse_config_args([written])) == sorted(keys)
    assert _settings(written) != Settings()


def test_a_parameter_and_its_component_are_given_together():
    settings = _settings('strategy="entropy" "strategy.model"="global" seed=1')
    assert (settings.strategy, settings.seed) == ("entropy", 1)
    assert settings.parameters == {"strategy.model": "global"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('more="strategy.depth=3 model.kind=deep"', {"strategy.depth": 3, "model.kind": "deep"}),
        ("""more='strategy.title="two words"'""", {"strategy.title": "two words"}),
        ("""more="strategy.title='two words'" seed=1""", {"strategy.title": "two words"}),
        ('more="strategy.beta=1,2"', {"strategy.beta": "1,2"}),
    ],
)
def test_parameters_that_the_manifest_does_not_list_travel_in_one_text(
    written: str, value: dict[str, object]
):
    assert _settings(written).parameters == value


@pytest.mark.parametrize(
    "written",
    [
        'strategy.depth="3"',  # not in the manifest
        'strategy="entropy" strategy.model="global"',  # a text cannot have parts in TOML
        r'more="strategy.title=\"two words\""',  # Flower's parser knows no escapes
        "name=abc",  # a text without quotes
    ],
)
def test_what_flower_refuses(written: str):
    with pytest.raises((ValueError, click.ClickException)):
        _settings(written)


def test_what_flower_drops_in_silence():
    """As the docs warn: where this fails, Flower has become better than they say."""
    assert _settings("rounds = 2") == Settings()
    parts = _settings('strategy="entropy"', 'strategy.model="global"')
    assert parts.strategy == Settings().strategy


# Without the one word that has rules of its own for other settings (`dataset=none`): Hypothesis
# tries the words that it finds in our code.
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text != NO_DATASET
)
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    _TEXTS,
)


@pytest.mark.slow
@given(
    own=st.dictionaries(st.sampled_from(["dataset", "output-dir"]), _TEXTS),
    more=st.dictionaries(
        st.from_regex(r"(strategy|tracker)\.own-[a-z]{1,4}", fullmatch=True), _SCALARS
    ),
)
@example(own={"dataset": 'a "b" \\ \U0001f600\x7f'}, more={"tracker.own-file": "said.txt"})
@example(own={}, more={"tracker.own-a": "007", "tracker.own-b": "true", "tracker.own-c": '"x"'})
@example(own={}, more={"tracker.own-a": "a b", "tracker.own-b": "\n\t '", "tracker.own-c": 1e-7})
def test_settings_reach_flowers_apps_as_they_were(
    own: Mapping[str, str], more: Mapping[str, object]
):
    """Those of other packages' components too, with their types."""
    read = flatten_dict(tomllib.loads(_run_config({**own, **more})))
    settings = parse_settings(read)
    assert settings.parameters == more
    assert [type(settings.parameters[key]) for key in more] == [type(more[key]) for key in more]
    assert {key: getattr(settings, key.replace("-", "_")) for key in own} == own
