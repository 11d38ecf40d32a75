"""Alignment to a class distribution: budgets by hand, and whole runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.simulation import SharedRuns, Simulation

from ahfal_app.class_statistics import ClassStatistics, class_proportions
from ahfal_app.errors import ConfigError
from ahfal_app.query import (
    Aligned,
    PoolView,
    QueryContext,
    ScoringStrategy,
    Signal,
    checked_select,
    make_strategy,
)
from ahfal_app.query.core.alignment import alignment_budgets
from ahfal_app.server.preflight import check_settings

PLENTY = [1000] * 4


@pytest.mark.parametrize(
    ("counts", "target", "capacity", "budget", "expected"),
    [
        # 20 labels after the purchase, 5 of each class wanted: 1, 3, 5 and 1 are lacking.
        ([4, 2, 0, 4], [1, 1, 1, 1], PLENTY, 10, [1, 3, 5, 1]),
        # 12 wanted 3 of each; class 0 has more than enough, so 1 + 3 + 2 share 4 labels.
        ([5, 2, 0, 1], [1, 1, 1, 1], PLENTY, 4, [0, 1, 2, 1]),
        # The target's scale does not matter: shares are 1/2, 1/4, 1/4, 0.
        ([0, 0, 0, 0], [20, 10, 10, 0], PLENTY, 8, [4, 2, 2, 0]),
        # What class 2 cannot take goes to the others that lack samples (1 : 3 : 1).
        ([4, 2, 0, 4], [1, 1, 1, 1], [9, 9, 0, 9], 10, [2, 6, 0, 2]),
        # Nothing is lacking but what is not there: the rest follows the target.
        ([9, 9, 0, 0], [1, 1, 2, 0], [9, 9, 2, 9], 6, [2, 2, 2, 0]),
        # Only a class that the target does not want is left.
        ([0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 5], 4, [1, 1, 0, 2]),
    ],
)
def test_budgets_by_hand(
    counts: list[int], target: list[float], capacity: list[int], budget: int, expected: list[int]
) -> None:
    assert alignment_budgets(counts, target, capacity, budget).tolist() == expected


def test_a_target_without_any_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        alignment_budgets([1, 1], [0, 0], [5, 5], 2)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 50)),
        min_size=1,
        max_size=8,
    ),
    budget=st.integers(0, 100),
)
def test_budgets_are_spent_and_bring_the_labels_closer(
    rows: list[tuple[int, int, int]], budget: int
) -> None:
    counts, target, capacity = (list(column) for column in zip(*rows, strict=True))
    target[0] += 1
    budgets = alignment_budgets(counts, target, capacity, budget)
    assert budgets.sum() == min(budget, sum(capacity))
    assert (budgets >= 0).all()
    assert (budgets <= capacity).all()
    wanted = np.array(target) / sum(target) * (sum(counts) + budget)
    lacking = np.maximum(0, wanted - counts)
    if (np.array(capacity) >= budget).all():
        # Where every class has enough samples, no class gets what it does not lack.
        assert (budgets <= np.ceil(lacking + 1e-9)).all()
        before = np.abs(np.array(counts) - wanted).sum()
        after = np.abs(counts + budgets - wanted).sum()
        assert after <= before + 1e-9


def pool_and_context() -> tuple[PoolView, QueryContext]:
    generator = torch.Generator().manual_seed(0)
    logits = {s: torch.randn(120, 4, generator=generator) for s in Signal if "logits" in s.value}
    pool = PoolView(np.arange(120) * 2, {s: lambda v=v: v for s, v in logits.items()})
    statistics = ClassStatistics(np.full(4, 0.25), np.zeros(4), np.ones(4, dtype=bool))
    return pool, QueryContext(20, 4, np.array([20, 0, 0, 0]), statistics, 1, 0, 0)


def scoring(name: str, **parameters: str) -> ScoringStrategy:
    strategy = make_strategy(name, parameters)
    assert isinstance(strategy, ScoringStrategy)
    return strategy


@pytest.mark.parametrize("true_classes", [False, True])
def test_within_a_class_the_strategy_s_scores_decide(true_classes: bool) -> None:
    pool, context = pool_and_context()
    logits = pool.signal(Signal.LOCAL_LOGITS)
    classes = np.arange(120) % 4 if true_classes else logits.argmax(dim=1).numpy()
    strategy = scoring("entropy")
    aligned = Aligned(strategy, [1, 1, 1, 1], classes if true_classes else None)
    chosen = checked_select(aligned, pool, context)
    # 40 labels, 10 wanted of each: class 0 has enough, and 30 are lacking for 20 to buy.
    by_class = [[i for i in chosen if classes[i // 2] == c] for c in range(4)]
    assert [len(ids) for ids in by_class] == [0, 7, 7, 6]
    scores = strategy.scores(pool, context).numpy()
    for c, ids in enumerate(by_class):
        members = np.flatnonzero(classes == c)
        best = members[np.argsort(-scores[members], kind="stable")][: len(ids)]
        assert sorted(i // 2 for i in ids) == sorted(best.tolist())


def class_gap(shared_runs: SharedRuns, **settings: object) -> float:
    """Return how far the clients' labels are from the global classes at the end of a run."""
    outcome = shared_runs(alpha=0.3, strategy="entropy", **{"initial-fraction": 0.1}, **settings)
    last = [cycle for cycle in outcome.metrics.cycles if cycle.mean is not None][-1]
    return float(np.linalg.norm(np.array(last.deviation)))


@pytest.mark.slow
def test_runs_come_closer_to_the_true_classes(shared_runs: SharedRuns) -> None:
    fractions = {
        "model": "small-cnn",
        "query-fraction": 0.1,
        "target-fraction": 0.4,
        "num-clients": 5,
    }
    plain = class_gap(shared_runs, **fractions)
    known = {"align": "true-global", "align-membership": "true"}
    aligned = class_gap(shared_runs, **fractions, **known)
    assert aligned < plain


@pytest.mark.slow
@pytest.mark.parametrize("align", ["true-global", "estimated"])
def test_equal_seeds_give_equal_aligned_runs(
    simulation: Simulation, shared_runs: SharedRuns, align: str
) -> None:
    settings = {"strategy": "entropy", "align": align, "cycles": 2}
    first, second = simulation(settings), shared_runs(settings)
    assert first.result == second.result
    assert first.selections
    assert np.isfinite([row["score"] for row in first.selections]).all()
    plain = shared_runs(strategy="entropy", cycles=2)
    assert {row["sample"] for row in plain.selections} != {r["sample"] for r in first.selections}


def test_the_true_classes_are_those_of_all_samples(simulation: Simulation, monkeypatch) -> None:
    seen = []
    original = Aligned.__init__

    def record(self: Aligned, strategy: ScoringStrategy, target: list[float], classes=None) -> None:
        seen.append(target)
        original(self, strategy, target, classes)

    monkeypatch.setattr(Aligned, "__init__", record)
    outcome = simulation(strategy="entropy", align="true-global", cycles=2)
    assert len(seen) == 3
    # Digits: 1,437 training samples, spread over the clients as the run's folder tells.
    import json

    counts = json.loads((outcome.folder / "partition.json").read_text())["counts"]
    expected = class_proportions(np.sum(counts, axis=0))
    for target in seen:
        np.testing.assert_allclose(class_proportions(target), expected)


def test_what_gives_no_scores_cannot_be_aligned() -> None:
    with pytest.raises(ConfigError, match=r"align='estimated': allowed is 'none'.*ahfal"):
        check_settings({"strategy": "random", "align": "estimated"})
