"""Where settings come from: the command line and YAML files."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path

import yaml

from ahfal_app.config import read_scalar, setting_fields
from ahfal_app.errors import ConfigError


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
        return read_scalar(text)
    except ConfigError as error:
        raise ConfigError([f"{key}={problem}" for problem in error.problems]) from error


def _takes_text(annotation: object) -> bool:
    """Tell whether a setting is text, or a choice of texts; a choice can be of numbers, too."""
    kinds: set[object] = {type(choice) for choice in typing.get_args(annotation)}
    return (kinds or {annotation}) == {str}
