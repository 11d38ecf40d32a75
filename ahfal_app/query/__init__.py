"""Query strategies: each module of this package is one, named after its file.

What they are built from is in the subpackage `core`. Importing this package does not
import torch; the names that need it are imported at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ahfal_app.query.core.registry import (
    StrategyEntry,
    make_strategy,
    strategy_class,
    strategy_entry,
    strategy_maker,
    strategy_names,
    strategy_table,
)

if TYPE_CHECKING:
    from ahfal_app.query.core.alignment import Aligned
    from ahfal_app.query.core.balance import ClassBalanced
    from ahfal_app.query.core.base import (
        QueryContext,
        QueryStrategy,
        ScoringStrategy,
        TrainingContext,
        TrainingLoss,
        checked_select,
    )
    from ahfal_app.query.core.losses import SampleLoss
    from ahfal_app.query.core.pool import (
        LocalOnlyTraining,
        Outputs,
        PoolModels,
        PoolView,
        Signal,
    )
    from ahfal_app.query.core.watching import Moment, Watched, WatchingStrategy

__all__ = [
    "Aligned",
    "ClassBalanced",
    "LocalOnlyTraining",
    "Moment",
    "Outputs",
    "PoolModels",
    "PoolView",
    "QueryContext",
    "QueryStrategy",
    "SampleLoss",
    "ScoringStrategy",
    "Signal",
    "StrategyEntry",
    "TrainingContext",
    "TrainingLoss",
    "Watched",
    "WatchingStrategy",
    "checked_select",
    "make_strategy",
    "strategy_class",
    "strategy_entry",
    "strategy_maker",
    "strategy_names",
    "strategy_table",
]

_LAZY = {
    "Aligned": "ahfal_app.query.core.alignment",
    "ClassBalanced": "ahfal_app.query.core.balance",
    "LocalOnlyTraining": "ahfal_app.query.core.pool",
    "Moment": "ahfal_app.query.core.watching",
    "Outputs": "ahfal_app.query.core.pool",
    "PoolModels": "ahfal_app.query.core.pool",
    "PoolView": "ahfal_app.query.core.pool",
    "QueryContext": "ahfal_app.query.core.base",
    "QueryStrategy": "ahfal_app.query.core.base",
    "SampleLoss": "ahfal_app.query.core.losses",
    "ScoringStrategy": "ahfal_app.query.core.base",
    "Signal": "ahfal_app.query.core.pool",
    "TrainingContext": "ahfal_app.query.core.base",
    "TrainingLoss": "ahfal_app.query.core.base",
    "Watched": "ahfal_app.query.core.watching",
    "WatchingStrategy": "ahfal_app.query.core.watching",
    "checked_select": "ahfal_app.query.core.base",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
