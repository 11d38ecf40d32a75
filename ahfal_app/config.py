"""Reading settings: from flat keys, with all problems told at once.

Whatever else needs a setting takes it from here, too.
"""

from __future__ import annotations

import math
import shlex
import typing
from collections.abc import Iterable, Mapping
from typing import Literal

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ahfal_app.contradictions import contradictions, too_few_for_secure_aggregation
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar, allowed_values, suggestion
from ahfal_app.setting_fields import (
    COMPONENTS,
    DEFAULT_NUM_CLIENTS,
    FEWEST_SUMMED,
    LONGEST_VECTOR,
    MORE,
    NO_DATASET,
    OF_SERVER,
    SITES,
    setting_fields,
)
from ahfal_app.settings import Settings, exact_fraction, expanded, share_of
from ahfal_app.storage.yaml_text import load_yaml

__all__ = [
    "COMPONENTS",
    "DEFAULT_NUM_CLIENTS",
    "FEWEST_SUMMED",
    "LONGEST_VECTOR",
    "MORE",
    "NO_DATASET",
    "OF_SERVER",
    "RENAMED",
    "SITES",
    "Settings",
    "exact_fraction",
    "expanded",
    "parse_settings",
    "read_scalar",
    "read_settings",
    "recorded_settings",
    "setting_fields",
    "share_of",
    "too_few_for_secure_aggregation",
    "unknown_key",
]

#: Keys of before, and what they are called now.
RENAMED = {
    "head-kernel": "model.head-kernel",
    "kcfu-mixing": "local-update.mixing",
    "kcfu-teacher": "local-update.teacher",
    "kcfu-pool": "local-update.pool",
    "proximal-mu": "aggregation.proximal-mu",
    "server-learning-rate": "aggregation.learning-rate",
    "server-momentum": "aggregation.momentum",
    "server-second-moment": "aggregation.second-moment",
    "server-adaptivity": "aggregation.adaptivity",
    "trimmed-share": "aggregation.trimmed-share",
    "malicious-clients": "aggregation.malicious-clients",
    "multikrum-clients": "aggregation.averaged-clients",
    "epsilon": "privacy.epsilon",
    "adjacency": "privacy.adjacency",
    "secure-aggregation-threshold": "privacy.threshold",
}


def parse_settings(values: Mapping[str, object]) -> Settings:
    """Parse flat kebab-case settings, reporting all problems at once.

    An empty `<setting>.<parameter>` means that parameter's default, since Flower can only
    override keys that its manifest lists; `more` has those that it does not list.

    Raises
    ------
    ConfigError
        A key is unknown, or a value has the wrong type or is out of range.
    """
    settings, problems = read_settings(values)
    if problems:
        raise ConfigError(problems)
    return settings


def read_settings(values: Mapping[str, object]) -> tuple[Settings, list[str]]:
    """Return what can be used of flat settings, with defaults for the rest, and all problems.

    For checks that go on where a problem is known, to tell all at once.
    """
    fields = setting_fields()
    known: dict[str, object] = {}
    parameters: dict[str, object] = {}
    values, problems = _with_more(values)
    for key, value in values.items():
        if key in fields:
            problem = _type_problem(key, value, fields[key])
            if problem is None:
                known[key] = value
            else:
                problems.append(problem)
        elif key.partition(".")[0] in COMPONENTS and "." in key:
            if value != "":
                parameters[key] = value
        else:
            problems.append(unknown_key(key, fields))
    try:
        settings = Settings.model_validate({**known, "parameters": parameters})
    except ValidationError as error:
        problems.extend(_range_problem(detail, fields) for detail in error.errors())
        # What is in range is still checked for contradictions, to tell all problems at once.
        refused = {str(detail["loc"][0]) for detail in error.errors()}
        known = {key: value for key, value in known.items() if key not in refused}
        settings = Settings.model_validate(known)
    problems.extend(contradictions(settings))
    return settings, problems


def _with_more(values: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Return settings with those that `more` carries, and a line for each that it cannot."""
    own = {key: value for key, value in values.items() if key != MORE}
    text, problems = values.get(MORE, ""), list[str]()
    if not isinstance(text, str):
        return own, [_refusal(MORE, text, setting_fields()[MORE])]
    try:
        words = shlex.split(text)
    except ValueError as error:
        return own, [f"{MORE}={text!r}: {error}; allowed are key=value, with spaces between"]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key.partition(".")[0] not in COMPONENTS or "." not in key:
            problems.append(
                f"{MORE}: {word!r}: allowed is <setting>.<parameter>=value, such as "
                "strategy.depth=3"
            )
        elif own.get(key, "") != "":
            problems.append(f"{key}: stands in {MORE} and beside it; allowed is once")
        else:
            own[key] = read_scalar(value)
    return own, problems


def recorded_settings(values: Mapping[str, object]) -> Settings:
    """Parse the settings of a run that is over, whose keys may be those of an earlier version.

    Raises
    ------
    ConfigError
        As of `parse_settings`.
    """
    return parse_settings({RENAMED.get(key, key): value for key, value in values.items()})


def read_scalar(text: str) -> Scalar:
    """Return what a person means by a value that may be text, a number, or true or false.

    Quotes around the whole of it make it text, as in YAML: `"007"` is no number.

    Raises
    ------
    ConfigError
        It is neither.
    """
    try:
        value = load_yaml(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError([f"{text!r}: not a value: {error}"]) from error
    if isinstance(value, bool | int | float):
        return value
    return value if isinstance(value, str) and text[:1] in {'"', "'"} else text


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the line that refuses an unknown key and suggests the nearest known one."""
    if key in RENAMED:
        return f"{key}: is called {RENAMED[key]} now"
    return f"{key}: unknown setting{suggestion(key, known)}; `ahfal settings` lists all"


def _type_problem(key: str, value: object, field: FieldInfo) -> str | None:
    """Refuse what pydantic would silently convert, such as `true` for a number."""
    annotation = field.annotation
    if typing.get_origin(annotation) is Literal:
        # `True == 1`, but it is no choice between numbers.
        fits = type(value) is type(typing.get_args(annotation)[0])
    elif annotation is bool:
        fits = isinstance(value, bool)
    elif annotation is int:
        # In TOML, `1e3` is a floating-point number, and a whole one all the same.
        fits = type(value) is int or (isinstance(value, float) and value.is_integer())
    elif annotation is float:
        fits = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    else:
        fits = isinstance(value, str)
    return None if fits else _refusal(key, value, field)


def _range_problem(detail: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    key = str(detail["loc"][0])
    if key not in fields:
        parameter = str(detail["loc"][1])
        return f"{parameter}={detail['input']!r}: must be a single value"
    return _refusal(key, detail["input"], fields[key])


def _refusal(key: str, value: object, field: FieldInfo) -> str:
    nearest = ""
    if typing.get_origin(field.annotation) is Literal and isinstance(value, str):
        choices = typing.get_args(field.annotation)
        nearest = suggestion(value, [choice for choice in choices if isinstance(choice, str)])
    return f"{key}={value!r}: allowed is {allowed_values(field)}{nearest}"
