"""Query strategies by name, and what docs and commands say of them.

Listing names imports neither the strategies nor torch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ahfal_app.errors import ConfigError
from ahfal_app.parameters import ParameterEntry, Scalar, parameter_entries, parameter_problems
from ahfal_app.plugins import STRATEGIES

if TYPE_CHECKING:
    from ahfal_app.query.core.base import QueryStrategy


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
    DuplicateComponent
        Two strategies claim the same name.
    """
    return STRATEGIES.names()


def strategy_class(name: str) -> type[QueryStrategy]:
    """Import and return a query strategy's class.

    Raises
    ------
    UnknownComponent
        No strategy has this name, or what is registered under it is not a strategy.
    DuplicateComponent
        Two strategies claim the same name.
    """
    strategy: type[QueryStrategy] = STRATEGIES.component(name)
    return strategy


def make_strategy(name: str, parameters: Mapping[str, Scalar] | None = None) -> QueryStrategy:
    """Return a query strategy with its parameters, by their keys without `strategy.`.

    Raises
    ------
    UnknownComponent
        No strategy has this name.
    ConfigError
        A parameter is unknown or its value is not allowed.
    """
    return strategy_maker(name, parameters)()


def strategy_maker(
    name: str, parameters: Mapping[str, Scalar] | None = None
) -> Callable[[], QueryStrategy]:
    """Return what makes a query strategy anew each time, for whoever needs one often.

    Raises
    ------
    UnknownComponent, ConfigError
        As of `make_strategy`.
    """
    strategy, values = strategy_class(name), dict(parameters or {})
    if problems := parameter_problems(STRATEGIES.setting, name, strategy.Parameters, values):
        raise ConfigError(problems)
    return functools.partial(strategy, strategy.Parameters.model_validate(values))


def strategy_table() -> tuple[StrategyEntry, ...]:
    """Return all query strategies with their parameters, for documentation and the CLI."""
    return tuple(strategy_entry(name) for name in strategy_names())


def strategy_entry(name: str) -> StrategyEntry:
    """Return a query strategy with its parameters, for documentation and the CLI.

    Raises
    ------
    UnknownComponent
        No strategy has this name.
    """
    strategy = strategy_class(name)
    return StrategyEntry(
        name=strategy.name,
        summary=(strategy.__doc__ or "").strip().splitlines()[0],
        description=inspect.cleandoc(strategy.__doc__ or ""),
        paper=strategy.paper,
        signals=tuple(sorted(signal.value for signal in strategy.signals)),
        parameters=parameter_entries(STRATEGIES.setting, strategy.Parameters),
    )
