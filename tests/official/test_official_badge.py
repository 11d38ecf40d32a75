"""The BADGE repository's entropy, margin, least confidence, BADGE and Core-Set."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import pairwise_distances
from support.official import Agreement, official
from support.official_cases import Case, chosen
from support.strategy_cases import context_for, pool_of
from torch import Tensor

from ahfal_app.query import Signal
from ahfal_app.query.badge import Badge
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.points import EmbeddingPoints

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


def pool_strategy(path: str, name: str, probabilities: Tensor) -> Any:
    """Return a strategy of the BADGE repository that is given its network's predictions."""
    module = official("badge", path, [name], Strategy=object, np=np, torch=torch)
    made = getattr(module, name).__new__(getattr(module, name))
    size = len(probabilities)
    made.n_pool, made.X, made.Y = size, np.arange(size), torch.zeros(size)
    made.idxs_lb = np.zeros(size, dtype=bool)
    made.predict_prob = lambda x, y: probabilities
    return made


@pytest.mark.parametrize(
    ("ours", "path", "theirs"),
    [
        ("entropy", "query_strategies/entropy_sampling.py", "EntropySampling"),
        ("margin", "query_strategies/margin_sampling.py", "MarginSampling"),
        ("least-confidence", "query_strategies/least_confidence.py", "LeastConfidence"),
    ],
)
def test_uncertainty(ours: str, path: str, theirs: str, agreement: Agreement) -> None:
    equal = 0
    for seed in range(100):
        case = Case(seed)
        logits = torch.from_numpy(case.logits(case.embeddings(case.size)))
        # In double precision: single rounds confident predictions to 1.
        probabilities = torch.softmax(logits.double(), dim=1)
        selected = pool_strategy(path, theirs, probabilities).query(40)
        pool = pool_of({Signal.LOCAL_LOGITS: logits})
        equal += chosen(ours, {}, pool, case.context(40)) == selected.tolist()
    agreement.add(ours, f"badge: `{theirs}.query`", "40 of 200, in order", f"{equal} of 100 equal")
    assert equal == 100


def badge_functions() -> Any:
    return official(
        "badge",
        "query_strategies/badge_sampling.py",
        ["distance", "init_centers"],
        np=np,
        stats=stats,
        print=lambda *arguments, **named: None,
    )


def factors(logits: NDArray[Any], embeddings: NDArray[Any]) -> tuple[Any, Any]:
    """Return the two factors of the gradients with their squared norms, as the authors' code."""
    probabilities = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    errors = -probabilities
    errors[np.arange(len(errors)), probabilities.argmax(axis=1)] += 1
    inputs = embeddings.astype(np.float64)
    return (errors, (errors**2).sum(axis=1)), (inputs, (inputs**2).sum(axis=1))


def test_badge_distances_and_first_sample(agreement: Agreement) -> None:
    functions, worst, firsts = badge_functions(), 0.0, 0
    for seed in range(50):
        case = Case(seed)
        embeddings = case.embeddings(case.size)
        logits = case.logits(embeddings)
        left, right = factors(logits, embeddings)
        chosen_first, _, _, distances = functions.init_centers(left, right, set(), [], None, None)
        pool = pool_of({Signal.LOCAL_LOGITS: logits, Signal.LOCAL_EMBEDDINGS: embeddings})
        gradients = Badge().gradient_embeddings(pool)
        first = chosen("badge", {}, pool, case.context(1))
        firsts += set(first) == chosen_first
        ours = gradients.squared_distances(slice(None), torch.tensor(first))[:, 0].sqrt().numpy()
        worst = max(worst, float(np.abs(ours - distances).max() / distances.max()))
    found = f"{firsts} of 50 first samples; distances to {worst:.0e} of the largest"
    agreement.add("badge", "badge: `init_centers`, `distance`", "first sample, distances", found)
    assert firsts == 50
    assert worst < 1e-12


def test_badge_draws_have_the_same_distribution(agreement: Agreement) -> None:
    """Of 12 samples 3, 2,000 times each; both against each other by the χ² test."""
    functions, case = badge_functions(), Case(5, size=12, width=4, classes=3)
    embeddings = case.embeddings(12)
    logits = case.logits(embeddings) / 4
    left, right = factors(logits, embeddings)
    pool = pool_of({Signal.LOCAL_LOGITS: logits, Signal.LOCAL_EMBEDDINGS: embeddings})
    theirs: Counter[tuple[int, ...]] = Counter()
    ours: Counter[tuple[int, ...]] = Counter()
    np.random.seed(0)  # noqa: NPY002 the authors' code draws from the global generator
    for draw in range(2000):
        state: tuple[Any, ...] = (set(), [], None, None)
        for _ in range(3):
            state = functions.init_centers(left, right, *state)
        theirs[tuple(int(i) for i in state[1])] += 1
        ours[tuple(chosen("badge", {}, pool, context_for(3, 3, cycle=draw)))] += 1
    sequences = sorted(key for key in theirs | ours if theirs[key] + ours[key] >= 10)
    table = np.array([[counter[key] for key in sequences] for counter in (theirs, ours)])
    result = stats.chi2_contingency(table)
    found = (
        f"χ² = {result.statistic:.0f} with {result.dof} degrees of freedom, p = {result.pvalue:.2f}"
    )
    agreement.add("badge", "badge: `init_centers`", "2,000 draws of 3 of 12", found)
    assert len(sequences) > 20
    assert result.pvalue > 0.001


@pytest.mark.parametrize("labelled", [0, 25])
def test_core_set(labelled: int, agreement: Agreement) -> None:
    theirs = official(
        "badge",
        "query_strategies/core_set.py",
        ["CoreSet"],
        Strategy=object,
        np=np,
        pairwise_distances=pairwise_distances,
    ).CoreSet
    equal = 0
    for seed in range(50):
        case = Case(seed)
        embeddings, centres = case.embeddings(case.size), case.embeddings(labelled)
        picks = theirs.furthest_first(
            None, embeddings.astype(np.float64), centres.astype(np.float64), 40
        )
        points = EmbeddingPoints(torch.from_numpy(np.concatenate([embeddings, centres])))
        nearest = torch.full((case.size,), torch.inf, dtype=torch.float64)
        if labelled:
            points.lower(nearest, torch.arange(case.size, case.size + labelled))
            pool = pool_of(
                {Signal.LOCAL_EMBEDDINGS: embeddings, Signal.LABELLED_LOCAL_EMBEDDINGS: centres}
            )
            assert chosen("core-set", {}, pool, case.context(40)) == picks
        # Without labels the authors' code begins with the first sample, we with the middle.
        equal += greedy_k_center(points, nearest, 40).tolist() == picks
    agreement.add(
        "core-set",
        "badge: `CoreSet.furthest_first`",
        f"40 of 200, in order, {labelled} labelled",
        f"{equal} of 50 equal",
    )
    assert equal == 50
