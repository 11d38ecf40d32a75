from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategy_cases import context_for, pool_of

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.query import Signal, checked_select, make_strategy

#: Of the first class, the less certain the earlier.
SHARES = (0.5, 0.6, 0.7, 0.8)

# No class has low variance, so that the local model's entropy counts alone.
HIGH = ClassStatistics(np.array([0.5, 0.5]), np.zeros(2), np.zeros(2, dtype=bool))


def chosen(
    places: list[float],
    labelled: list[tuple[float, int]],
    budget: int,
    parameters: dict[str, Scalar],
    shares: tuple[float, ...] = SHARES,
    counts: tuple[int, int] = (3, 3),
) -> list[int]:
    logits = [(math.log(share + 1e-9), math.log(1 - share + 1e-9)) for share in shares]
    pool = pool_of(
        {
            Signal.LOCAL_LOGITS: logits,
            Signal.GLOBAL_LOGITS: logits,
            Signal.LOCAL_EMBEDDINGS: [[place] for place in places],
            Signal.LABELLED_LOCAL_EMBEDDINGS: torch.tensor([[place] for place, _ in labelled]).view(
                len(labelled), 1
            ),
        }
    )
    context = context_for(
        budget,
        2,
        class_counts_C=np.array(counts),
        statistics=HIGH,
        labels_L=np.array([label for _, label in labelled], np.int64),
    )
    strategy = make_strategy("ahfal-cover", parameters)
    return [int(i) for i in checked_select(strategy, pool, context)]


class TestByHand:
    PLACES = (0.0, 0.5, 5.0, 9.0)

    def test_the_candidate_furthest_from_labelled_samples_of_the_class_is_taken(self) -> None:
        # Candidates of one label are 0, 1 and 2; of these 2 is furthest from the label at 0.
        anchors = [(0.0, 0), (5.0, 1)]
        assert chosen(self.PLACES, anchors, 1, {"candidates-per-label": 3.0}) == [2]
        # Sample 3 is further, and is a candidate of four.
        assert chosen(self.PLACES, anchors, 1, {"candidates-per-label": 4.0}) == [3]
        # Half a candidate counts as one.
        assert chosen(self.PLACES, anchors, 1, {"candidates-per-label": 2.5}) == [2]

    def test_without_a_label_of_the_class_it_begins_with_the_highest_score(self) -> None:
        assert chosen(self.PLACES, [(9.0, 1)], 2, {"candidates-per-label": 2.0}) == [0, 3]

    def test_without_balance_all_labels_count(self) -> None:
        anchors = [(0.0, 0), (9.0, 1)]
        parameters: dict[str, Scalar] = {"balance": "none", "candidates-per-label": 4.0}
        assert chosen(self.PLACES, anchors, 1, parameters) == [2]

    def test_classes_take_turns(self) -> None:
        # Samples 0 to 3 are of the first class, 4 and 5 of the second; equal counts, two each.
        shares = (*SHARES, 0.3, 0.2)
        picks = chosen([*self.PLACES, 1.0, 2.0], [], 4, {"candidates-per-label": 1.0}, shares)
        assert picks == [0, 4, 1, 5]


@given(
    size=st.integers(0, 30),
    seed=st.integers(0, 1000),
    budget=st.integers(0, 30),
    balance=st.sampled_from(["inverse-count", "representation-ratio", "none"]),
)
def test_with_one_candidate_a_label_it_selects_what_ahfal_does(
    size: int, seed: int, budget: int, balance: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 4, generator=generator)
    pool = pool_of(
        {
            Signal.LOCAL_LOGITS: logits,
            Signal.GLOBAL_LOGITS: torch.randn(size, 4, generator=generator),
            Signal.LOCAL_EMBEDDINGS: torch.randn(size, 3, generator=generator),
            Signal.LABELLED_LOCAL_EMBEDDINGS: torch.randn(5, 3, generator=generator),
        }
    )
    context = context_for(budget, 4, labels_L=np.arange(5) % 4)
    selected = [
        set(checked_select(make_strategy(*case), pool, context).tolist())
        for case in (
            ("ahfal", {"balance": balance}),
            ("ahfal-cover", {"balance": balance, "candidates-per-label": 1.0}),
        )
    ]
    assert selected[0] == selected[1]


@given(seed=st.integers(0, 1000), budget=st.integers(1, 25), many=st.integers(1, 6))
def test_agrees_with_a_slow_version(seed: int, budget: int, many: int) -> None:
    generator = np.random.default_rng(seed)
    size, classes = 30, 3
    logits, places = generator.normal(size=(size, classes)), generator.normal(size=(size, 2))
    anchors, labels = generator.normal(size=(4, 2)), generator.integers(0, 2, 4)
    pool = pool_of(
        {
            Signal.LOCAL_LOGITS: logits,
            Signal.GLOBAL_LOGITS: logits,
            Signal.LOCAL_EMBEDDINGS: places,
            Signal.LABELLED_LOCAL_EMBEDDINGS: anchors,
        }
    )
    context = context_for(budget, classes, labels_L=labels)
    strategy = make_strategy("ahfal-cover", {"candidates-per-label": float(many)})
    selected = checked_select(strategy, pool, context)
    plain = checked_select(make_strategy("ahfal", {}), pool, context)
    predicted = logits.argmax(axis=1)
    # Of each class as many as by AHFAL.
    budgets = np.bincount(predicted[plain], minlength=classes)
    expected = [
        _slow(logits, places, anchors[labels == c], np.flatnonzero(predicted == c), number, many)
        for c, number in enumerate(budgets)
    ]
    in_turns = [
        picks[turn]
        for turn in range(max(map(len, expected)))
        for picks in expected
        if turn < len(picks)
    ]
    assert selected.tolist() == in_turns


def _slow(
    logits: np.ndarray,
    places: np.ndarray,
    anchors: np.ndarray,
    members: np.ndarray,
    number: int,
    many: int,
) -> list[int]:
    def entropy(i: int) -> float:
        shares = np.exp(logits[i]) / np.exp(logits[i]).sum()
        return float(-(shares * np.log(shares)).sum())

    candidates = sorted((int(i) for i in members), key=lambda i: -entropy(i))[: many * number]
    if number >= len(candidates):
        return candidates
    taken: list[int] = []
    near = [tuple(anchor) for anchor in anchors]
    while len(taken) < number:
        if not near:
            best = candidates[0]
        else:
            left = [i for i in candidates if i not in taken]
            best = max(left, key=lambda i: min(math.dist(places[i], each) for each in near))
        taken.append(best)
        near.append(tuple(places[best]))
    return taken


@pytest.mark.parametrize("value", [0.9, 0.0, -1.0])
def test_fewer_candidates_than_labels_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="candidates-per-label"):
        make_strategy("ahfal-cover", {"candidates-per-label": value})
