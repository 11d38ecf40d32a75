"""TM-FAL's score over a cycle's models, and its turns of classes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import official as code
from support.official import Agreement, Looked, Rows, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import Moment, Outputs, PoolView, Signal, Watched
from ahfal_app.query.temporal import Temporal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

SIZE, BUDGET, ROUNDS = 200, 40, 6


class Images(Rows):
    """As the authors' data sets give them."""

    def __getitem__(self, row: int) -> Any:
        return 0, {"image": torch.tensor(row), "label": 0}


class Classifier(Looked):
    """Gives logits, probabilities, embeddings, and no feature maps."""

    def forward(self, rows: Tensor) -> tuple[Any, ...]:
        logits, embeddings = super().forward(rows)
        return logits, torch.softmax(logits, dim=1), embeddings, None


def models_of(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Return logits and embeddings of the local and the global model of every second round."""
    embeddings = case.embeddings(SIZE)
    models = []
    for _ in range(ROUNDS):
        moved = embeddings + case.random.normal(size=embeddings.shape) * case.random.random(
            (SIZE, 1)
        )
        logits = torch.from_numpy(case.logits(moved.astype(np.float32))).double() / 4
        models.append((logits, torch.from_numpy(moved)))
    return models


def pool_of_models(models: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return them in the authors' order: the global ones, then the local ones."""
    return models[1::2] + models[::2]


def theirs(models: list[tuple[Tensor, Tensor]], network: nn.Module) -> tuple[list[int], Tensor]:
    """Return what the authors' code takes, the last of its rising order first, and its scores."""
    sampler = official(
        "TM-FAL", "data/sampler.py", ["SubsetSequentialSampler"], torch=torch
    ).SubsetSequentialSampler
    module = official(
        "TM-FAL",
        "utils/cls/selection_methods.py",
        ["al_timeu", "query_samples"],
        np=np,
        torch=torch,
        F=functional,
        nn=nn,
        copy=copy,
        DataLoader=code.loader,
        SubsetSequentialSampler=sampler,
    )
    scores: list[Tensor] = []
    scope = module.query_samples.__globals__
    scoring = scope["al_timeu"]

    def recorded(*arguments: Any, **named: Any) -> Any:
        result = scoring(*arguments, **named)
        scores.append(result[0])
        return result

    scope["al_timeu"] = recorded
    rising = module.query_samples(
        "ours",
        network,
        None,
        Images(SIZE),
        list(range(SIZE)),
        [],
        BUDGET,
        None,
        0,
        0,
        SimpleNamespace(query_model="both", dataset="none", batch_size=64),
        model_pools=[Classifier(*model).state_dict() for model in models],
    )
    return [int(i) for i in rising[-BUDGET:][::-1]], scores[0]


def watched(models: list[tuple[Tensor, Tensor]]) -> PoolView:
    """Return the pool after our strategy has watched the models; the last one is the global."""
    strategy = Temporal()
    seen: Watched | None = None
    for number, (logits, embeddings) in enumerate(models):
        kind = "global" if number % 2 else "local"
        # Each second round's local model, and the global one that comes of it.
        round_ = 2 * (number // 2 + 1)
        moment = Moment(kind, round_, ROUNDS, 5, 5)
        assert strategy.watches(moment)
        seen = strategy.watch(seen, Outputs(logits, embeddings), moment)
    assert seen is not None
    return pool_of({**strategy.watched_signals(seen), Signal.GLOBAL_LOGITS: models[-1][0]})


def test_temporal(agreement: Agreement) -> None:
    """The first client of each cycle, whose classes are the global model's."""
    equal, worst = 0, 0.0
    for seed in range(40):
        case = Case(seed, size=SIZE)
        models = models_of(case)
        picks, scores = theirs(pool_of_models(models), Classifier(*models[-1]))
        pool, context = watched(models), case.context(BUDGET)
        ours = Temporal().scores(pool, context)
        worst = max(worst, float((ours - scores).abs().max() / scores.max()))
        equal += chosen("temporal", {}, pool, context) == picks
    agreement.add(
        "temporal",
        "TM-FAL: `al_timeu`, `query_samples`",
        "scores; 40 of 200, in order, the first client",
        f"{equal} of 40 equal; scores to {worst:.0e} of the largest",
    )
    assert equal == 40
    assert worst < 1e-12


def test_temporal_of_a_later_client(agreement: Agreement) -> None:
    """The authors' code has left another client's last local model in the global one's place."""
    equal, alike = 0, 0
    for seed in range(40):
        case = Case(seed, size=SIZE)
        first, later = models_of(case), models_of(case)
        network = Classifier(*later[-1])
        theirs(pool_of_models(first), network)
        picks, _ = theirs(pool_of_models(later), network)
        context, pool = case.context(BUDGET), watched(later)
        equal += chosen("temporal", {}, pool, context) == picks
        spread, mean = Signal.TEMPORAL_SPREAD, Signal.TEMPORAL_PROBABILITIES
        by_first = pool_of(
            {
                spread: pool.signal(spread),
                mean: pool.signal(mean),
                Signal.GLOBAL_LOGITS: first[-2][0],
            }
        )
        alike += chosen("temporal", {}, by_first, context) == picks
    agreement.add(
        "temporal",
        "TM-FAL: `al_timeu`, `query_samples`",
        "40 of 200, in order, a later client",
        f"{equal} of 40 equal; {alike} of 40 with the first client's classes",
    )
    assert alike == 40
    assert equal == 0
