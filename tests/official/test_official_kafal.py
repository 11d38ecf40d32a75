"""KAFAL's sampling, KSAS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import official as code
from support.official import Agreement, Looked, Rows, official
from support.official_cases import CLASSES, Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor
from torch.nn import functional

from ahfal_app.query import Signal
from ahfal_app.query.kafal import Kafal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


def test_kafal(agreement: Agreement) -> None:
    equal, worst = 0, 0.0
    for seed in range(100):
        case = Case(seed)
        local, global_ = (
            torch.from_numpy(case.logits(case.embeddings(case.size))).double() for _ in range(2)
        )
        counts = case.random.integers(1, 400, CLASSES)
        theirs = discrepancy(local, global_, counts)
        pool = pool_of({Signal.LOCAL_LOGITS: local, Signal.GLOBAL_LOGITS: global_})
        context = case.context(40, counts)
        ours = Kafal().scores(pool, context)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.max()))
        # The authors' code takes the last of a rising order.
        selected = np.argsort(theirs.numpy(), kind="stable")[-40:]
        equal += set(chosen("kafal", {}, pool, context)) == {int(i) for i in selected}
    agreement.add(
        "kafal",
        "KAFAL: `get_discrepancy`",
        "scores; 40 of 200, labels of all classes",
        f"{equal} of 100 equal; scores to {worst:.0e} of the largest",
    )
    assert equal == 100
    assert worst < 1e-14


def test_kafal_where_a_class_is_missing(agreement: Agreement) -> None:
    """The authors' function gives NaN to every sample on a present PyTorch, ours a score."""
    case = Case(0)
    local, global_ = (
        torch.from_numpy(case.logits(case.embeddings(case.size))).double() for _ in range(2)
    )
    counts = np.array([0, *case.random.integers(1, 400, CLASSES - 1)])
    theirs = discrepancy(local, global_, counts)
    pool = pool_of({Signal.LOCAL_LOGITS: local, Signal.GLOBAL_LOGITS: global_})
    ours = Kafal().scores(pool, case.context(40, counts))
    known = discrepancy(local[:, 1:], global_[:, 1:], counts[1:])
    agreement.add(
        "kafal",
        "KAFAL: `get_discrepancy`",
        "scores, a class without labels",
        f"{int(theirs.isnan().sum())} of 200 are NaN; ours are those of the other classes alone",
    )
    assert theirs.isnan().all()
    torch.testing.assert_close(ours, known, rtol=1e-9, atol=1e-14)


def discrepancy(local: Tensor, global_: Tensor, counts: Any) -> Tensor:
    function = official(
        "KAFAL",
        "main.py",
        ["get_discrepancy"],
        torch=torch,
        F=functional,
        loss_weight_list=[torch.tensor(counts).double()],
    ).get_discrepancy
    loaded = code.loader(Rows(len(local)), batch_size=64)
    networks = (Looked(outputs, torch.zeros(len(local), 1)) for outputs in (local, global_))
    result: Tensor = function(*networks, loaded, 0)
    return result
