"""FEAL's sampling and its loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import official as code
from support.official import Agreement, Rows, official
from support.official_cases import CLASSES, Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import PoolView, Signal
from ahfal_app.query.core.evidence import evidential_losses
from ahfal_app.query.core.picking import falling
from ahfal_app.query.feal import Feal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


def feal_selection(
    case: Case, global_: Tensor, local: Tensor, maps: Tensor, count: int
) -> list[int]:
    sampler = official(
        "FEAL", "data/sampler.py", ["SubsetSequentialSampler"], torch=torch
    ).SubsetSequentialSampler
    function = official(
        "FEAL",
        "utils/cls/selection_methods.py",
        ["fl_duc", "relaxation", "query_samples"],
        torch=torch,
        F=functional,
        dist=torch.distributions,
        DataLoader=code.loader,
        SubsetSequentialSampler=sampler,
        pairwise_cosine_similarity=code.pairwise_cosine_similarity,
    ).query_samples

    class Images(Rows):
        def __getitem__(self, row: int) -> Any:
            return 0, {"image": torch.tensor(row)}

    class Answers(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, rows: Tensor) -> tuple[Any, ...]:
            return self.logits[rows], None, None, [maps[rows]]

    arguments = SimpleNamespace(
        query_model="both", dataset="none", batch_size=64, n_neighbor=5, cosine=0.85
    )
    order = function(
        "FEAL",
        Answers(global_),
        Answers(local),
        None,
        Images(case.size),
        list(range(case.size)),
        [],
        count,
        None,
        0,
        0,
        arguments,
    )
    return [int(i) for i in order[-count:]]


def feal_case(seed: int) -> tuple[Case, Tensor, Tensor, Tensor]:
    """Return outputs in double precision, and maps of 8 channels of which many are similar."""
    case = Case(seed)
    embeddings = case.embeddings(case.size)
    local, global_ = (torch.from_numpy(case.logits(embeddings)).double() for _ in range(2))
    labels = case.random.choice(case.classes, case.size, p=case.shares)
    centres = case.random.normal(size=(case.classes, 8, 6, 6))
    noise = case.random.normal(size=(case.size, 8, 6, 6))
    maps = np.maximum(centres[labels] + noise / 2, 0)
    return case, global_, local, torch.from_numpy(maps)


def feal_pool(global_: Tensor, local: Tensor, maps: Tensor) -> PoolView:
    averaged = functional.adaptive_avg_pool2d(maps, 3).flatten(1)
    return pool_of(
        {
            Signal.LOCAL_LOGITS: local,
            Signal.GLOBAL_LOGITS: global_,
            Signal.LOCAL_FEATURE_MAPS: averaged,
        }
    )


def test_feal(agreement: Agreement) -> None:
    equal, relaxed = 0, 0
    for seed in range(60):
        case, global_, local, maps = feal_case(seed)
        pool, context = feal_pool(global_, local, maps), case.context(40)
        ours = chosen("feal", {}, pool, context)
        equal += ours == feal_selection(case, global_, local, maps, 40)
        relaxed += ours != falling(Feal().scores(pool, context))[:40].tolist()
    agreement.add("feal", "FEAL: `query_samples`", "40 of 200, in order", f"{equal} of 60 equal")
    assert equal == 60
    assert relaxed == 60


def test_feal_with_duplicates(agreement: Agreement) -> None:
    """Each image is there twice: the authors' code buys both of many pairs, we do not."""
    theirs = ours = differ = 0
    for seed in range(20):
        case, global_, local, maps = feal_case(seed)
        global_, local, maps = (torch.cat([v[:100], v[:100]]) for v in (global_, local, maps))
        published = feal_selection(case, global_, local, maps, 40)
        own = chosen("feal", {}, feal_pool(global_, local, maps), case.context(40))
        theirs += 40 - len({i % 100 for i in published})
        ours += 40 - len({i % 100 for i in own})
        differ += set(published) != set(own)
    agreement.add(
        "feal",
        "FEAL: `query_samples`",
        "40 of 100 images, each there twice",
        f"{20 - differ} of 20 equal; bought twice: {theirs} of 800 there, {ours} here",
    )
    assert ours < theirs


def test_feal_loss(agreement: Agreement) -> None:
    module = official(
        "FEAL",
        "utils/loss_func.py",
        ["kl_divergence", "EDL_Loss"],
        torch=torch,
        nn=nn,
        F=functional,
        _Loss=nn.modules.loss._Loss,
    )
    worst = 0.0
    for seed in range(50):
        case = Case(seed, size=64)
        logits = torch.from_numpy(case.logits(case.embeddings(64))).double()
        labels = torch.from_numpy(case.random.integers(0, CLASSES, 64))
        prior = torch.from_numpy(case.random.dirichlet(np.ones(CLASSES)))
        theirs = float(module.EDL_Loss(prior, 0.01, 10)(logits, labels, seed % 15))
        phased_in, weight = torch.tensor([[min(1.0, seed % 15 / 10)], [0.01]]).double()
        ours = float(evidential_losses(logits, labels, prior[None], phased_in, weight).mean())
        worst = max(worst, abs(ours - theirs) / abs(theirs))
    agreement.add("feal", "FEAL: `EDL_Loss`", "loss of 50 batches of 64", f"to {worst:.0e}")
    assert worst < 1e-6
