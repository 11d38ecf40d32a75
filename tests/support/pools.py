"""Pools and contexts of made-up signals, for tests of single query strategies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.query import PoolView, QueryContext, Signal


def log(*rows: Sequence[float]) -> Tensor:
    """Return logits whose softmax is the given rows."""
    return torch.tensor(rows, dtype=torch.float64).clamp_min(1e-300).log()


def pool_of(signals: Mapping[Signal, Any]) -> PoolView:
    """Return a pool whose ids are positions; a missing signal cannot be asked for."""
    tensors = {signal: torch.as_tensor(values) for signal, values in signals.items()}
    size = len(next(iter(tensors.values())))
    return PoolView(
        np.arange(size), {signal: lambda v=values: v for signal, values in tensors.items()}
    )


def context_of(budget: int, counts: Sequence[int], **changes: Any) -> QueryContext:
    """Return a context with nothing known of other clients."""
    size = len(counts)
    statistics = ClassStatistics(
        np.full(size, 1 / size), np.zeros(size), np.zeros(size, dtype=bool)
    )
    context = QueryContext(budget, size, np.array(counts), statistics, seed=1, client=0, cycle=0)
    return dataclasses.replace(context, **changes)


def chi_square(observed: Mapping[Any, int], probabilities: Mapping[Any, float]) -> float:
    """Return Pearson's statistic; outcomes that cannot happen make it infinite."""
    if observed.keys() - probabilities.keys():
        return float("inf")
    draws = sum(observed.values())
    return sum(
        (observed.get(outcome, 0) - draws * p) ** 2 / (draws * p)
        for outcome, p in probabilities.items()
    )
