"""LoGo's two steps, given the local-only model."""

from __future__ import annotations

import copy
import functools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import official as code
from support.official import Agreement, Looked, OurClusters, Rows, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import nn
from torch.nn import functional

from ahfal_app.query import Signal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


def test_logo(agreement: Agreement) -> None:
    """With the authors' embeddings of one sample at a time, and our clusters."""
    equal = 0
    for seed in range(40):
        case = Case(seed, size=150)
        embeddings = torch.from_numpy(case.embeddings(case.size))
        local = torch.from_numpy(case.logits(embeddings.numpy()))
        global_ = torch.from_numpy(case.logits(embeddings.numpy()))
        context = case.context(15)
        pool = pool_of(
            {
                Signal.LOCAL_LOGITS: local,
                Signal.LOCAL_EMBEDDINGS: embeddings,
                Signal.GLOBAL_LOGITS: global_,
            }
        )
        k_means = functools.partial(OurClusters, generator=context.generator("logo.k-means"))
        theirs = logo_of(case, Looked(local, embeddings), Looked(global_, embeddings), k_means)
        selected = theirs.query(0, [], list(range(case.size)), n_query=15)
        ours = chosen("logo", {"macro": "client"}, pool, context)
        equal += sorted(ours) == sorted(int(i) for i in selected)
    agreement.add("logo", "LoGo: `LoGo.query`", "15 of 150, equal clusters", f"{equal} of 40 equal")
    assert equal == 40


def logo_of(case: Case, local: Looked, global_: Looked, k_means: Any) -> Any:
    given = {
        "copy": copy,
        "deepcopy": copy.deepcopy,
        "np": np,
        "torch": torch,
        "nn": nn,
        "F": functional,
        "Variable": lambda values: values,
        "DataLoader": code.loader,
        "Dataset": torch.utils.data.Dataset,
    }
    base = official("LoGo", "query_strategies/strategy.py", ["DatasetSplit", "Strategy"], **given)
    module = official(
        "LoGo",
        "query_strategies/fal/logo.py",
        ["LoGo"],
        Strategy=base.Strategy,
        KMeans=k_means,
        math=math,
        print=lambda *arguments: None,
        **given,
    )
    arguments = SimpleNamespace(num_classes=case.classes, device="cpu")
    made = module.LoGo(Rows(case.size), Rows(case.size), global_, arguments)
    made.training_local_only = lambda label_idxs: local
    return made
