"""Rules that end a run before its target, by name; each module of this package is one.

Another package registers one in the entry-point group `ahfal_app.stopping_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar, parameter_problems
from ahfal_app.plugins import STOPPING
from ahfal_app.stopping.core.base import CycleResult, StoppingRule

__all__ = ["CycleResult", "StoppingRule", "make_rule"]


def make_rule(name: str, parameters: Mapping[str, Scalar]) -> StoppingRule:
    """Return the rule of that name.

    Raises
    ------
    UnknownComponent, ConfigError
        There is none, or it cannot take these parameters.
    """
    rule: type[StoppingRule] = STOPPING.component(name)
    values = dict(parameters)
    if problems := parameter_problems(STOPPING.setting, name, rule.Parameters, values):
        raise ConfigError(problems)
    return rule(rule.Parameters.model_validate(values))
