"""LoGo against cases by hand and plain loops; its clusters, and what it asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_models import FakeModels
from support.strategy_cases import context_for, pool_of, random_pool
from torch import Tensor

from ahfal_app.errors import NonFiniteSignal
from ahfal_app.parameters import parameter_problems
from ahfal_app.query import (
    LocalOnlyTraining,
    Outputs,
    PoolView,
    Signal,
    checked_select,
    make_strategy,
)
from ahfal_app.query.logo import Logo, best_of_each, gradient_embeddings


def entropy(logit: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -p * math.log(p) - (1 - p) * math.log(1 - p) if 0 < p < 1 else 0.0


def logits_of(entropies: list[float]) -> Tensor:
    """Return logits of two classes with these entropies, by bisection."""
    rows = []
    for wanted in entropies:
        low, high = 0.0, 50.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if entropy(middle) > wanted else (low, middle)
        rows.append([low, 0.0])
    return torch.tensor(rows)


def client_pool(embeddings: list[list[float]], entropies: list[float]) -> PoolView:
    """Return a pool whose gradient embeddings are the embeddings, halved."""
    return pool_of(
        {
            Signal.LOCAL_LOGITS: torch.zeros(len(embeddings), 2),
            Signal.LOCAL_EMBEDDINGS: torch.tensor(embeddings),
            Signal.GLOBAL_LOGITS: logits_of(entropies),
        }
    )


def select(pool: PoolView, budget: int, **parameters: object) -> list[int]:
    strategy = make_strategy("logo", {"macro": "client", **parameters})  # type: ignore[dict-item]
    return [int(i) for i in checked_select(strategy, pool, context_for(budget, 2))]


def test_of_each_cluster_the_highest_global_entropy() -> None:
    pool = client_pool([[0.0], [0.1], [10.0], [10.1]], [0.2, 0.5, 0.65, 0.1])
    assert select(pool, 2) == [2, 1]


def test_too_few_distinct_embeddings_are_topped_up_from_the_clusters_in_turn() -> None:
    """Clusters {0, 1, 2} and {3}; the third label is the next best of the first."""
    pool = client_pool([[0.0], [0.0], [0.0], [5.0]], [0.1, 0.3, 0.2, 0.4])
    assert select(pool, 3) == [3, 1, 2]


def test_certain_samples_have_an_embedding_of_zero() -> None:
    outputs = Outputs(
        torch.tensor([[1e30, 0.0], [0.0, 0.0], [40.0, 0.0]]), torch.tensor([[3.0, -4.0]] * 3)
    )
    embeddings = gradient_embeddings(outputs)
    assert embeddings[0].tolist() == [0.0, 0.0]
    assert embeddings[1].tolist() == [1.5, -2.0]
    # Still told apart where 1 - p rounds to 0.
    expected = math.exp(-40) / (1 + math.exp(-40))
    assert embeddings[2].tolist() == pytest.approx([3 * expected, -4 * expected], rel=1e-9)


def slow_best_of_each(scores: list[float], clusters: list[int], count: int) -> list[int]:
    """Go round the clusters, by their best score, taking the best that is left of each."""
    left = {
        cluster: sorted(
            (i for i, c in enumerate(clusters) if c == cluster), key=lambda i: (-scores[i], i)
        )
        for cluster in clusters
    }
    turns = sorted(left, key=lambda cluster: (-scores[left[cluster][0]], left[cluster][0]))
    chosen: list[int] = []
    while len(chosen) < count:
        for cluster in turns:
            if left[cluster]:
                chosen.append(left[cluster].pop(0))
    return chosen[:count]


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=30),
    share=st.floats(0, 1),
)
def test_turns_equal_plain_loops(rows: list[tuple[int, int]], share: float) -> None:
    scores, clusters = [float(score) for score, _ in rows], [cluster for _, cluster in rows]
    count = math.ceil(share * len(rows))
    chosen = best_of_each(torch.tensor(scores), np.array(clusters), count)
    assert chosen.tolist() == slow_best_of_each(scores, clusters, count)


def test_whole_selection_equals_plain_loops() -> None:
    """On clusters so far apart that k-means can only find them."""
    generator = np.random.default_rng(0)
    which = generator.integers(0, 6, 60)
    centres = 100.0 * np.eye(6)
    embeddings = centres[which] + generator.normal(size=(60, 6))
    entropies = generator.uniform(0.01, 0.69, 60)
    pool = client_pool(embeddings.tolist(), entropies.tolist())
    expected = slow_best_of_each(entropies.tolist(), which.tolist(), 6)
    assert select(pool, 6) == expected


def test_the_best_of_ten_starts_is_clustered_by_default() -> None:
    """As scikit-learn 1.0.1 did, which the published code asks for."""
    answers: dict[object, list[list[int]]] = {}
    for starts in (None, 10, 1):
        parameters = {"macro": "client", **({} if starts is None else {"starts": starts})}
        answers[starts] = [
            select(random_pool(150, 2, 4, seed)[0], 20, **parameters) for seed in range(3)
        ]
    assert answers[None] == answers[10] != answers[1]


@pytest.mark.parametrize(("macro", "expected"), [("local-only", [3, 0]), ("client", [3, 1])])
def test_the_local_only_model_is_what_clusters(macro: str, expected: list[int]) -> None:
    """Into {0, 2} and {1, 3}; the client's own model would give {0, 1} and {2, 3}."""
    local_only = FakeModels(torch.zeros(4, 2), torch.tensor([[0.0], [10.0], [0.1], [10.1]]))
    signals = {
        Signal.LOCAL_LOGITS: torch.zeros(4, 2),
        Signal.LOCAL_EMBEDDINGS: torch.tensor([[0.0], [0.1], [10.0], [10.1]]),
        Signal.GLOBAL_LOGITS: logits_of([0.2, 0.5, 0.1, 0.65]),
    }
    strategy = make_strategy("logo", {"macro": macro})
    selected = checked_select(strategy, pool_of(signals, local_only), context_for(2, 2))
    assert selected.tolist() == expected


def test_the_recipe_is_the_published_one_and_can_be_changed() -> None:
    pool, models = random_pool(20, 3, 4, 0)
    published = LocalOnlyTraining(50, 64, 0.01, 0.9, 1e-5, 37, False, 0.99)
    checked_select(make_strategy("logo"), pool, context_for(4, 3))
    checked_select(
        make_strategy("logo", {"epochs": 8, "decay-at": 0.5, "decay-unit": "step"}),
        pool,
        context_for(4, 3),
    )
    changed = LocalOnlyTraining(8, 64, 0.01, 0.9, 1e-5, 4, True, 0.99)
    assert models.trainings == [published, changed]


def test_the_clients_model_needs_no_training() -> None:
    pool, models = random_pool(20, 3, 4, 0)
    checked_select(make_strategy("logo", {"macro": "client"}), pool, context_for(4, 3))
    assert models.trainings == []


def test_a_diverged_local_only_model_is_a_named_error() -> None:
    pool, models = random_pool(20, 3, 4, 0)
    models.logits = models.logits.clone()
    models.logits[7, 1] = torch.nan
    with pytest.raises(NonFiniteSignal, match="'local-only-model': 1 of 20 rows"):
        checked_select(make_strategy("logo"), pool, context_for(4, 3))


def test_equal_generators_give_equal_clusters_and_others_others() -> None:
    pool, _ = random_pool(200, 3, 4, 0)
    answers = [
        checked_select(Logo(), pool, context_for(20, 3, cycle=cycle)).tolist()
        for cycle in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_impossible_recipes_are_refused() -> None:
    for key, value in (("batch-size", 1), ("epochs", 0), ("decay-at", 1.5), ("starts", 0)):
        [problem] = parameter_problems("strategy", "logo", Logo.Parameters, {key: value})
        assert problem.startswith(f"strategy.{key}={value}: allowed is ")
