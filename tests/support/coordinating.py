"""Clients whose samples are written down by hand, to be coordinated without any message."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from support.strategy_cases import context_for

from ahfal_app.query import PoolView, QueryContext, Signal, checked_select
from ahfal_app.query.core.coordination import CoordinatedStrategy, together


def pool_at(points: Any, labelled: Any = ()) -> PoolView:
    """Return a pool of points, numbers or vectors, whose ids are their positions."""
    points_ND = _matrix(points)
    labelled_LD = _matrix(labelled) if len(labelled) else points_ND[:0]
    sources = {
        Signal.GLOBAL_EMBEDDINGS: lambda: points_ND,
        Signal.LABELLED_GLOBAL_EMBEDDINGS: lambda: labelled_LD,
    }
    return PoolView(np.arange(len(points_ND)), sources)


def _matrix(points: Any) -> torch.Tensor:
    points_ND = torch.as_tensor(np.asarray(points, dtype=np.float64))
    return points_ND[:, None] if points_ND.ndim == 1 else points_ND


def contexts_for(
    budgets: Sequence[int], labelled: Sequence[int] | None = None, num_classes: int = 2
) -> dict[int, QueryContext]:
    numbers = labelled or [0] * len(budgets)
    return {
        client: context_for(
            budget,
            num_classes,
            client=client,
            labels_L=np.zeros(number, dtype=np.int64),
        )
        for client, (budget, number) in enumerate(zip(budgets, numbers, strict=True))
    }


def chosen_together(
    strategy: CoordinatedStrategy,
    pools: Mapping[int, PoolView],
    contexts: Mapping[int, QueryContext],
) -> dict[int, list[int]]:
    """Return the ids that each client chooses."""
    parts = together(strategy, pools, contexts)
    return {
        client: checked_select(
            strategy,
            pools[client],
            dataclasses.replace(contexts[client], coordinated=parts[client]),
        ).tolist()
        for client in pools
    }
