"""Where settings come from and go to: command line and YAML in, tables and TOML out."""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from pathlib import Path

import yaml

from ahfal_app.config import allowed_values, setting_fields
from ahfal_app.errors import ConfigError
from ahfal_app.query import strategy_table


def read_arguments(arguments: Sequence[str]) -> dict[str, object]:
    """Read `[CONFIG.yaml] [key=value …]`; later values replace earlier ones.

    Raises
    ------
    ConfigError
        A file cannot be read or an argument is neither a file nor a setting.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        try:
            if equals:
                values[key] = _scalar(key, text)
            else:
                values |= read_yaml(Path(argument))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return values


def read_yaml(path: Path) -> dict[str, object]:
    """Read a YAML file of flat settings.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or is not a mapping of settings.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            [f"{path}: {error.strerror}; allowed is a YAML file, or key=value"]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not YAML: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: allowed is a mapping of settings, one `key: value` a line"])
    return {str(key): value for key, value in content.items()}


def _scalar(key: str, text: str) -> object:
    """Parse the value of a setting as YAML does, but keep text for settings that are text."""
    field = setting_fields().get(key)
    if field is not None and _takes_text(field.annotation):
        return text
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError([f"{key}={text!r}: not a value: {error}"]) from error
    if isinstance(value, str):
        # YAML 1.1 takes 1e-3 for text.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _takes_text(annotation: object) -> bool:
    """Tell whether a setting is text, or a choice of texts; a choice can be of numbers, too."""
    kinds: set[object] = {type(choice) for choice in typing.get_args(annotation)}
    return (kinds or {annotation}) == {str}


def settings_rows() -> list[tuple[str, str, str, str]]:
    """Return (setting, default, allowed, meaning) of every setting and strategy parameter."""
    rows = [
        (key, _toml_value(field.default), allowed_values(field), str(field.description))
        for key, field in setting_fields().items()
    ]
    rows += [
        (
            parameter.key,
            _toml_value(parameter.default),
            parameter.allowed,
            f"`{entry.name}`: {parameter.meaning}",
        )
        for entry in strategy_table()
        for parameter in entry.parameters
    ]
    return rows


def settings_markdown() -> str:
    """Return the table of settings for the README."""
    lines = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key, default, allowed, meaning in settings_rows():
        cells = (f"`{key}`", f"`{default}`", allowed, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def settings_toml() -> str:
    """Return the defaults as `[tool.flwr.app.config]`.

    Flower overrides only keys that its manifest lists. Strategy parameters are listed as
    empty text, which stands for each parameter's own default.
    """
    lines = ["[tool.flwr.app.config]"]
    lines += [f"{key} = {_toml_value(field.default)}" for key, field in setting_fields().items()]
    keys = {parameter.key for entry in strategy_table() for parameter in entry.parameters}
    lines += [f'"{key}" = ""' for key in sorted(keys)]
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    return json.dumps(value)
