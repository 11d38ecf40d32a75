"""Parameters of components: a pydantic model each, and what is said of values they refuse."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Scalar = bool | int | float | str

#: How a message goes on where it says what may have been meant.
SUGGESTION = "; did you mean "


def kebab(name: str) -> str:
    """Return a Python name as it is written in settings."""
    return name.replace("_", "-")


class Parameters(BaseModel):
    """Parameters of a component; each has a default and a description.

    A component's own are a subclass. In settings they are `<setting>.<parameter>`, in kebab case.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, alias_generator=kebab
    )


@dataclass(frozen=True)
class ParameterEntry:
    """A parameter, for tables: its full key, default, allowed values and meaning."""

    key: str
    default: Scalar
    allowed: str
    meaning: str


def parameter_entries(setting: str, model: type[Parameters]) -> tuple[ParameterEntry, ...]:
    """Return the parameters of a component that the setting of this name chooses."""
    return tuple(
        ParameterEntry(
            key=f"{setting}.{field.alias}",
            default=field.default,
            allowed=allowed_values(field),
            meaning=field.description or "",
        )
        for field in model.model_fields.values()
    )


def parameter_problems(
    setting: str, name: str, model: type[Parameters], values: Mapping[str, object]
) -> list[str]:
    """Return a line for each value that a component cannot take.

    Parameters
    ----------
    setting, name : str
        The setting that chooses the component, and the component's name.
    model : type[Parameters]
        What it takes.
    values : Mapping[str, object]
        By kebab-case key, without the setting's name.
    """
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        return [_problem(setting, name, detail, model) for detail in error.errors()]
    fields = {field.alias: field for field in model.model_fields.values()}
    return [
        _refusal(setting, key, value, fields[key])
        for key, value in values.items()
        if not _is_a_choice(value, fields[key])
    ]


def _is_a_choice(value: object, field: FieldInfo) -> bool:
    """Tell whether a value is of its choices' kind: `True == 1`, but it is no number."""
    choices = typing.get_args(field.annotation)
    is_choice = typing.get_origin(field.annotation) is Literal
    return not is_choice or type(value) in {type(choice) for choice in choices}


def _problem(setting: str, name: str, detail: ErrorDetails, model: type[Parameters]) -> str:
    fields = {field.alias or key: field for key, field in model.model_fields.items()}
    key = str(detail["loc"][0]) if detail["loc"] else ""
    if not key:
        # Of a check over several parameters, which says itself what is allowed.
        return f"{setting}={name!r}: {detail['msg'].removeprefix('Value error, ')}"
    if key not in fields:
        takes = ", ".join(fields) or "none"
        return (
            f"{setting}.{key}: {name!r} has no such parameter"
            f"{suggestion(key, fields)}; it takes: {takes}"
        )
    return _refusal(setting, key, detail["input"], fields[key])


def _refusal(setting: str, key: str, value: object, field: FieldInfo) -> str:
    choices = [choice for choice in typing.get_args(field.annotation) if isinstance(choice, str)]
    nearest = suggestion(value, choices) if isinstance(value, str) else ""
    return f"{setting}.{key}={value!r}: allowed is {allowed_values(field)}{nearest}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"{SUGGESTION}{near[0]!r}?" if near else ""


def allowed_values(field: FieldInfo) -> str:
    """Return in words which values a setting takes."""
    annotation = field.annotation
    if typing.get_origin(annotation) is Literal:
        return " | ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    kinds = {bool: "true | false", int: "integer", float: "number", str: "text"}
    words = [kinds.get(typing.cast(type, annotation), "text")]
    for bound in field.metadata:
        for attribute, symbol in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if (limit := getattr(bound, attribute, None)) is not None:
                words.append(f"{symbol} {limit:g}" if limit < 2**31 else f"{symbol} {limit}")
        if (pattern := getattr(bound, "pattern", None)) is not None:
            words.append(f"matching `{pattern}`")
        if getattr(bound, "min_length", None):
            words.append("not empty")
    return ", ".join(words)
