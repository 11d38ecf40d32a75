"""FairFAL by the mean imbalance of all clients, by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_models import FakeModels
from support.pools import context_of, log

from ahfal_app.parameters import Scalar
from ahfal_app.query import (
    LocalOnlyTraining,
    Outputs,
    PoolView,
    QueryContext,
    Signal,
    checked_select,
    make_strategy,
)
from ahfal_app.query.core.coordination import CoordinatedStrategy, FederationFacts, together
from ahfal_app.query.core.questions import Answers, ClearForm, Question, Step

#: Three labelled of class 0 and one of class 1: π = (.6, .4), γ = 2/3.
SKEWED = ([0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]), [0, 0, 0, 1]
#: One of each: π = (.75, .25), γ = 1/3.
MORE_SKEWED = ([0.9, 0.1], [0.6, 0.4]), [0, 1]
#: Of one class: γ = 1, of which the formula knows no better.
ONE_CLASS = ([0.9, 0.1], [0.8, 0.2]), [0, 0]
NO_LABELS: tuple[tuple[list[float], ...], list[int]] = (), []


class LocalOnly(FakeModels):
    """A local-only model that is sure of what the global one is unsure of."""

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        return Outputs(self.logits, self.embeddings)

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        return Outputs(*self.labelled)


def client(labelled: tuple[Any, list[int]], number: int) -> tuple[PoolView, QueryContext]:
    """Return a client's pool of four samples, of which it buys one, and its context."""
    even, sure = [0.5, 0.5], [0.99, 0.01]
    rows, labels = labelled
    labelled_LC = log(*rows) if rows else torch.zeros(0, 2)
    embeddings_LD = torch.ones(len(rows), 2)
    signals: dict[Signal, Any] = {
        Signal.GLOBAL_LOGITS: log(even, sure, sure, sure),
        Signal.GLOBAL_EMBEDDINGS: torch.ones(4, 2),
        Signal.LABELLED_GLOBAL_LOGITS: labelled_LC,
        Signal.LABELLED_GLOBAL_EMBEDDINGS: embeddings_LD,
    }
    models = LocalOnly(log(sure, sure, sure, even), torch.ones(4, 2), (labelled_LC, embeddings_LD))
    pool = PoolView(np.arange(4), {s: lambda v=v: v for s, v in signals.items()}, models)
    counts = np.bincount(labels, minlength=2).tolist()
    context = context_of(1, counts, labels_L=np.array(labels, dtype=np.int64))
    return pool, dataclasses.replace(context, client=number)


def made(parameters: dict[str, Scalar] | None = None) -> CoordinatedStrategy:
    strategy = make_strategy("coordinated-fairfal", {"oversample": 1.0, **(parameters or {})})
    assert isinstance(strategy, CoordinatedStrategy)
    return strategy


def mean_of(clients: list[Any], parameters: dict[str, Scalar] | None = None) -> float:
    """Return the imbalance that is decided, the same for all."""
    each = {number: client(labelled, number) for number, labelled in enumerate(clients)}
    pools = {number: pool for number, (pool, _) in each.items()}
    contexts = {number: context for number, (_, context) in each.items()}
    parts = together(made(parameters), pools, contexts)
    means = {float(part.decision.arrays["imbalance"][0]) for part in parts.values()}
    (mean,) = means
    return mean


@pytest.mark.parametrize(
    ("clients", "parameters", "expected"),
    [
        ([SKEWED, MORE_SKEWED], {}, 1 / 2),
        ([SKEWED, MORE_SKEWED, ONE_CLASS, NO_LABELS], {}, 1 / 2),
        ([SKEWED, MORE_SKEWED, ONE_CLASS, NO_LABELS], {"single-class": "count"}, 2 / 3),
        ([SKEWED], {}, 2 / 3),
        ([ONE_CLASS, NO_LABELS], {}, 1.0),
        ([ONE_CLASS, NO_LABELS], {"single-class": "count"}, 1.0),
    ],
)
def test_the_mean_of_those_that_have_an_imbalance(
    clients: list[Any], parameters: dict[str, Scalar], expected: float
) -> None:
    assert mean_of(clients, parameters) == pytest.approx(expected, abs=1e-8)


def test_all_choose_by_the_mean_and_not_by_their_own() -> None:
    """With equal priors of both models s is 1 - γ / 2, against a threshold of .7.

    By their own γ = 2/3 and 1/3 one asks its local-only model and the other the global one; by the
    mean, a half, both ask the global one.
    """
    clients = {0: client(SKEWED, 0), 1: client(MORE_SKEWED, 1)}
    parameters: dict[str, Scalar] = {"threshold": 0.7}
    alone = make_strategy("fairfal", {"oversample": 1.0, **parameters})
    assert [checked_select(alone, *clients[c]).tolist() for c in clients] == [[3], [0]]
    strategy = made(parameters)
    pools = {c: pool for c, (pool, _) in clients.items()}
    contexts = {c: context for c, (_, context) in clients.items()}
    parts = together(strategy, pools, contexts)
    chosen = [
        checked_select(strategy, pools[c], dataclasses.replace(contexts[c], coordinated=parts[c]))
        for c in clients
    ]
    assert [ids.tolist() for ids in chosen] == [[0], [0]]
    known = make_strategy("fairfal", {"oversample": 1.0, "mean-imbalance": 0.5, **parameters})
    assert [checked_select(known, *clients[c]).tolist() for c in clients] == [[0], [0]]


def test_without_a_federation_it_is_the_client_s_own() -> None:
    pool, context = client(SKEWED, 0)
    own = make_strategy("fairfal", {"oversample": 1.0})
    assert checked_select(made(), pool, context).tolist() == (
        checked_select(own, pool, context).tolist()
    )


def test_the_mean_is_asked_for_once_and_one_of_each_choice_again() -> None:
    facts = FederationFacts({0: 1}, {0: 1}, {0: 4}, 2, 2, seed=0, cycle=1, most_steps=1)
    assert next(made().coordinator(facts)).is_for_the_run
    assert not next(made({"imbalance": "every"}).coordinator(facts)).is_for_the_run


def test_sums_that_cannot_be_a_mean_are_at_most_balanced() -> None:
    """One that says it has an imbalance and does not count itself moves nobody beyond 1."""
    facts = FederationFacts({0: 1}, {0: 1}, {0: 4}, 2, 2, seed=0, cycle=1, most_steps=1)
    coordinator = made().coordinator(facts)
    next(coordinator)
    sums = {"imbalance": np.array([3 * 2**30]), "voters": np.array([2])}
    with pytest.raises(StopIteration) as end:
        coordinator.send(Answers((0,), sums, {0: {}}))
    assert end.value.value[0]["imbalance"].tolist() == [1.0]


def test_what_its_coordinator_does_not_ask_or_decide_is_refused() -> None:
    pool, context = client(SKEWED, 0)
    with pytest.raises(ValueError, match="'assign': allowed is imbalance"):
        made().answer(Question("assign", {}), pool, context, None)
    wrong = Question("decision", {"imbalance": np.array([1.5])})
    with pytest.raises(ValueError, match=r"imbalance is 1\.5; allowed is 0 to 1"):
        made().choose(wrong, pool, context, {})


def test_nothing_of_a_single_client_is_asked_for_a_whole_run() -> None:
    with pytest.raises(ValueError, match="allowed for a whole run are sums"):
        Step("moments", clear={"means": ClearForm((1,), 0, 1)}, is_for_the_run=True)
