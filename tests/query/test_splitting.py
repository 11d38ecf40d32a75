"""How one budget is split by what the clients' samples are, without any message.

Shape suffixes: M clients, N samples of a pool, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.errors import NonFiniteSignal
from ahfal_app.query import PoolView, QueryContext, ScoringStrategy, Signal, make_strategy
from ahfal_app.query.core.coordination import (
    Coordinator,
    Decisions,
    FederationFacts,
    Memory,
    coordinated_here,
    gathered,
)
from ahfal_app.query.core.questions import Answers, Question, Step
from ahfal_app.query.core.splitting import (
    Bounds,
    MissingSplit,
    Split,
    ThresholdSplit,
    class_budgets,
    class_share,
    comparable_strategies,
    rounded,
)

Granted = tuple[int, ...]


def pool_of(logits_NC: Tensor) -> PoolView:
    """Return a pool that the global model sees like this."""
    return PoolView(np.arange(len(logits_NC)), {Signal.GLOBAL_LOGITS: lambda: logits_NC})


def context_of(counts_C: Sequence[int], client: int) -> QueryContext:
    zeros_C = np.zeros(len(counts_C))
    return QueryContext(
        budget=0,
        num_classes=len(counts_C),
        class_counts_C=np.array(counts_C, np.int64),
        statistics=ClassStatistics(zeros_C, zeros_C, zeros_C.astype(bool)),
        seed=0,
        client=client,
        cycle=1,
        labels_L=np.repeat(np.arange(len(counts_C)), counts_C),
    )


def facts_of(
    split: Split, pools: Mapping[int, PoolView], counts_MC: Sequence[Sequence[int]], labels: int
) -> FederationFacts:
    return FederationFacts(
        budgets=dict.fromkeys(pools, 0),
        labelled={c: sum(counts_MC[c]) for c in pools},
        pools={c: len(pool) for c, pool in pools.items()},
        num_classes=len(counts_MC[0]),
        width=1,
        seed=0,
        cycle=1,
        most_steps=split.most_steps,
        shared=labels,
    )


def granted(
    split: Split, logits_M: Sequence[Tensor], counts_MC: Sequence[Sequence[int]], labels: int
) -> Granted:
    """Return the labels of each client."""
    pools = {c: pool_of(logits_NC) for c, logits_NC in enumerate(logits_M)}
    contexts = {c: context_of(counts_MC[c], c) for c in pools}
    facts = facts_of(split, pools, counts_MC, labels)
    _, decisions = coordinated_here(split, facts, pools, contexts)
    assert all(int(each["labels"][0]) <= int(each["most"][0]) for each in decisions.values())
    return tuple(int(decisions[c]["labels"][0]) for c in sorted(pools))


# --- missing -----------------------------------------------------------------------------------


def predicted(*counts: int) -> Tensor:
    """Return logits of so many samples that are taken for each class."""
    return torch.eye(len(counts)).repeat_interleave(torch.tensor(counts), dim=0)


def test_labels_go_to_the_classes_that_all_lack_and_to_who_seems_to_have_them():
    # Labelled are 8, 4 and 0 of each class; with 6 more each should have 6, so that 0, 2 and 6
    # are lacking: 1.5 and 4.5 of 6 labels, of which the tie gives the lower class one.
    assert class_budgets(np.array([8, 4, 0]), np.array([30, 20, 4]), 6).tolist() == [0, 2, 4]
    # 2 · 5/20 + 4 · 1/4 = 1.5, and 2 · 15/20 + 4 · 3/4 = 4.5; the tie gives the first client one.
    logits_M = [predicted(10, 5, 1), predicted(20, 15, 3)]
    assert granted(MissingSplit(), logits_M, [(6, 0, 0), (2, 4, 0)], 6) == (2, 4)


def test_a_share_is_exact():
    share = class_share(np.array([0, 2, 4]), np.array([10, 5, 1]), np.array([30, 20, 4]))
    assert share == 1.5
    assert class_share(np.array([0, 0]), np.array([0, 3]), np.array([0, 3])) == 0


def test_what_nobody_can_sell_of_the_lacking_classes_is_split_by_share():
    # Two samples of the class that lacks, both of the first client; of the other four labels
    # sizes of 12 and 36 (with labels) get one and three.
    logits_M = [predicted(8, 2), predicted(32, 0)]
    assert granted(MissingSplit(), logits_M, [(2, 0), (4, 0)], 6) == (3, 3)


def test_who_has_nothing_that_is_lacking_gets_a_floor_and_nobody_more_than_the_cap():
    logits_M, counts_MC = [predicted(9, 0), predicted(1, 30), predicted(20, 10)], [(5, 0)] * 3
    assert granted(MissingSplit(), logits_M, counts_MC, 8) == (0, 6, 2)
    assert granted(MissingSplit(floor=1), logits_M, counts_MC, 8) == (1, 5, 2)
    assert granted(MissingSplit(cap=4), logits_M, counts_MC, 8) == (0, 4, 4)
    # Four equal shares are eleven labels; the first has three samples, and takes no more.
    assert granted(MissingSplit(), [predicted(0, 3), predicted(9, 3)], [(9, 0)] * 2, 8) == (3, 5)


def test_rounding_parts_no_two_equal_remainders():
    assert rounded([4 / 3, 7 / 3, 7 / 3], 6) == [2, 2, 2]
    assert rounded([7 / 3, 4 / 3, 7 / 3], 6) == [3, 1, 2]
    assert rounded([2.0, 0.0, 0.0], 2) == [2, 0, 0]
    assert rounded([0.0, 0.0], 0) == [0, 0]
    # Of six, one client with two has left: the others get three halves of what they had.
    assert rounded([1.0, 3.0], 6) == [2, 4]


@given(
    st.lists(st.floats(0, 50), min_size=1, max_size=8).filter(any),
    st.integers(0, 200),
)
def test_rounded_shares_sum_up_and_are_near(shares: list[float], labels: int):
    counts = rounded(shares, labels)
    assert sum(counts) == labels
    for share, count in zip(shares, counts, strict=True):
        assert abs(count - share * labels / sum(shares)) <= 1 + 1e-6


@given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 3, *[st.integers(0, 4)] * 3), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(3, 9),
)
def test_whatever_clients_have_no_label_is_lost_that_they_can_take(
    clients: list[tuple[int, ...]], labels: int, floor: int, cap: int
):
    split = MissingSplit(floor, cap)
    logits_M = [predicted(*each[:3]) for each in clients]
    counts_MC = [each[3:] for each in clients]
    parts = granted(split, logits_M, counts_MC, labels)
    sizes = [sum(each[:3]) for each in clients]
    assert sum(parts) == min(labels, sum(min(size, cap) for size in sizes))
    if labels >= floor * len(clients):
        assert all(n >= min(floor, size) for n, size in zip(parts, sizes, strict=True))


def test_floors_are_split_themselves_where_they_are_more_than_there_is():
    facts = FederationFacts(
        budgets={0: 0, 1: 0, 2: 0},
        labelled={0: 0, 1: 0, 2: 0},
        pools={0: 9, 1: 9, 2: 1},
        num_classes=2,
        width=1,
        seed=0,
        cycle=1,
        most_steps=2,
        shared=4,
    )
    bounds = Bounds.of(facts, floor=3, cap=9)
    # Of floors 3, 3 and 1: 12/7, 12/7 and 4/7.
    assert bounds.fewest == {0: 2, 1: 2, 2: 0}
    assert bounds.most == {0: 9, 1: 9, 2: 1}


def test_a_client_that_leaves_leaves_its_labels_to_the_others():
    split = MissingSplit()
    facts = facts_of(split, {c: pool_of(predicted(9, 9)) for c in range(3)}, [(9, 0)] * 3, 6)
    steps = split.coordinator(facts)
    next(steps)
    sums = {"labelled": np.array([27, 0]), "predicted": np.array([27, 27])}
    steps.send(Answers((0, 1, 2), sums, {0: {}, 1: {}, 2: {}}))
    with pytest.raises(StopIteration) as end:
        steps.send(Answers((0, 2), {}, {c: {"share": np.array([2.0])} for c in (0, 2)}))
    assert {c: int(each["labels"][0]) for c, each in end.value.value.items()} == {0: 3, 2: 3}


@pytest.mark.parametrize(
    "question",
    [
        Question("choose", {}),
        Question("shares", {"budgets": np.array([1, 0]), "predicted": np.array([1, 9])}),
        Question("shares", {"budgets": np.array([5, 99]), "predicted": np.array([9, 9])}),
        Question("shares", {"budgets": np.array([1]), "predicted": np.array([9, 9])}),
        Question("shares", {"budgets": np.array([1, 1])}),
    ],
)
def test_a_client_refuses_what_the_coordinator_does_not_ask(question: Question):
    pool, context = pool_of(predicted(3, 2)), context_of((1, 1), 0)
    memory, _ = MissingSplit().answer(Question("classes", {}), pool, context, None)
    with pytest.raises(ValueError, match="allowed"):
        MissingSplit().answer(question, pool, context, memory)


def test_shares_come_after_classes():
    question = Question("shares", {"budgets": np.array([1, 1]), "predicted": np.array([9, 9])})
    with pytest.raises(ValueError, match="allowed is 'classes', and then 'shares'"):
        MissingSplit().answer(question, pool_of(predicted(3, 2)), context_of((1, 1), 0), None)


# --- threshold ---------------------------------------------------------------------------------


class Known(ScoringStrategy):
    """Scores that are the first logits."""

    name = "known"
    paper = "a test"
    signals = frozenset({Signal.GLOBAL_LOGITS})

    @property
    def comparable_scores(self) -> bool:
        return True

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        return pool.signal(Signal.GLOBAL_LOGITS)[:, 0]


def scored(*scores: float) -> Tensor:
    return torch.tensor(scores, dtype=torch.float64)[:, None]


def threshold(floor: int = 0, cap: int = 0, edges: int = 4) -> ThresholdSplit:
    return ThresholdSplit(floor, cap, Known(), edges)


THREE = [scored(0.9, 0.8, 0.3, 0.2), scored(0.7, 0.6, 0.1), scored(0.85, 0.05)]


def asked(split: ThresholdSplit, scores_M: Sequence[Tensor], labels: int) -> list[Step]:
    """Return the steps that a split takes."""
    steps: list[Step] = []

    class Watched(ThresholdSplit):
        def coordinator(self, facts: FederationFacts) -> Coordinator:
            inner = split.coordinator(facts)
            answers: Answers | None = None
            while True:
                try:
                    step = next(inner) if answers is None else inner.send(answers)
                except StopIteration as end:
                    decisions: Decisions = end.value
                    return decisions
                answers = yield step
                steps.append(Step(step.name, step.broadcast | answers.sums))

    granted(Watched(split.floor, split.cap, Known()), scores_M, [(1,)] * len(scores_M), labels)
    return steps


def test_the_threshold_is_found_by_counting():
    first, second, last = asked(threshold(), THREE, 4)
    assert first.broadcast["edges"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert first.broadcast["above"].tolist() == [9, 6, 5, 3, 0]
    assert second.broadcast["edges"].tolist() == [0.5, 0.5625, 0.625, 0.6875, 0.75]
    assert second.broadcast["above"].tolist() == [5, 5, 4, 4, 3]
    assert last.broadcast["edges"].tolist() == [0.6875, 0.6875]
    assert granted(threshold(), THREE, [(1,)] * 3, 4) == (2, 1, 1)
    assert granted(threshold(edges=256), THREE, [(1,)] * 3, 4) == (2, 1, 1)


def test_what_no_client_may_have_is_not_bought():
    (first, _) = asked(threshold(cap=1), THREE, 4)
    assert first.broadcast["above"].tolist() == [3, 3, 3, 2, 0]
    assert granted(threshold(cap=1), THREE, [(1,)] * 3, 4) == (1, 1, 1)


def test_equal_scores_are_split_by_how_many_each_has():
    equal = [scored(*[0.5] * count) for count in (3, 2, 1)]
    # Of two labels 1, 2/3 and 1/3.
    assert granted(threshold(edges=256), equal, [(1,)] * 3, 2) == (1, 1, 0)


def test_scores_at_the_highest_there_can_be_are_split_too():
    highest = [scored(1.0, 1.0, 1.0), scored(1.0, 0.2), scored(0.9)]
    assert granted(threshold(cap=9), highest, [(1,)] * 3, 4) == (3, 1, 0)
    assert granted(threshold(cap=9), highest, [(1,)] * 3, 3) == (2, 1, 0)


def test_a_floor_is_granted_before_scores_count_and_a_cap_after():
    assert granted(threshold(floor=1), THREE, [(1,)] * 3, 4) == (2, 1, 1)
    low = [scored(0.9, 0.8, 0.7, 0.6), scored(0.1, 0.05), scored(0.2)]
    assert granted(threshold(cap=9), low, [(1,)] * 3, 4) == (4, 0, 0)
    assert granted(threshold(floor=1), low, [(1,)] * 3, 4) == (2, 1, 1)
    assert granted(threshold(cap=2), low, [(1,)] * 3, 4) == (2, 1, 1)
    assert granted(threshold(floor=3), low, [(1,)] * 3, 4) == (2, 1, 1)


def test_nothing_is_left_unbought_that_a_client_may_have():
    few = [scored(0.9), scored(), scored(0.1, 0.2)]
    assert granted(threshold(cap=9), few, [(1,)] * 3, 8) == (1, 0, 2)


SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.500001, 0.9, 1.0]), max_size=8)


@given(st.lists(SCORES, min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 9))
def test_the_highest_scores_of_all_are_bought_but_for_ties_and_caps(
    scores_M: list[list[float]], labels: int, cap: int
):
    logits_M = [scored(*scores) for scores in scores_M]
    parts = granted(threshold(cap=cap, edges=64), logits_M, [(1,)] * len(scores_M), labels)
    assert sum(parts) == min(labels, sum(min(len(scores), cap) for scores in scores_M))
    taken = [sorted(s, reverse=True)[:n] for s, n in zip(scores_M, parts, strict=True)]
    left = [
        sorted(s, reverse=True)[n] if n < min(cap, len(s)) else -1.0
        for s, n in zip(scores_M, parts, strict=True)
    ]
    lowest = min((scores[-1] for scores in taken if scores), default=2.0)
    # What is left where more might be taken is not above what was taken anywhere.
    assert max(left) <= lowest


def test_who_leaves_while_the_threshold_is_found_is_made_up_for_by_the_others():
    split = threshold(cap=9)
    pools = {c: pool_of(logits_NC) for c, logits_NC in enumerate(THREE)}
    contexts = {c: context_of((1,), c) for c in pools}
    facts = facts_of(split, pools, [(1,)] * 3, 4)
    steps, answers, there = split.coordinator(facts), None, [0, 1, 2]
    memories: dict[int, Memory | None] = dict.fromkeys(pools)
    try:
        for number in range(9):
            step = next(steps) if answers is None else steps.send(answers)
            told = {}
            for client in there:
                question = Question(step.name, step.broadcast)
                memories[client], told[client] = split.answer(
                    question, pools[client], contexts[client], memories[client]
                )
            if number == 0:
                # Three of the four highest scores are gone with the first and the last.
                there = [1]
            answers = gathered(step, told)
    except StopIteration as end:
        decisions: Decisions = end.value
    assert {c: int(each["labels"][0]) for c, each in decisions.items()} == {1: 3}


@pytest.mark.parametrize(
    "question",
    [
        Question("choose", {}),
        Question("counts", {"edges": np.array([0.5, 0.1]), "bounds": np.array([0, 4])}),
        Question("counts", {"edges": np.zeros(5000), "bounds": np.array([0, 4])}),
        Question("counts", {"edges": np.array([0.1, 0.5]), "bounds": np.array([-1, 4])}),
        Question("counts", {"edges": np.array([0, 1]), "bounds": np.array([0, 4])}),
        Question("last", {"edges": np.linspace(0, 1, 9), "bounds": np.array([0, 4])}),
    ],
)
def test_a_client_counts_above_no_other_edges(question: Question):
    with pytest.raises(ValueError, match="allowed"):
        threshold().answer(question, pool_of(THREE[0]), context_of((1,), 0), None)


def test_scores_that_are_no_numbers_stop_it():
    question = Question("counts", {"edges": np.array([0.0, 1.0]), "bounds": np.array([0, 4])})

    class Broken(Known):
        def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
            return super().scores(pool, context) / 0.0 * 0.0

    split = ThresholdSplit(0, 0, Broken())
    with pytest.raises(NonFiniteSignal, match="scores"):
        split.answer(question, pool_of(scored(0.5)), context_of((1,), 0), None)


@pytest.mark.parametrize("name", ["entropy", "margin", "least-confidence"])
def test_scores_of_the_global_model_are_comparable_and_in_their_range(name: str):
    assert isinstance(local := make_strategy(name), ScoringStrategy)
    assert not local.comparable_scores
    strategy = make_strategy(name, {"model": "global"})
    assert isinstance(strategy, ScoringStrategy)
    assert strategy.comparable_scores
    lowest, highest = strategy.score_range(3)
    logits_NC = torch.tensor([[0.0, 0.0, 0.0], [90.0, 0.0, -90.0], [1.0, 2.0, 3.0]])
    scores_N = strategy.scores(pool_of(logits_NC), context_of((1, 1, 1), 0))
    assert scores_N.argmax() == 0
    assert lowest <= float(scores_N.min())
    assert float(scores_N.max()) <= highest + 1e-12


def test_others_are_named_that_are_comparable():
    assert comparable_strategies() == ["entropy", "least-confidence", "margin"]
