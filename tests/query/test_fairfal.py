from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fake_models import FakeModels
from support.pools import context_of, log
from torch import Tensor

from ahfal_app.parameters import Scalar
from ahfal_app.query import LocalOnlyTraining, Outputs, PoolView, Signal, checked_select
from ahfal_app.query import make_strategy as make
from ahfal_app.query.core.points import OuterProductPoints
from ahfal_app.query.fairfal import (
    anchored_k_center,
    balanced_prior,
    equal_quotas,
    imbalance,
    prior_divergence,
)

GLOBAL = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LOCAL = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)


class LocalOnly(FakeModels):
    """A local-only model whose outputs are given, for pool and labelled set."""

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        self.trainings.append(training)
        return Outputs(self.logits, self.embeddings)

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        self.trainings.append(training)
        return Outputs(*self.labelled)


def test_priors_by_hand() -> None:
    logits = log([0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6])
    labels = torch.tensor([0, 0, 0, 1])
    prior = balanced_prior(logits, labels)
    torch.testing.assert_close(prior, torch.tensor([0.6, 0.4]).double())
    assert imbalance(prior, labels) == pytest.approx(0.666667, abs=1e-6)
    assert imbalance(prior, labels[:3]) == 1
    assert imbalance(balanced_prior(logits[:0], labels[:0]), labels[:0]) == 1


def test_divergence_by_hand() -> None:
    assert prior_divergence(GLOBAL, LOCAL) == pytest.approx(0.233333, abs=1e-6)
    zero = torch.zeros(2, dtype=torch.float64)
    assert prior_divergence(zero, zero) == 0


@pytest.mark.parametrize(("mean_imbalance", "is_global"), [(0.4, False), (0.2, True)])
def test_the_model_that_is_asked_by_hand(mean_imbalance: float, is_global: bool) -> None:
    """s = 1 - (.233333 + γ) / 2 is .683333 and .783333, against .75."""
    chosen, models = select({"mean-imbalance": mean_imbalance, "diversity-model": "global"})
    # The global model is uncertain of sample 0, the local-only one of sample 3.
    assert chosen == [0 if is_global else 3]
    assert models.trainings[0].stop_accuracy == 0.99
    assert models.trainings[0].decay_after == 37
    assert models.trainings[0].decay_counts_steps


@pytest.mark.parametrize(("model", "expected"), [("global", 0), ("local-only", 3)])
def test_one_model_may_be_asked_always(model: str, expected: int) -> None:
    chosen, _ = select({"model": model, "diversity-model": "global"})
    assert chosen == [expected]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"mean-imbalance": 0.5}, 0),
        ({"mean-imbalance": 0.49}, 3),
        ({"mean-imbalance": 0.5, "diversity-model": "by-imbalance"}, 0),
        ({"mean-imbalance": 0.5, "diversity-model": "global"}, 3),
        # Of labels of one class the client's own γ is 1.
        ({}, 0),
    ],
)
def test_the_model_whose_gradients_differ_by_hand(
    parameters: dict[str, Scalar], expected: int
) -> None:
    """With two classes and equal embeddings, gradients lie on a line.

    They are at 1 - p where class 0 is predicted, with p its probability, and at -p where
    class 1 is; a labelled sample of class 0 is at 1 - p. By the global model samples are at .1,
    .2, .3 and -.4 and the labelled one at .1, so that sample 3 is farthest from it; by the local-
    only one at .05, .3, .4 and .45 and the labelled one at .4, so that it is sample 0. Samples at
    places of the one model would be compared with a label at that of the other: sample 3.
    """
    embeddings_ND, labelled_LD = torch.ones(4, 2), torch.ones(1, 2)
    sources = {
        Signal.GLOBAL_LOGITS: lambda: log([0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]),
        Signal.GLOBAL_EMBEDDINGS: lambda: embeddings_ND,
        Signal.LABELLED_GLOBAL_LOGITS: lambda: log([0.9, 0.1]),
        Signal.LABELLED_GLOBAL_EMBEDDINGS: lambda: labelled_LD,
    }
    local_NC = log([0.95, 0.05], [0.7, 0.3], [0.6, 0.4], [0.55, 0.45])
    models = LocalOnly(local_NC, embeddings_ND, (log([0.6, 0.4]), labelled_LD))
    pool = PoolView(np.arange(4), sources, models)
    strategy = make("fairfal", {"model": "global", **parameters})
    context = context_of(1, [1, 0], labels_L=np.array([0]))
    assert checked_select(strategy, pool, context).tolist() == [expected]


def select(parameters: dict[str, Scalar]) -> tuple[list[int], LocalOnly]:
    """Return what is bought of a pool of one class, with the priors of the test by hand."""
    even, sure = [1 / 3, 1 / 3, 1 / 3], [0.98, 0.01, 0.01]
    labelled = log(GLOBAL.tolist()), log(LOCAL.tolist())
    signals: dict[Signal, Any] = {
        Signal.GLOBAL_LOGITS: log(even, sure, sure, sure),
        Signal.GLOBAL_EMBEDDINGS: torch.ones(4, 2),
        Signal.LABELLED_GLOBAL_LOGITS: labelled[0],
        Signal.LABELLED_GLOBAL_EMBEDDINGS: torch.ones(1, 2),
    }
    models = LocalOnly(
        log(sure, sure, sure, even), torch.ones(4, 2), (labelled[1], torch.ones(1, 2))
    )
    pool = PoolView(np.arange(4), {s: lambda v=v: v for s, v in signals.items()}, models)
    # So few candidates that uncertainty alone decides.
    strategy = make("fairfal", {"oversample": 1.0, **parameters})
    context = context_of(1, [1, 0, 0], labels_L=np.array([0]))
    return checked_select(strategy, pool, context).tolist(), models


class TestQuotas:
    def test_by_hand(self) -> None:
        assert equal_quotas([7, 1, 0, 5], 10) == [5, 1, 0, 4]

    @given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8), share=st.floats(0, 1))
    def test_spend_the_budget_evenly(self, sizes: list[int], share: float) -> None:
        budget = round(share * sum(sizes))
        quotas = equal_quotas(sizes, budget)
        assert sum(quotas) == budget
        assert all(quota <= size for quota, size in zip(quotas, sizes, strict=True))
        # Who has room left has at most two less than whoever has most: one of the remainder, and
        # one of the last turn.
        with_room = [q for q, size in zip(quotas, sizes, strict=True) if q < size]
        assert not with_room or max(quotas) - min(with_room) <= 2


class TestKCenter:
    """Gradient embeddings 0, 1, 4 and 9, by falling score."""

    @staticmethod
    def points(*values: float) -> OuterProductPoints:
        return OuterProductPoints(torch.tensor(values)[:, None], torch.ones(len(values), 1))

    def test_from_labelled_samples_by_hand(self) -> None:
        assert anchored_k_center(self.points(0, 1, 4, 9, 1), 4, 2).tolist() == [3, 2]

    def test_from_the_highest_score_by_hand(self) -> None:
        assert anchored_k_center(self.points(0, 1, 4, 9), 4, 3).tolist() == [0, 3, 2]


class TestClasses:
    """Embeddings at angles around two prototypes, at 0° (class 0) and 90° (class 2)."""

    @staticmethod
    def chosen(degrees: list[float], budget: int, labels: list[int]) -> list[int]:
        def at(angles: list[float]) -> Tensor:
            radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
            return torch.stack([radians.cos(), radians.sin()], dim=1) * 3

        size, labelled = len(degrees), at([0.0, 90.0])[: len(labels)]
        # The lower an id, the less certain; all predictions are class 1.
        logits = torch.stack([torch.tensor([0.0, 1.0 + i, 0.0]) for i in range(size)])
        signals: dict[Signal, Any] = {
            Signal.GLOBAL_LOGITS: logits,
            Signal.GLOBAL_EMBEDDINGS: at(degrees),
            Signal.LABELLED_GLOBAL_LOGITS: torch.zeros(len(labels), 3),
            Signal.LABELLED_GLOBAL_EMBEDDINGS: labelled,
        }
        models = LocalOnly(logits, at(degrees), (torch.zeros(len(labels), 3), labelled))
        pool = PoolView(np.arange(size), {s: lambda v=v: v for s, v in signals.items()}, models)
        strategy = make("fairfal", {"oversample": 1.0, "model": "global"})
        context = context_of(budget, [1, 0, 1], labels_L=np.array(labels, dtype=np.int64))
        return checked_select(strategy, pool, context).tolist()

    def test_classes_are_by_prototypes_and_take_turns(self) -> None:
        # Class 0 has 0, 1, 2, 5 and class 2 has 3, 4; class 1, which is predicted, has none. One
        # each, the remainder and class 1's to the largest: three and one.
        chosen = self.chosen([10, 20, 30, 80, 70, 40], 4, [0, 2])
        assert sorted(chosen) == [0, 1, 2, 3]
        assert chosen[1] == 3

    def test_without_labels_predictions_are_the_classes(self) -> None:
        assert sorted(self.chosen([10, 20, 30, 80, 70, 40], 3, [])) == [0, 1, 2]


def test_labels_must_be_those_of_the_labelled_set() -> None:
    pool = PoolView(
        np.arange(4),
        {
            Signal.GLOBAL_EMBEDDINGS: lambda: torch.ones(4, 2),
            Signal.LABELLED_GLOBAL_EMBEDDINGS: lambda: torch.ones(3, 2),
        },
    )
    with pytest.raises(ValueError, match="1 labels for 3 labelled samples"):
        checked_select(make("fairfal"), pool, context_of(1, [1, 0], labels_L=np.array([0])))
