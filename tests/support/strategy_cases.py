"""Pools and contexts that tests of single strategies write down by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from support.fake_models import FakeModels
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.query import PoolModels, PoolView, QueryContext, Signal

#: What a run needs with some strategies, and what makes it short: samples that are held out at the
#: server, and an agent for pools of any size.
NEEDED: Mapping[str, Mapping[str, object]] = {
    "leadq": {"held-out": 20, "strategy.agent": "set", "strategy.learn-from": 1}
}


def context_for(budget: int, num_classes: int, **changes: Any) -> QueryContext:
    fields: dict[str, Any] = {
        "budget": budget,
        "num_classes": num_classes,
        "class_counts_C": np.ones(num_classes, dtype=np.int64),
        "statistics": ClassStatistics(
            np.full(num_classes, 1 / num_classes),
            np.zeros(num_classes),
            np.ones(num_classes, dtype=bool),
        ),
        "seed": 3,
        "client": 1,
        "cycle": 2,
    }
    return QueryContext(**{**fields, **changes})


def pool_of(tensors: Mapping[Signal, Any], models: PoolModels | None = None) -> PoolView:
    """Return a pool whose ids are its positions."""
    values = {signal: torch.as_tensor(value) for signal, value in tensors.items()}
    sources = {signal: lambda value=value: value for signal, value in values.items()}
    return PoolView(np.arange(len(next(iter(values.values())))), sources, models)


def random_signals(size: int, num_classes: int, width: int, seed: int) -> dict[Signal, Tensor]:
    """Return matrices from a continuous distribution, some logits positive and some not."""
    generator = torch.Generator().manual_seed(seed)
    columns = {
        Signal.LOCAL_LOGITS: num_classes,
        Signal.GLOBAL_LOGITS: num_classes,
        Signal.LOCAL_EMBEDDINGS: width,
        Signal.LOCAL_FEATURE_MAPS: width,
    }
    return {
        signal: 3 * torch.randn(size, number, generator=generator)
        for signal, number in columns.items()
    }


def random_pool(size: int, num_classes: int, width: int, seed: int) -> tuple[PoolView, FakeModels]:
    tensors = random_signals(size, num_classes, width, seed)
    models = FakeModels(tensors[Signal.LOCAL_LOGITS], tensors[Signal.LOCAL_EMBEDDINGS])
    return pool_of(tensors, models), models
