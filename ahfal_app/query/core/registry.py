"""Finds query strategies by name: the modules beside this package, and entry points.

Listing names imports neither the strategies nor torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ahfal_app.config import STRATEGY_PREFIX, Scalar, allowed_values, suggestion
from ahfal_app.errors import ConfigError, DuplicateStrategy, UnknownStrategy
from ahfal_app.plugins import entry_points

if TYPE_CHECKING:
    from ahfal_app.query.core.base import QueryStrategy

#: Packages register strategies of their own in this group: `name = "module:Class"`.
ENTRY_POINT_GROUP = "ahfal_app.strategies"

_PACKAGE = "ahfal_app.query"


@dataclass(frozen=True)
class ParameterEntry:
    """A parameter of a strategy, for tables: its full key, default, allowed values, meaning."""

    key: str
    default: Scalar
    allowed: str
    meaning: str


@dataclass(frozen=True)
class StrategyEntry:
    """A strategy, for tables: name, one line, all of it, citation, signals, parameters."""

    name: str
    summary: str
    description: str
    paper: str
    signals: tuple[str, ...]
    parameters: tuple[ParameterEntry, ...]


def strategy_names() -> tuple[str, ...]:
    """Return the names of all query strategies in order, without importing them.

    Raises
    ------
    DuplicateStrategy
        Two strategies claim the same name.
    """
    return tuple(sorted(_origins()))


def strategy_class(name: str) -> type[QueryStrategy]:
    """Import and return a query strategy's class.

    Raises
    ------
    UnknownStrategy
        No strategy has this name, or what is registered under it is not a strategy.
    DuplicateStrategy
        Two strategies claim the same name.
    """
    origins = _origins()
    if name not in origins:
        known = ", ".join(sorted(origins))
        raise UnknownStrategy(
            f"no query strategy is named {name!r}{suggestion(name, origins)}; there are: {known}"
        )
    return _load(name, origins[name])


def check_parameters(name: str, parameters: Mapping[str, Scalar]) -> list[str]:
    """Return a line for each parameter that the strategy cannot use.

    Raises
    ------
    UnknownStrategy
        No strategy has this name.
    """
    model = strategy_class(name).Parameters
    try:
        model.model_validate(dict(parameters))
    except ValidationError as error:
        return [_problem(name, detail, model) for detail in error.errors()]
    return []


def make_strategy(name: str, parameters: Mapping[str, Scalar] | None = None) -> QueryStrategy:
    """Return a query strategy with its parameters, by their keys without `strategy.`.

    Raises
    ------
    UnknownStrategy
        No strategy has this name.
    ConfigError
        A parameter is unknown or its value is not allowed.
    """
    values = dict(parameters or {})
    if problems := check_parameters(name, values):
        raise ConfigError(problems)
    strategy = strategy_class(name)
    return strategy(strategy.Parameters.model_validate(values))


def strategy_table() -> tuple[StrategyEntry, ...]:
    """Return all query strategies with their parameters, for documentation and the CLI."""
    return tuple(_entry(strategy_class(name)) for name in strategy_names())


def strategy_entry(name: str) -> StrategyEntry:
    """Return a query strategy with its parameters, for documentation and the CLI.

    Raises
    ------
    UnknownStrategy
        No strategy has this name.
    """
    return _entry(strategy_class(name))


def _origins() -> dict[str, str | EntryPoint]:
    """Return where each strategy comes from: a module's name or an entry point."""
    origins: dict[str, str | EntryPoint] = {}
    folder = str(Path(__file__).parent.parent)
    for module in pkgutil.iter_modules([folder]):
        if not module.ispkg and not module.name.startswith("_"):
            origins[module.name.replace("_", "-")] = f"{_PACKAGE}.{module.name}"
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name in origins:
            first = origins[entry_point.name]
            other = first.value if isinstance(first, EntryPoint) else first
            raise DuplicateStrategy(
                f"query strategy {entry_point.name!r} is defined twice: "
                f"{other} and {entry_point.value}"
            )
        origins[entry_point.name] = entry_point
    return origins


def _load(name: str, origin: str | EntryPoint) -> type[QueryStrategy]:
    from ahfal_app.query.core.base import QueryStrategy

    if isinstance(origin, EntryPoint):
        candidates, where = [origin.load()], origin.value
    else:
        module = importlib.import_module(origin)
        candidates, where = list(vars(module).values()), origin
    for candidate in candidates:
        if not (isinstance(candidate, type) and issubclass(candidate, QueryStrategy)):
            continue
        # The abstract bases that a module imports have no name.
        if getattr(candidate, "name", None) == name:
            return candidate
    raise UnknownStrategy(f"{where} holds no QueryStrategy whose `name` is {name!r}")


def _entry(strategy: type[QueryStrategy]) -> StrategyEntry:
    parameters = tuple(
        ParameterEntry(
            key=f"{STRATEGY_PREFIX}{field.alias}",
            default=field.default,
            allowed=allowed_values(field),
            meaning=field.description or "",
        )
        for field in strategy.Parameters.model_fields.values()
    )
    return StrategyEntry(
        name=strategy.name,
        summary=(strategy.__doc__ or "").strip().splitlines()[0],
        description=inspect.cleandoc(strategy.__doc__ or ""),
        paper=strategy.paper,
        signals=tuple(sorted(signal.value for signal in strategy.signals)),
        parameters=parameters,
    )


def _problem(name: str, detail: ErrorDetails, model: type[QueryStrategy.Parameters]) -> str:
    fields = {field.alias or key: field for key, field in model.model_fields.items()}
    key = str(detail["loc"][0])
    if key not in fields:
        takes = ", ".join(fields) or "none"
        return (
            f"{STRATEGY_PREFIX}{key}: {name!r} has no such parameter"
            f"{suggestion(key, fields)}; it takes: {takes}"
        )
    field, value = fields[key], detail["input"]
    choices = getattr(field.annotation, "__args__", ())
    nearest = suggestion(value, choices) if isinstance(value, str) and choices else ""
    return f"{STRATEGY_PREFIX}{key}={value!r}: allowed is {allowed_values(field)}{nearest}"
