"""Where settings come from: the command line and YAML files."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ahfal_app.config import COMPONENTS, expanded, read_scalar, setting_fields
from ahfal_app.errors import ConfigError
from ahfal_app.storage.yaml_text import RepeatedKey, load_yaml

#: What an experiment's file has besides settings.
EXPERIMENT_KEYS = ("title", "base", "sweep", "paper", "reference")

_FILES = (".yaml", ".yml", ".toml")


def read_arguments(arguments: Sequence[str]) -> dict[str, object]:
    """Read `[CONFIG.yaml] [key=value …]`; later values replace earlier ones.

    A file may be TOML, too, as `flwr run` takes it.

    Raises
    ------
    ConfigError
        A file cannot be read or an argument is neither a file nor a setting.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        try:
            if is_setting(argument):
                values[key] = _scalar(key, text)
            else:
                values |= read_settings_file(Path(argument))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return values


def is_setting(argument: str) -> bool:
    """Tell whether an argument is `key=value`, and not the path of a file such as `a=1/b.yaml`."""
    key, equals, _ = argument.partition("=")
    if not equals or Path(key).name != key or key.startswith(("~", ".")):
        return False
    # A file may be called `tau=5.yaml`; what is no setting's name may be one that is missing.
    is_file, is_named_so = Path(argument).is_file(), argument.endswith(_FILES)
    is_known = key in setting_fields() or key.partition(".")[0] in COMPONENTS
    return not (is_file or not is_known if is_named_so else is_file and not is_known)


def read_settings_file(path: Path) -> dict[str, object]:
    """Read a file of the settings of one run: YAML, or TOML as `flwr run` takes it.

    Raises
    ------
    ConfigError
        It cannot be read, or describes an experiment.
    """
    values = _read_toml(path) if path.suffix == ".toml" else read_yaml(path)
    if found := [key for key in EXPERIMENT_KEYS if key in values]:
        raise ConfigError(
            [
                f"{path}: an experiment, since it has {' and '.join(found)}; allowed is a file of "
                f"settings alone. `ahfal sweep {path} --out FOLDER` runs it"
            ]
        )
    return values


def _read_toml(path: Path) -> dict[str, object]:
    try:
        content = tomllib.loads(expanded("file", path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; allowed is a file of settings"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
    return _flat(content)


def _flat(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return the keys of tables with dots between, as Flower does."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_yaml(path: Path) -> dict[str, object]:
    """Read a YAML file of flat settings.

    Raises
    ------
    ConfigError
        The file is missing, is not YAML, or is not a mapping of settings.
    """
    try:
        content = load_yaml(expanded("file", path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            [f"{path}: {error.strerror}; allowed is a YAML file, or key=value"]
        ) from error
    except RepeatedKey as error:
        raise ConfigError([f"{path}, {error}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not YAML: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: allowed is a mapping of settings, one `key: value` a line"])
    return {str(key): value for key, value in content.items()}


def _scalar(key: str, text: str) -> object:
    """Read a setting's value as in a file, but keep text for settings that are text."""
    field = setting_fields().get(key)
    # `cycles=+2` is no number of cycles: that many more, on resume.
    is_more = key == "cycles" and text.startswith("+")
    if is_more or (field is not None and _takes_text(field.annotation)):
        return text
    try:
        return read_scalar(text)
    except ConfigError as error:
        raise ConfigError([f"{key}={problem}" for problem in error.problems]) from error


def _takes_text(annotation: object) -> bool:
    """Tell whether a setting is text, or a choice of texts; a choice can be of numbers, too."""
    kinds: set[object] = {type(choice) for choice in typing.get_args(annotation)}
    return (kinds or {annotation}) == {str}
