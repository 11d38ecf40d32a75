"""Clients that choose together: hand-computed cases, and what must hold whoever they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.coordinating import chosen_together, contexts_for, pool_at

from ahfal_app.errors import InvalidSelection
from ahfal_app.query import PoolView, checked_select, make_strategy
from ahfal_app.query.coordinated_typicality import Turns, moved
from ahfal_app.query.core.coordination import (
    CoordinatedStrategy,
    FederationFacts,
    conducted,
    together,
)
from ahfal_app.query.core.questions import (
    LARGEST_PART,
    Answer,
    Answers,
    ClearForm,
    Question,
    Step,
    SumForm,
    check_answer,
    joined,
    parted,
)
from ahfal_app.query.core.reveals import MEANINGS, Reveal

COVERING: dict[str, Any] = {"normalise": False, "least-region": 1}
PROB_COVER = {**COVERING, "radius": 1.5}

NAMES = ("coordinated-prob-cover", "coordinated-max-herding", "coordinated-typicality")


def made(name: str, **parameters: Any) -> CoordinatedStrategy:
    values = {key.replace("_", "-"): value for key, value in parameters.items()}
    strategy = make_strategy(name, values)
    assert isinstance(strategy, CoordinatedStrategy)
    return strategy


class Heard:
    """A strategy whose questions and answers are heard."""

    def __init__(self, strategy: CoordinatedStrategy) -> None:
        self.questions: list[Question] = []
        self.answers: list[Answer] = []
        answer = strategy.answer

        def heard(question: Question, *rest: Any) -> Any:
            self.questions.append(question)
            memory, told = answer(question, *rest)
            self.answers.append(told)
            return memory, told

        strategy.answer = heard  # type: ignore[method-assign]


# --- hand-computed cases -----------------------------------------------------------------------


def test_prob_cover_of_two_clients_by_hand() -> None:
    """A tie goes to the lower client; then B alone has budget, and proposes its far sample."""
    strategy = make_strategy("coordinated-prob-cover", PROB_COVER)
    assert isinstance(strategy, CoordinatedStrategy)
    heard = Heard(strategy)
    pools = {0: pool_at([0, 1, 2]), 1: pool_at([0.5, 0.9, 5])}
    assert chosen_together(strategy, pools, contexts_for([1, 1])) == {0: [1], 1: [2]}
    points = [q.arrays["points"].ravel().tolist() for q in heard.questions if q.name == "count"]
    assert points == [[1.0, 0.7], [1.0, 0.7], [5.0], [5.0]]
    gains = [answer.sums["gains"].tolist() for answer in heard.answers if answer.sums]
    assert gains == [[3, 3], [2, 2], [0], [1]]


def test_prob_cover_alone_covers_less() -> None:
    strategy = make_strategy("prob-cover", {"radius": 1.5, "normalise": False, "model": "global"})
    chosen = [
        checked_select(strategy, pool_at(points), context).tolist()
        for points, context in zip(
            ([0, 1, 2], [0.5, 0.9, 5]), contexts_for([1, 1]).values(), strict=True
        )
    ]
    assert chosen == [[1], [0]]


def test_max_herding_of_two_clients_by_hand() -> None:
    strategy = make_strategy("coordinated-max-herding", COVERING)
    assert isinstance(strategy, CoordinatedStrategy)
    heard = Heard(strategy)
    pools = {0: pool_at([0, 1, 2]), 1: pool_at([0.5, 0.9, 1.4, 5])}
    assert chosen_together(strategy, pools, contexts_for([1, 1])) == {0: [2], 1: [1]}
    counts = [q.arrays["points"].ravel() for q in heard.questions if q.name == "count"]
    assert counts[0] == pytest.approx([1.0, 0.918451], abs=1e-6)
    assert counts[2] == pytest.approx([2.0])
    told = [answer for answer in heard.answers if answer.sums]
    gains = (told[0].sums["gains"] + told[1].sums["gains"]) / 2**20
    assert gains == pytest.approx([4.356753, 4.366062], abs=2e-6)
    assert told[0].clear["distances"][1] == pytest.approx(0.081549, abs=1e-6)
    assert told[1].clear["distances"][1] == pytest.approx(0.018451, abs=1e-6)
    assert (told[2].sums["gains"] + told[3].sums["gains"]) / 2**20 == pytest.approx(
        [0.689678], abs=2e-6
    )


def test_max_herding_takes_the_proposal_that_gains_most() -> None:
    """With budget left, B's second proposal, which gains 1, comes before A's.

    It covers A's sample that is 3 away by e⁻⁹, which is missing from the gain of A's proposal then.
    """
    strategy = made("coordinated-max-herding", **COVERING)
    heard = Heard(strategy)
    pools = {0: pool_at([0, 1, 2]), 1: pool_at([0.5, 0.9, 1.4, 5])}
    assert chosen_together(strategy, pools, contexts_for([1, 2])) == {0: [2], 1: [1, 3]}
    counts = [q.arrays["points"].ravel() for q in heard.questions if q.name == "count"]
    assert counts[0] == pytest.approx([1.0, 0.918451], abs=1e-6)
    assert counts[2] == pytest.approx([2.0, 5.0], abs=1e-6)
    assert counts[4] == pytest.approx([2.0], abs=1e-6)
    told = [answer.sums["gains"] for answer in heard.answers if answer.sums]
    gains = [(told[pair] + told[pair + 1]) / 2**20 for pair in (2, 4)]
    assert gains[0] == pytest.approx([0.689678, 1.0], abs=2e-6)
    assert gains[1] == pytest.approx([0.689678 - math.exp(-9)], abs=2e-6)
    accepted = [
        (q.arrays["accepted"].ravel().tolist(), q.arrays["buyers"].tolist())
        for q in heard.questions[::2]
        if q.name == "propose"
    ]
    assert accepted[0] == ([], [])
    assert accepted[1] == ([pytest.approx(0.918451, abs=1e-6)], [1])
    assert accepted[2] == ([pytest.approx(5.0)], [1])


def test_typicality_of_two_clients_by_hand() -> None:
    strategy = made("coordinated-typicality", normalise=False)
    pools = {0: pool_at([-1, 1, 9]), 1: pool_at([0.5, 10.5, 12])}
    contexts = contexts_for([1, 1])

    def told(name: str, **arrays: Any) -> list[Answer]:
        question = Question(name, arrays)
        return [strategy.answer(question, pools[c], contexts[c], None)[1] for c in pools]

    centres_KD = np.array([[0.0], [10.0]])
    sums = [answer.sums for answer in told("assign", centres=centres_KD)]
    totals_KD = (sums[0]["totals"] + sums[1]["totals"]) / 2**10
    counts_K = sums[0]["counts"] + sums[1]["counts"]
    assert (totals_KD.ravel().tolist(), counts_K.tolist()) == ([0.5, 31.5], [3, 3])
    centres_KD = moved(centres_KD, totals_KD, counts_K)
    assert centres_KD.ravel() == pytest.approx([1 / 6, 10.5])
    again = [each.sums["counts"] for each in told("assign", centres=centres_KD)]
    assert (again[0] + again[1]).tolist() == [3, 3]
    answers = told("distances", centres=centres_KD, ranks=np.array([0, 2]))
    assert answers[0].clear["distances"] == pytest.approx(np.array([[5 / 6, 1.5], [7 / 6, -1]]))
    assert answers[1].clear["distances"] == pytest.approx(np.array([[1 / 3, 0], [-1, 1.5]]))
    turns = Turns({0: 1, 1: 1}, Answers((0, 1), {}, {c: answers[c].clear for c in pools}))
    turns.go_round([0, 1])
    bought = turns.bought()
    chosen = {}
    for client, (clusters_B, ranks_B) in bought.items():
        arrays = {"centres": centres_KD, "clusters": clusters_B, "ranks": ranks_B}
        decision = Question("decision", arrays)
        chosen[client] = strategy.choose(decision, pools[client], contexts[client], {}).tolist()
    # B's .5 and A's 9: the other centre is nearer to B's 10.5, but its budget is spent.
    assert chosen == {0: [2], 1: [0]}
    assert bought[0][0].tolist() == [1]
    assert bought[1][0].tolist() == [0]


def test_typicality_as_a_whole_by_hand() -> None:
    strategy = made("coordinated-typicality", normalise=False, least_region=1, min_cluster_size=0)
    pools = {0: pool_at([-1, 1, 9]), 1: pool_at([0.5, 10.5, 12])}
    # The same centres in another order: 10.5 is first, and B's; near .17 A's 1 is next to B's .5.
    chosen = chosen_together(strategy, pools, contexts_for([1, 1]))
    assert chosen == {0: [1], 1: [1]}


def test_empty_clusters_keep_their_centres() -> None:
    centres_KD = moved(np.array([[1.0], [7.0]]), np.array([[6.0], [0.0]]), np.array([3, 0]))
    assert centres_KD.ravel().tolist() == [2.0, 7.0]


def test_clusters_lose_their_turn_and_more_distances_are_wanted() -> None:
    turns = Turns({4: 3}, Answers((4,), {}, {4: {"distances": np.array([[0.1, 0.2]])}}))
    turns.go_round([0])
    assert turns.lacks([0])
    turns.told(Answers((4,), {}, {4: {"distances": np.array([[0.3, -1.0]])}}))
    turns.go_round([0])
    # A third may be there, by what is known of this cluster, and of the other there is none.
    assert turns.lacks([0])
    assert not turns.lacks([1])
    turns.go_round([1])
    clusters_B, ranks_B = turns.bought()[4]
    assert (clusters_B.tolist(), ranks_B.tolist()) == ([0, 0, 1], [0, 1, 0])


def test_no_sum_is_asked_for_twice_where_more_distances_are_wanted() -> None:
    """Of a client that leaves in between, the difference would tell its part."""
    two: dict[str, Any] = {"max_clusters": 2, "min_cluster_size": 0}
    strategy = made("coordinated-typicality", normalise=False, least_region=1, **two)
    heard = Heard(strategy)
    # Of ⌈6/2⌉ + 1 that are known of each cluster, the far one has one; five are bought of these.
    chosen = chosen_together(strategy, {0: pool_at([*range(9), 100])}, contexts_for([6]))
    assert chosen[0] == [4, 9, 3, 5, 2, 6]
    asked = [q for q in heard.questions if q.name == "distances"]
    assert [q.arrays["ranks"].tolist() for q in asked] == [[0, 4], [4, 4]]
    told = [set(answer.sums) for answer in heard.answers if "distances" in answer.clear]
    assert told == [{"sizes", "labelled"}, set()]


# --- what holds for all ------------------------------------------------------------------------


def random_federation(seed: int, sizes: list[int], width: int = 3) -> dict[int, PoolView]:
    generator = np.random.default_rng(seed)
    return {
        client: pool_at(generator.standard_normal((size, width)), generator.random((2, width)))
        for client, size in enumerate(sizes)
    }


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=4),
    budgets=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_each_client_chooses_its_budget(
    name: str, sizes: list[int], budgets: list[int], seed: int
) -> None:
    contexts = contexts_for(budgets[: len(sizes)], [2] * len(sizes))
    pools = random_federation(seed, sizes)
    for strategy in (made(name), made(name, least_region=1), made(name, steps=4)):
        chosen = chosen_together(strategy, pools, contexts)
        for client, ids in chosen.items():
            assert len(set(ids)) == len(ids) == min(budgets[client], sizes[client])


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_asked_where_all_samples_are_equal(name: str) -> None:
    pools = {client: pool_at(np.ones((7, 2))) for client in range(3)}
    chosen = chosen_together(made(name), pools, contexts_for([0, 3, 6]))
    assert [len(chosen[client]) for client in range(3)] == [0, 3, 6]


@pytest.mark.parametrize(
    ("name", "parameters", "alone"),
    [
        ("coordinated-prob-cover", {"radius": 1e-6}, "prob-cover"),
        ("coordinated-max-herding", {}, "max-herding"),
    ],
)
def test_one_client_whose_regions_are_too_small_chooses_as_alone(
    name: str, parameters: dict[str, Any], alone: str
) -> None:
    pools = random_federation(3, [30])
    least = made(name, **{**parameters, "least_region": 1000})
    chosen = chosen_together(least, pools, contexts_for([9], [2]))
    strategy = make_strategy(alone, {**parameters, "model": "global"})
    expected = checked_select(strategy, pools[0], contexts_for([9], [2])[0])
    assert chosen[0] == expected.tolist()


def test_regions_of_too_few_samples_are_not_told() -> None:
    strategy = made("coordinated-prob-cover", radius=1.5, normalise=False, least_region=3)
    heard = Heard(strategy)
    pools = {0: pool_at([0, 1, 2]), 1: pool_at([0.5, 0.9, 5])}
    chosen_together(strategy, pools, contexts_for([2, 2]))
    told = [a.clear for a in heard.answers if "proposes" in a.clear]
    assert {float(each["proposes"][0]) for each in told[1::2]} == {0.0}  # B's have two samples.
    assert all(not each["point"].any() for each in told if not each["proposes"][0])


def test_disjoint_regions_are_bought_at_a_time() -> None:
    points = {0: pool_at([0, 0.1, 0.2]), 1: pool_at([9, 9.1, 9.2]), 2: pool_at([0.1, 9.1])}
    settings_: dict[str, Any] = {"radius": 1.0, "normalise": False, "least_region": 2}
    asked = {}
    for batch in ("disjoint", "one"):
        strategy = made("coordinated-prob-cover", batch=batch, **settings_)
        heard = Heard(strategy)
        chosen = chosen_together(strategy, points, contexts_for([1, 1, 0]))
        assert chosen == {0: [1], 1: [1], 2: []}
        asked[batch] = len(heard.questions)
    assert asked == {"disjoint": 6, "one": 12}  # Three clients; one pair of steps, or two.


def accepted_in_turn(
    budgets: list[int], points: list[list[float]], **parameters: Any
) -> list[list[float]]:
    """Return the points that each pair of steps of MaxHerding accepts, of samples on a line."""
    strategy = made("coordinated-max-herding", **{**COVERING, **parameters})
    heard = Heard(strategy)
    pools = {client: pool_at(each) for client, each in enumerate(points)}
    parts = together(strategy, pools, contexts_for(budgets))
    asked = [q for q in heard.questions[:: len(points)] if q.name == "propose"]
    asked.append(parts[0].decision)
    return [[round(float(x), 6) for x in q.arrays["accepted"].ravel()] for q in asked[1:]]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [[0.0], [9.0], [20.0], [1.5]]),
        ({"batch": 1}, [[0.0], [9.0], [20.0], [1.5]]),
        ({"batch": 2}, [[0.0, 9.0], [20.0, 1.5]]),
        ({"batch": 3}, [[0.0, 9.0, 20.0], [1.5]]),
        ({"batch": 9}, [[0.0, 9.0, 20.0], [1.5]]),
    ],
)
def test_several_points_are_accepted_at_a_time_by_falling_gain(
    parameters: dict[str, Any], expected: list[list[float]]
) -> None:
    """Clients with four, three, two and two equal samples, of which the last two lie 1.5 apart."""
    points = [[0.0] * 4, [9.0] * 3, [20.0] * 2, [1.5] * 2]
    assert accepted_in_turn([1, 1, 1, 1], points, **parameters) == expected


@pytest.mark.parametrize("radius", [0.5, 1.0])
def test_points_that_are_accepted_together_are_two_radii_apart(radius: float) -> None:
    near = 1.999 * radius
    apart = accepted_in_turn([1, 1], [[0.0] * 3, [2 * radius] * 2], radius=radius, batch=2)
    assert apart == [[0.0, 2 * radius]]
    assert accepted_in_turn([1, 1], [[0.0] * 3, [near] * 2], radius=radius, batch=2) == [
        [0.0],
        [pytest.approx(near, abs=1e-6)],
    ]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("coordinated-prob-cover", {"radius": 1.5}), ("coordinated-max-herding", {})],
)
@pytest.mark.parametrize(
    ("proposers", "proposed", "expected"),
    [
        ({}, [9.25], 1),
        ({"proposers": "with-budget"}, [9.25], 1),
        ({"proposers": "all"}, [1.0, 9.25], 0),
    ],
)
def test_clients_without_budget_propose_where_all_do(
    name: str,
    parameters: dict[str, Any],
    proposers: dict[str, Any],
    proposed: list[float],
    expected: int,
) -> None:
    """A has five samples around 1 and buys none; B has two at 9 and 9.5, and one on A's side."""
    strategy = made(name, **{**COVERING, **parameters, **proposers})
    heard = Heard(strategy)
    pools = {0: pool_at([0, 0.5, 1, 1.5, 2]), 1: pool_at([2.4, 9, 9.5])}
    assert chosen_together(strategy, pools, contexts_for([0, 1])) == {0: [], 1: [expected]}
    points = [q.arrays["points"].ravel() for q in heard.questions if q.name == "count"]
    assert len(points) == 2
    # Soft means lie a little to the side of the samples that weigh most.
    assert points[0] == pytest.approx(proposed, abs=0.04)
    if proposers.get("proposers") == "all":
        told = [answer for answer in heard.answers if answer.sums]
        assert told[0].clear["distances"].tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_clients_changes_nothing(name: str) -> None:
    pools, contexts = random_federation(5, [12, 9, 15]), contexts_for([3, 2, 4], [2, 2, 2])
    chosen = chosen_together(made(name), pools, contexts)
    backwards = {client: pools[client] for client in reversed(pools)}
    assert chosen_together(made(name), backwards, contexts) == chosen


@pytest.mark.parametrize("name", NAMES)
def test_who_replays_the_steps_comes_to_the_same(name: str) -> None:
    """What a client makes of the steps follows from them alone."""
    pools, contexts = random_federation(6, [14, 10]), contexts_for([4, 3], [2, 2])
    strategy = made(name)
    heard = Heard(strategy)
    parts = together(strategy, pools, contexts)
    chosen = {
        c: checked_select(strategy, pools[c], dataclasses.replace(contexts[c], coordinated=p))
        for c, p in parts.items()
    }
    again, memory = made(name), None
    for question, told in zip(heard.questions[1::2], heard.answers[1::2], strict=True):
        memory, answer = again.answer(question, pools[1], contexts[1], memory)
        for name_, values in told.sums.items():
            assert np.array_equal(answer.sums[name_], values)
        for name_, clear in told.clear.items():
            assert np.array_equal(answer.clear[name_], clear)
    part = dataclasses.replace(parts[1], memory=memory or {})
    context = dataclasses.replace(contexts[1], coordinated=part)
    assert checked_select(again, pools[1], context).tolist() == chosen[1].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_leaves_is_missed_by_nobody(name: str) -> None:
    """From the second step on it is gone: the others go on, and buy what is theirs."""
    pools, contexts = random_federation(7, [12, 9, 15]), contexts_for([3, 2, 4], [2, 2, 2])
    strategy = made(name)
    memories: dict[int, Any] = dict.fromkeys(pools)
    steps = []

    def ask(step: Step) -> Answers:
        steps.append(step)
        there = [0, 2] if len(steps) > 1 else [0, 1, 2]
        told = {}
        for client in there:
            question = Question(step.name, step.broadcast)
            memories[client], told[client] = strategy.answer(
                question, pools[client], contexts[client], memories[client]
            )
            check_answer(step, told[client])
        sums = {n: sum(a.sums[n] for a in told.values()) for n in step.sums}
        return Answers(tuple(there), sums, {c: a.clear for c, a in told.items()})  # type: ignore[arg-type]

    facts = FederationFacts({0: 3, 1: 2, 2: 4}, dict.fromkeys(pools, 2), {0: 12, 1: 9, 2: 15},
                            2, 3, 3, 2, 200)  # fmt: skip
    decisions = conducted(strategy.coordinator(facts), ask, facts.most_steps)
    for client in (0, 2):
        ids = strategy.choose(
            Question("decision", decisions[client]), pools[client], contexts[client],
            memories[client],
        )  # fmt: skip
        assert len(set(ids.tolist())) == contexts[client].budget


# --- what cannot be meant ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "question",
    [
        Question("something", {}),
        Question("propose", {}),
        Question("count", {"points": np.zeros((2, 3))}),
        Question("count", {"points": np.zeros((2, 5))}),
        Question("assign", {"centres": np.zeros((0, 3))}),
        Question("assign", {"centres": np.zeros(3)}),
        Question("distances", {"centres": np.zeros((2, 3)), "ranks": np.array([-1, 3])}),
        Question("distances", {"centres": np.zeros((2, 3)), "ranks": np.array([0, 2**24])}),
        Question("assign", {"centres": np.zeros((501, 3))}),
        Question("initial", {"clients": np.array([0]), "clusters": np.array([11])}),
        Question("initial", {"clients": np.array([1]), "clusters": np.array([1001])}),
    ],
)
def test_questions_that_no_coordinator_asks_are_refused(name: str, question: Question) -> None:
    pools, contexts = random_federation(1, [8]), contexts_for([2], [2])
    with pytest.raises(ValueError, match=r"allowed|samples"):
        made(name).answer(question, pools[0], contexts[0], None)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("coordinated-typicality", {"clusters": np.array([0, 0]), "ranks": np.array([0, 0])}),
        ("coordinated-typicality", {"clusters": np.array([0, 1]), "ranks": np.array([0, 9])}),
        ("coordinated-typicality", {"clusters": np.array([0, 2]), "ranks": np.array([0, 0])}),
        ("coordinated-typicality", {"clusters": np.zeros(3, int), "ranks": np.arange(3)}),
        ("coordinated-prob-cover", {"buyers": np.zeros(3, int)}),
    ],
)
def test_decisions_that_no_coordinator_makes_are_refused(name: str, arrays: dict[str, Any]) -> None:
    pools, contexts = random_federation(1, [8]), contexts_for([2], [2])
    whole = {"centres": np.array([[0.0, 0, 0], [9, 9, 9]]), **arrays}
    if "prob-cover" in name:
        whole = {"radius": np.array([1.0]), "accepted": np.zeros((3, 3)), **arrays}
    strategy = made(name, normalise=False)
    with pytest.raises(ValueError, match="decision"):
        strategy.choose(Question("decision", whole), pools[0], contexts[0], {})


def test_answers_are_held_to_the_form_of_their_step() -> None:
    step = Step("step", sums={"a": SumForm((2,), 5)}, clear={"b": ClearForm((1,), 0.0, 1.0)})
    good = Answer({"a": np.array([0, 5])}, {"b": np.array([0.5])})
    check_answer(step, good)
    for sums, clear in (
        ({}, good.clear),
        ({"a": np.array([0, 6])}, good.clear),
        ({"a": np.array([-1, 0])}, good.clear),
        ({"a": np.array([0, 5, 0])}, good.clear),
        ({"a": np.array([0.0, 5.0])}, good.clear),
        (good.sums, {"b": np.array([1.5])}),
        (good.sums, {"b": np.array([np.nan])}),
        (good.sums, {"b": np.array([0.5]), "c": np.array([0.5])}),
    ):
        with pytest.raises(ValueError, match="step"):
            check_answer(step, Answer(sums, clear))  # type: ignore[arg-type]


def test_sums_travel_as_one_vector_that_counts_clients() -> None:
    forms = {"b": SumForm((2, 2), 9, is_signed=True), "a": SumForm((1,), 3)}
    one = joined({"b": np.array([[1, -2], [3, 4]]), "a": np.array([2])})
    assert one.tolist() == [1, 2, 1, -2, 3, 4]
    sums = parted(one + one, forms, 2)
    assert sums["b"].tolist() == [[2, -4], [6, 8]]
    signs = np.array([1, -1, 1, 1, 1, 1])
    for wrong, clients in ((one + one, 3), (one[:-1], 1), (5 * one, 1), (signs * one, 1)):
        with pytest.raises(ValueError, match=r"clients|allowed"):
            parted(wrong, forms, clients)


def test_a_sum_that_might_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="part of a sum"):
        SumForm((1,), LARGEST_PART + 1)


def test_a_coordinator_that_never_ends_is_stopped() -> None:
    def endless() -> Generator[Step, Answers, Any]:
        while True:
            yield Step("again")

    with pytest.raises(InvalidSelection, match="more than 3 times"):
        conducted(endless(), lambda step: Answers((0,), {}, {0: {}}), 3)


def test_what_is_revealed_is_said() -> None:
    assert set(MEANINGS) == set(Reveal)
    assert made("coordinated-prob-cover").reveals == {"centroids", "distances", "radius"}
    assert made("coordinated-prob-cover", radius=0.5).reveals == {"centroids", "distances"}
    assert made("coordinated-typicality", initial="public").reveals == {"distances"}
    assert made("coordinated-max-herding").reveals == {"centroids", "distances"}
    few = made("coordinated-max-herding", least_region=4)
    assert few.reveals == {"centroids", "embeddings", "distances"}
    assert make_strategy("prob-cover").reveals == frozenset()
