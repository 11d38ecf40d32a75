"""Rules that end a run before its target, by name; each module of this package is one.

Another package registers one in the entry-point group `ahfal_app.stopping_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import STOPPING
from ahfal_app.stop_set import Observation
from ahfal_app.stopping.core.base import CycleResult, StoppingRule

__all__ = ["CycleResult", "Observation", "StoppingRule", "make_rule", "make_rules", "why_stopped"]


def make_rule(name: str, parameters: Mapping[str, Scalar]) -> StoppingRule:
    """Return the rule of that name.

    Raises
    ------
    UnknownComponent, ConfigError
        There is none, or it cannot take these parameters.
    """
    (rule,) = make_rules(name, parameters)
    return rule


def make_rules(names: str, parameters: Mapping[str, Scalar]) -> list[StoppingRule]:
    """Return the rules of these names, with commas between; each takes the parameters that it has.

    Raises
    ------
    UnknownComponent, ConfigError
        There is none of a name, or none of them can take these parameters.
    """
    if problems := STOPPING.parameter_problems(names, parameters):
        raise ConfigError(problems)
    rules = []
    for name in STOPPING.chosen(names):
        rule: type[StoppingRule] = STOPPING.component(name)
        own = STOPPING.parameters_of(name, parameters)
        rules.append(rule(rule.Parameters.model_validate(own)))
    return rules


def why_stopped(
    rules: Sequence[StoppingRule], mode: Literal["all", "any"], history: Sequence[CycleResult]
) -> str:
    """Return why a run ends after the last of these cycles; empty where it goes on.

    Parameters
    ----------
    rules : Sequence[StoppingRule]
        At least one.
    mode : Literal["all", "any"]
        Whether all rules have to hold, in the same cycle, or any of them.
    history : Sequence[CycleResult]
        All cycles from the first one on.
    """
    reasons = [rule.stops(history) for rule in rules]
    if mode == "all" and not all(reasons):
        return ""
    return "; ".join(reason for reason in reasons if reason)
