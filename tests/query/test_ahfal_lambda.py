"""The weights of equation 8: against the definition, and on data whose errors are known."""

from __future__ import annotations

import statistics as plain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.query import PoolView, QueryContext, Signal, checked_select, make_strategy
from ahfal_app.query.ahfal_lambda import AhfalLambda, local_weights, share_of_global_bias
from ahfal_app.query.core.scores import entropy

CLASSES = 3


def slow_weights(
    local: list[float], global_: list[float], classes: list[int], shares: list[float]
) -> list[float]:
    """Return equation 8 as printed, with variances, covariance and biases one by one."""
    weights = []
    for place, share in enumerate(shares):
        rows = [i for i, label in enumerate(classes) if label == place]
        if len(rows) < 2:
            rows = list(range(len(local)))
        ours, theirs = [local[i] for i in rows], [global_[i] for i in rows]
        variance_l, variance_g = plain.pvariance(ours), plain.pvariance(theirs)
        mean_l, mean_g = plain.fmean(ours), plain.fmean(theirs)
        pairs = zip(ours, theirs, strict=True)
        covariance = plain.fmean((a - mean_l) * (b - mean_g) for a, b in pairs)
        gap = mean_l - mean_g
        bias_g = -share * gap
        bias_l = gap + bias_g
        below = variance_l + variance_g - 2 * covariance + (bias_l - bias_g) ** 2
        if below < 1e-12:
            weights.append(0.5)
            continue
        above = variance_g - covariance + bias_g * (bias_g - bias_l)
        weights.append(min(1.0, max(0.0, above / below)))
    return weights


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40))
def test_weights_agree_with_the_equation_as_printed(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    local, global_ = random.gamma(2, 0.4, size), random.gamma(2, 0.4, size)
    classes, shares = random.integers(0, CLASSES, size), random.uniform(0, 1, CLASSES)
    weights = local_weights(*map(torch.from_numpy, (local, global_, classes, shares)))
    expected = slow_weights(local.tolist(), global_.tolist(), classes.tolist(), shares.tolist())
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-9)


def test_special_case_of_unbiased_uncorrelated_errors() -> None:
    # λ = V_G / (V_L + V_G) = 4 / (1 + 4): both means 1, no covariance.
    local = torch.tensor([0.0, 2, 0, 2], dtype=torch.float64)
    global_ = torch.tensor([-1.0, -1, 3, 3], dtype=torch.float64)
    share = torch.tensor([0.3], dtype=torch.float64)
    weights = local_weights(local, global_, torch.zeros(4, dtype=torch.int64), share)
    assert weights.tolist() == pytest.approx([0.8])


def test_models_that_agree_count_half_each() -> None:
    values = torch.rand(6, dtype=torch.float64)
    share = torch.ones(2, dtype=torch.float64)
    weights = local_weights(values, values, torch.tensor([0, 0, 0, 1, 1, 1]), share)
    assert weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("bias_local", "bias_global"), [(0.0, 0.3), (0.2, -0.1), (0.3, 0.0)])
def test_the_estimate_has_nearly_the_least_error(bias_local: float, bias_global: float) -> None:
    """With the share of the bias known, the estimate must find the best of all weights."""
    random = np.random.default_rng(5)
    truth = random.gamma(3, 0.3, 200_000)
    local = truth + bias_local + random.normal(0, 0.3, truth.size)
    global_ = truth + bias_global + random.normal(0, 0.2, truth.size)
    share = -bias_global / (bias_local - bias_global)
    weight = local_weights(
        torch.from_numpy(local),
        torch.from_numpy(global_),
        torch.zeros(truth.size, dtype=torch.int64),
        torch.tensor([share], dtype=torch.float64),
    ).item()
    grid = np.linspace(0, 1, 101)
    errors = [np.mean((w * local + (1 - w) * global_ - truth) ** 2) for w in grid]
    assert abs(weight - grid[int(np.argmin(errors))]) < 0.015


def test_a_client_poor_in_a_concentrated_class_borrows_from_the_global_model() -> None:
    """Appendix C.1: the deviation alone must not decide where a client has few samples."""
    random = np.random.default_rng(1)
    local = torch.from_numpy(random.normal(1.5, 0.3, 4000))
    global_ = torch.from_numpy(random.normal(0.9, 0.3, 4000))
    classes = torch.zeros(4000, dtype=torch.int64)
    mean, concentrated = np.array([0.1, 0.9]), np.array([0.25, 0.25])

    def weight(count: int) -> float:
        shares = share_of_global_bias(np.array([count, 100]), mean, concentrated)
        return float(local_weights(local, global_, classes, torch.from_numpy(shares))[0])

    weights = [weight(count) for count in (0, 5, 50, 500, 5000)]
    assert weights == sorted(weights)
    assert weights[0] < 0.55 < 0.6 < weights[-1]


def test_an_even_class_has_no_global_bias() -> None:
    shares = share_of_global_bias(np.array([10, 0, 3]), np.array([0.5, 0.5, 0]), np.zeros(3))
    assert shares.tolist() == [0, 0, 0]


@given(
    count=st.integers(0, 1000),
    more=st.integers(0, 1000),
    deviation=st.floats(0, 0.5),
    wider=st.floats(0, 0.5),
)
def test_share_of_the_global_bias_rises_with_deviation_and_own_labels(
    count: int, more: int, deviation: float, wider: float
) -> None:
    mean = np.array([0.2, 0.8])

    def share(labels: int, sigma: float) -> float:
        # The second class keeps the mean number of labels the same.
        counts = np.array([labels, 4000 - labels])
        return float(share_of_global_bias(counts, mean, np.array([sigma, 0.1]))[0])

    assert 0 <= share(count, deviation) <= 1
    assert share(count, deviation) <= share(count + more, deviation) + 1e-12
    assert share(count, deviation) <= share(count, deviation + wider) + 1e-12


def test_scores_weigh_both_entropies_by_pseudo_class() -> None:
    generator = torch.Generator().manual_seed(2)
    local, global_ = (3 * torch.randn(50, CLASSES, generator=generator) for _ in range(2))
    pool = PoolView(
        np.arange(50),
        {Signal.LOCAL_LOGITS: lambda: local, Signal.GLOBAL_LOGITS: lambda: global_},
    )
    counts, mean, deviation = np.array([9, 0, 3]), np.full(3, 1 / 3), np.array([0.3, 0.1, 0.2])
    statistics = ClassStatistics(mean, deviation, np.zeros(3, dtype=bool))
    context = QueryContext(10, CLASSES, counts, statistics, seed=1, client=0, cycle=0)
    strategy = make_strategy("ahfal-lambda", {"balance": "none"})
    assert isinstance(strategy, AhfalLambda)
    scores = strategy.scores(pool, context)
    ours, theirs, classes = entropy(local), entropy(global_), local.argmax(dim=1)
    shares = share_of_global_bias(counts, mean, deviation)
    weights = slow_weights(ours.tolist(), theirs.tolist(), classes.tolist(), shares.tolist())
    expected = [
        weights[c] * a + (1 - weights[c]) * b
        for a, b, c in zip(ours.tolist(), theirs.tolist(), classes.tolist(), strict=True)
    ]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-9)
    best = np.argsort(-np.array(expected), kind="stable")[:10]
    assert checked_select(strategy, pool, context).tolist() == best.tolist()


def test_all_of_the_gap_may_be_put_down_to_the_global_model() -> None:
    generator = torch.Generator().manual_seed(2)
    local, global_ = (3 * torch.randn(50, CLASSES, generator=generator) for _ in range(2))
    pool = PoolView(
        np.arange(50),
        {Signal.LOCAL_LOGITS: lambda: local, Signal.GLOBAL_LOGITS: lambda: global_},
    )
    statistics = ClassStatistics(np.full(3, 1 / 3), np.zeros(3), np.ones(3, dtype=bool))
    context = QueryContext(10, CLASSES, np.array([9, 0, 3]), statistics, 1, 0, 0)
    scores = make_strategy("ahfal-lambda", {"bias": "global"}).scores(pool, context)  # type: ignore[attr-defined]
    weights = local_weights(
        entropy(local), entropy(global_), local.argmax(dim=1), torch.ones(3, dtype=torch.float64)
    )[local.argmax(dim=1)]
    torch.testing.assert_close(scores, weights * entropy(local) + (1 - weights) * entropy(global_))
