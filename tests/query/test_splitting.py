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
from ahfal_app.query import PoolView, QueryContext, Signal
from ahfal_app.query.core.coordination import FederationFacts, coordinated_here
from ahfal_app.query.core.questions import Answers, Question
from ahfal_app.query.core.splitting import (
    Bounds,
    MissingSplit,
    Split,
    class_budgets,
    class_share,
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
