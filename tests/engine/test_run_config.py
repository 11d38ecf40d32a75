"""What `flwr run --run-config` makes of what people write, by Flower's own parser."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
from flwr.common.config import flatten_dict, fuse_dicts, parse_config_args

from ahfal_app.config import Settings, parse_settings

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
