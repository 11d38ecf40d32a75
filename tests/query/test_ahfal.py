from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import reference_ahfal as reference
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.query import PoolView, QueryContext, Signal, checked_select, make_strategy
from ahfal_app.query.ahfal import Ahfal
from ahfal_app.query.core.scores import entropy


def log(*rows: tuple[float, ...]) -> Tensor:
    """Return logits whose softmax is the given rows."""
    return torch.tensor(rows, dtype=torch.float64).clamp_min(1e-300).log()


def untouched() -> Tensor:
    raise AssertionError("this model must not be run")


def pool_of(local: Tensor, global_: Tensor | None) -> PoolView:
    return PoolView(
        np.arange(len(local)),
        {
            Signal.LOCAL_LOGITS: lambda: local,
            Signal.GLOBAL_LOGITS: untouched if global_ is None else lambda: global_,
        },
    )


def context_of(budget: int, counts: list[int], low: list[bool], **changes: Any) -> QueryContext:
    size = len(counts)
    statistics = ClassStatistics(np.full(size, 1 / size), np.zeros(size), np.array(low))
    context = QueryContext(budget, size, np.array(counts), statistics, seed=1, client=0, cycle=0)
    return dataclasses.replace(context, **changes)


def ahfal(**parameters: str) -> Ahfal:
    strategy = make_strategy("ahfal", {k.replace("_", "-"): v for k, v in parameters.items()})
    assert isinstance(strategy, Ahfal)
    return strategy


class TestScores:
    def test_entropy_by_hand(self) -> None:
        rows = log((0.5, 0.5, 0), (1, 0, 0), (1 / 3, 1 / 3, 1 / 3), (0.9, 0.05, 0.05))
        expected = torch.tensor([0.693147, 0, 1.098612, 0.394398], dtype=torch.float64)
        torch.testing.assert_close(entropy(rows), expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("low", "expected"), [(True, 0.509115), (False, 0.325083)])
    def test_mean_of_entropies_and_not_entropy_of_the_mean(
        self, low: bool, expected: float
    ) -> None:
        pool = pool_of(log((0.9, 0.1)), log((0.5, 0.5)))
        scores = ahfal().scores(pool, context_of(1, [1, 1], [low, not low]))
        assert scores.item() == pytest.approx(expected, abs=1e-6)

    def test_global_model_is_not_run_without_low_classes(self) -> None:
        pool = pool_of(log((0.9, 0.1), (0.4, 0.6)), None)
        context = context_of(1, [1, 1], [False, False])
        for low_if in ("local", "local-or-global"):
            assert len(checked_select(ahfal(low_if=low_if), pool, context)) == 1

    def test_global_model_is_not_run_without_samples_of_low_classes(self) -> None:
        pool = pool_of(log((0.9, 0.1), (0.8, 0.2)), None)
        scores = ahfal().scores(pool, context_of(1, [1, 1], [False, True]))
        torch.testing.assert_close(scores, entropy(pool.signal(Signal.LOCAL_LOGITS)))

    def test_low_by_the_global_prediction(self) -> None:
        pool = pool_of(log((0.9, 0.1)), log((0.3, 0.7)))
        context = context_of(1, [1, 1], [False, True])
        local, both = entropy(log((0.9, 0.1))).item(), entropy(log((0.3, 0.7))).item()
        assert ahfal().scores(pool, context).item() == pytest.approx(local)
        hybrid = ahfal(low_if="local-or-global").scores(pool, context).item()
        assert hybrid == pytest.approx((local + both) / 2)

    def test_ablations_of_toggling(self) -> None:
        local, global_ = log((0.9, 0.1), (0.2, 0.8)), log((0.5, 0.5), (0.6, 0.4))
        context = context_of(1, [1, 1], [True, False])
        alone = ahfal(toggle="local").scores(pool_of(local, None), context)
        torch.testing.assert_close(alone, entropy(local))
        hybrid = ahfal(toggle="hybrid").scores(pool_of(local, global_), context)
        torch.testing.assert_close(hybrid, (entropy(local) + entropy(global_)) / 2)

    def test_equal_models_make_the_split_irrelevant(self) -> None:
        logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        scores = [
            ahfal().scores(pool_of(logits, logits), context_of(9, [3, 0, 2, 9], low))
            for low in ([True] * 4, [False] * 4, [True, False, False, True])
        ]
        assert torch.equal(scores[0], scores[1])
        assert torch.equal(scores[0], scores[2])


class TestSelection:
    def test_highest_entropies_of_each_class(self) -> None:
        # Pseudo-labels 0 0 1 1 1, rising uncertainty 2 < 0 < 4 < 3 < 1; budgets are (1, 2).
        tops = [0.97, 0.6, 0.99, 0.7, 0.9]
        rows = [(p, 1 - p) if i < 2 else (1 - p, p) for i, p in enumerate(tops)]
        selected = checked_select(
            ahfal(), pool_of(log(*rows), None), context_of(3, [2, 1], [False, False])
        )
        assert selected.tolist() == [1, 3, 4]

    def test_rare_class_is_preferred_to_uncertain_samples(self) -> None:
        rows = [(0.51, 0.49)] * 6 + [(0.01, 0.99)] * 4
        context = context_of(4, [97, 3], [False, False])
        pool = pool_of(log(*rows), None)
        assert checked_select(ahfal(), pool, context).tolist() == [6, 7, 8, 9]
        assert checked_select(ahfal(balance="none"), pool, context).tolist() == [0, 1, 2, 3]

    def test_pseudo_labels_are_the_local_model_s(self) -> None:
        local, global_ = log((0.6, 0.4), (0.4, 0.6)), log((0.1, 0.9), (0.9, 0.1))
        context = context_of(1, [9, 0], [True, True])
        assert checked_select(ahfal(), pool_of(local, global_), context).tolist() == [1]

    def test_budgets_by_representation_ratio(self) -> None:
        rows = [(0.5, 0.3, 0.1, 0.1)] * 20
        rows += [(0.1, 0.6, 0.2, 0.1)] * 20
        rows += [(0.1, 0.1, 0.7, 0.1)] * 20
        rows += [(0.1, 0.05, 0.05, 0.8)] * 20
        context = context_of(20, [40, 30, 20, 10], [False] * 4)
        strategy = ahfal(balance="representation-ratio")
        selected = checked_select(strategy, pool_of(log(*rows), None), context)
        assert np.bincount(selected // 20, minlength=4).tolist() == [3, 3, 3, 11]

    @pytest.mark.parametrize("name", ["ahfal", "ahfal-lambda"])
    @pytest.mark.parametrize(
        ("deficits", "expected"), [("inverse-count", [1, 3, 1, 5]), ("shortfall", [1, 2, 1, 6])]
    )
    def test_what_a_class_lacks_in_the_pool_goes_to_others(
        self, name: str, deficits: str, expected: list[int]
    ) -> None:
        """Budgets of (1, 2, 4, 3), and one sample of class 2; only class 3 is below the mean."""
        classes = torch.tensor([0] * 10 + [1] * 10 + [2] + [3] * 10)
        logits = torch.nn.functional.one_hot(classes, 4).double()
        strategy = make_strategy(name, {"deficits": deficits})
        context = context_of(10, [4, 2, 0, 1], [True] * 4)
        selected = checked_select(strategy, pool_of(logits, logits), context)
        assert torch.bincount(classes[selected], minlength=4).tolist() == expected

    def test_without_toggling_and_balance_it_is_entropy(self) -> None:
        generator = torch.Generator().manual_seed(3)
        pool = pool_of(torch.randn(200, 5, generator=generator), None)
        context = context_of(40, [5, 0, 2, 100, 1], [True] * 5)
        plain = checked_select(make_strategy("entropy"), pool, context)
        ablated = checked_select(ahfal(toggle="local", balance="none"), pool, context)
        assert ablated.tolist() == plain.tolist()

    def test_client_that_holds_few_classes_still_spends_its_budget(self) -> None:
        logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(4))
        logits[:, 2:] -= 100
        counts = [50, 3] + [0] * 8
        selected = checked_select(
            ahfal(), pool_of(logits, None), context_of(60, counts, [False] * 10)
        )
        assert len(selected) == 60


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 60),
    num_classes=st.integers(2, 8),
    share=st.floats(0.01, 0.99),
    scale=st.sampled_from([0.1, 1.0, 8.0, 60.0]),
    toggle=st.sampled_from(["by-class", "local", "hybrid"]),
    low_if=st.sampled_from(["local", "local-or-global"]),
)
def test_agrees_with_the_slow_version(
    seed: int,
    size: int,
    num_classes: int,
    share: float,
    scale: float,
    toggle: str,
    low_if: str,
) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(0, size, size)  # repeated rows make exact ties
    local = (scale * random.normal(size=(size, num_classes)))[rows]
    global_ = (scale * random.normal(size=(size, num_classes)))[rows]
    local[:, random.integers(num_classes)] += scale  # a class that is predicted often
    counts = random.integers(0, 30, num_classes) * random.integers(0, 2, num_classes)
    low = random.integers(0, 2, num_classes).astype(bool)
    ids = np.sort(random.choice(1000, size, replace=False))
    budget = max(1, math.floor(share * size))
    pool = PoolView(
        ids,
        {
            Signal.LOCAL_LOGITS: lambda: torch.tensor(local),
            Signal.GLOBAL_LOGITS: lambda: torch.tensor(global_),
        },
    )
    selected = checked_select(
        ahfal(toggle=toggle, low_if=low_if),
        pool,
        context_of(budget, counts.tolist(), low.tolist()),
    )
    expected = reference.select(
        ids.tolist(),
        local.tolist(),
        global_.tolist(),
        counts.tolist(),
        low.tolist(),
        budget,
        toggle,
        low_if,
    )
    assert set(selected.tolist()) == expected
