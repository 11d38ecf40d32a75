from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fake_models import FakeModels
from support.pools import context_of, log

from ahfal_app.parameters import Scalar
from ahfal_app.query import (
    LocalOnlyTraining,
    PoolView,
    Signal,
    checked_select,
    ifal,
    make_strategy,
)
from ahfal_app.query.ifal import (
    Ifal,
    above_otsu,
    inconsistency,
    ordered_distance,
    sorted_distance,
    total_variation,
)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def at(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize("block", [1, 10**6])
def test_votes_by_hand(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A labelled sample of class 0 at 0°; the pool at 10°, 20°, 80° with classes 0, 1, 1."""
    monkeypatch.setattr(ifal, "_BLOCK", block)
    voting = ifal._Voting(torch.tensor([0]), torch.arange(3), 2, 2)
    (shares,) = voting.shares(at(10, 20, 80), 7 * at(0), [torch.tensor([0, 1, 1])])
    torch.testing.assert_close(shares, rows([0.4, 0.6], [0.6, 0.4], [0.5, 0.5]))


def test_models_with_the_same_embeddings_share_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    plain = ifal._Voting.shares

    def counted(
        voting: Any, pool: torch.Tensor, labelled: torch.Tensor, predictions: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        searched.append(len(predictions))
        return plain(voting, pool, labelled, predictions)

    monkeypatch.setattr(ifal._Voting, "shares", counted)
    voting = ifal._Voting(torch.tensor([0]), torch.arange(3), 2, 1)
    first, second, third = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 1]])
    frozen, moved = (at(10, 20, 80), at(0)), (at(10, 70, 80), at(0))
    models = [(*frozen, [first]), (*moved, [first]), (*frozen, [second, third])]
    found = voting.of_models(models)
    assert searched == [3, 1]
    monkeypatch.undo()
    alone = [share for model in models for share in voting.shares(*model)]
    for share, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(share, expected)


def test_more_neighbours_than_samples_are_all_others() -> None:
    voting = ifal._Voting(torch.tensor([0]), torch.arange(3), 2, 250)
    (shares,) = voting.shares(at(10, 20, 80), at(0), [torch.tensor([0, 1, 1])])
    # Of three others each is named by two, and by the labelled one where it is among two.
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3).double())


def test_distances_by_hand() -> None:
    first, second = rows([0.6, 0.3, 0.1]), rows([0.4, 0.4, 0.2])
    assert float(sorted_distance(first, second)) == pytest.approx(0.133333, abs=1e-6)
    first, second = rows([0.7, 0.2, 0.1]), rows([0.1, 0.2, 0.7])
    assert float(sorted_distance(first, second)) == pytest.approx(0)
    assert float(total_variation(first, second)) == pytest.approx(0.6)
    assert float(ordered_distance(first, second)) == pytest.approx(1.2)


def test_inconsistency_by_hand() -> None:
    first, second = torch.tensor([0.1, 0.1]).double(), torch.tensor([0.02, 0.1]).double()
    expected = torch.tensor([0.599700, 0.199980]).double()
    # Of D1 = .1 and D2 = .02: the ratio is .1 / .02001 and not 5.
    torch.testing.assert_close(inconsistency(first, second), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(inconsistency(second, first), expected, rtol=0, atol=1e-5)


class Distilled(FakeModels):
    """A distilled model whose embeddings are given, for pool and labelled set."""

    def __init__(self, pool_ND: torch.Tensor, labelled_LD: torch.Tensor) -> None:
        super().__init__(pool_ND, pool_ND)
        self._both = pool_ND, labelled_LD

    def local_only_embeddings(
        self, training: LocalOnlyTraining
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._both


@dataclass
class Seen:
    """What the models make of a pool: embeddings of pool and labelled set, logits of the pool."""

    global_: tuple[torch.Tensor, torch.Tensor]
    local: tuple[torch.Tensor, torch.Tensor]
    distilled: tuple[torch.Tensor, torch.Tensor]
    global_logits: torch.Tensor
    local_logits: torch.Tensor
    labels: list[int]

    def uncertainties(self, **parameters: Scalar) -> tuple[list[float], list[float]]:
        """Return the strategy's U and U1."""
        sources = {
            Signal.GLOBAL_LOGITS: lambda: self.global_logits,
            Signal.LOCAL_LOGITS: lambda: self.local_logits,
            Signal.GLOBAL_EMBEDDINGS: lambda: self.global_[0],
            Signal.LOCAL_EMBEDDINGS: lambda: self.local[0],
            Signal.LABELLED_GLOBAL_EMBEDDINGS: lambda: self.global_[1],
            Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: self.local[1],
        }
        pool = PoolView(np.arange(len(self.global_logits)), sources, Distilled(*self.distilled))
        strategy = make_strategy("ifal", parameters)
        assert isinstance(strategy, Ifal)
        counts = np.bincount(self.labels, minlength=self.global_logits.shape[1]).tolist()
        context = context_of(1, counts, labels_L=np.array(self.labels, dtype=np.int64))
        whole, first = strategy._uncertainties(pool, context)
        return whole.tolist(), first.tolist()

    def slow_uncertainties(self, distance: str, neighbours: int) -> tuple[list[float], list[float]]:
        """Return U and U1 once more, vote by vote."""
        by_global = self.global_logits.argmax(dim=1).tolist()
        by_local = self.local_logits.argmax(dim=1).tolist()
        classes = self.global_logits.shape[1]

        def votes(embeddings: tuple[torch.Tensor, torch.Tensor], said: list[int]) -> Any:
            pool, labelled = (each.tolist() for each in embeddings)
            table = [[1] * classes for _ in pool]
            voters = [(-1, x, y) for x, y in zip(labelled, self.labels, strict=True)]
            voters += [(n, x, y) for n, (x, y) in enumerate(zip(pool, said, strict=True))]
            for itself, x, y in voters:
                others = [n for n in range(len(pool)) if n != itself]
                others.sort(key=lambda n: -cosine(x, pool[n]))
                for n in others[:neighbours]:
                    table[n][y] += 1
            return [[count / sum(row) for count in row] for row in table]

        q_g, q_l = votes(self.global_, by_global), votes(self.local, by_global)
        q_d, q_ll = votes(self.distilled, by_global), votes(self.local, by_local)
        whole, first = [], []
        for n, logits in enumerate(self.local_logits.tolist()):
            d_1 = slow_distance(distance, q_l[n], q_d[n])
            d_2 = slow_distance(distance, q_g[n], q_d[n])
            shares = [math.exp(z) for z in logits]
            predicted = [share / sum(shares) for share in shares]
            first.append(max(d_2 / (d_1 + 1e-5), d_1 / (d_2 + 1e-5)) * (d_1 + d_2))
            whole.append(first[-1] * slow_distance(distance, q_ll[n], predicted))
        return whole, first


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def slow_distance(name: str, first: list[float], second: list[float]) -> float:
    if name == "sorted":
        first, second = sorted(first), sorted(second)
    if name != "ordered":
        apart = sum(abs(a - b) for a, b in zip(first, second, strict=True))
        return apart / (len(first) if name == "sorted" else 2)
    # What a class has too much of is carried to the next one, and so on.
    carried, way = 0.0, 0.0
    for a, b in zip(first, second, strict=True):
        carried += a - b
        way += abs(carried)
    return way


def test_uncertainties_by_hand() -> None:
    """Three samples, of which each names both others and the label two, by total variation.

    The label is of class 0, the global model says 0, 1, 1 and the local one 1, 0, 1. Of class 0,
    with one vote there from the beginning, q_G has (2/5, 3/5, 2/4), since the label names samples 0
    and 1. By local embeddings it names 1 and 2: q_L has (1/4, 3/5, 3/5), and q_LL, by what the
    local model says, (2/4, 2/5, 3/5). By the distilled model's it names 0 and 2: q_D has (2/5,
    2/4, 3/5). So D1 is (.15, .1, 0) and D2 (0, .1, .1).
    """
    seen = Seen(
        global_=(at(10, 20, 80), at(0)),
        local=(at(80, 10, 20), at(0)),
        distilled=(at(10, 80, 20), at(0)),
        global_logits=log([0.9, 0.1], [0.1, 0.9], [0.2, 0.8]),
        local_logits=log([0.3, 0.7], [0.8, 0.2], [0.1, 0.9]),
        labels=[0],
    )
    first = [0.15 / 1e-5 * 0.15, 0.1 / 0.10001 * 0.2, 0.1 / 1e-5 * 0.1]
    # Of q_LL to .3, .8 and .1.
    whole = [2250 * 0.2, first[1] * 0.4, 1000 * 0.5]
    settings: dict[str, Scalar] = {"distance": "total-variation", "neighbours": 2}
    for found in (seen.uncertainties(**settings), seen.slow_uncertainties("total-variation", 2)):
        assert found[0] == pytest.approx(whole)
        assert found[1] == pytest.approx(first)


@pytest.mark.parametrize("distance", [None, "sorted", "total-variation", "ordered"])
def test_uncertainties_agree_with_counting_vote_by_vote(distance: str | None) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

        seen = Seen(
            global_=(drawn(12, 3), drawn(4, 3)),
            local=(drawn(12, 3), drawn(4, 3)),
            distilled=(drawn(12, 3), drawn(4, 3)),
            global_logits=drawn(12, 4),
            local_logits=drawn(12, 4),
            labels=[0, 3, 1, 1],
        )
        settings: dict[str, Scalar] = {} if distance is None else {"distance": distance}
        whole, first = seen.slow_uncertainties(distance or "sorted", 3)
        found = seen.uncertainties(neighbours=3, **settings)
        assert found[0] == pytest.approx(whole, abs=1e-9)
        assert found[1] == pytest.approx(first, abs=1e-9)


class TestOtsu:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([1, 2, 3, 10, 11], [3, 4]),
            ([0, 0, 0, 1, 1], [3, 4]),
            ([1, 2, 3, 4, 20], [4]),
            ([11, 3, 10, 1, 2], [0, 2]),
            ([5, 5, 5], []),
            ([5], []),
        ],
    )
    def test_by_hand(self, values: list[float], expected: list[int]) -> None:
        assert above_otsu(torch.tensor(values, dtype=torch.float64)).tolist() == expected

    @given(values=st.lists(st.integers(0, 20), min_size=1, max_size=30))
    def test_agrees_with_trying_every_cut(self, values: list[int]) -> None:
        best, cut = 0.0, None
        for t in sorted(set(values))[:-1]:
            low, high = [v for v in values if v <= t], [v for v in values if v > t]
            gap = sum(low) / len(low) - sum(high) / len(high)
            spread = len(low) * len(high) * gap**2
            if spread > best * (1 + 1e-9):
                best, cut = spread, t
        expected = [i for i, v in enumerate(values) if cut is not None and v > cut]
        assert above_otsu(torch.tensor(values, dtype=torch.float64)).tolist() == expected


def select(
    size: int, budget: int, seed: int, same: bool = False, **parameters: Scalar
) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    randn = torch.ones if same else lambda *shape: torch.randn(*shape, generator=generator)
    signals: dict[Signal, Any] = {
        signal: randn(4 if signal.value.startswith("labelled") else size, 3)
        for signal in (
            Signal.GLOBAL_LOGITS,
            Signal.LOCAL_LOGITS,
            Signal.GLOBAL_EMBEDDINGS,
            Signal.LOCAL_EMBEDDINGS,
            Signal.LABELLED_GLOBAL_EMBEDDINGS,
            Signal.LABELLED_LOCAL_EMBEDDINGS,
        )
    }
    models = FakeModels(randn(size, 3), randn(size, 3), (randn(4, 3), randn(4, 3)))
    pool = PoolView(np.arange(size), {s: lambda v=v: v for s, v in signals.items()}, models)
    context = context_of(budget, [2, 1, 1], labels_L=np.array([0, 0, 1, 2]))
    chosen = checked_select(make_strategy("ifal", parameters), pool, context).tolist()
    training = models.trainings[0]
    assert (training.distil_weight, training.distil_temperature, training.patience) == (0.9, 4, 5)
    return [int(i) for i in chosen]


def test_where_all_models_agree_the_order_is_drawn(caplog: pytest.LogCaptureFixture) -> None:
    """The smallest ids would be one class where a client's files are sorted by class."""
    chosen = select(20, 5, 0, same=True)
    assert len(set(chosen)) == 5
    assert chosen != [0, 1, 2, 3, 4]
    assert chosen == select(20, 5, 0, same=True)
    assert "all models see the same in the pool, so the order is random" in caplog.text


def test_of_candidates_that_come_first_the_largest_uncertainty_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However small theirs is against the largest of all."""
    uncertainties = torch.full((12,), 1e-12).double(), torch.full((12,), 1e-6).double()
    uncertainties[0][:6] = torch.tensor([1e4, 9e3, 1e-7, 2e-7, 3e-7, 4e-7]).double()
    uncertainties[1][2:6] = 1.0
    monkeypatch.setattr(ifal.Ifal, "_uncertainties", lambda *_: uncertainties)
    pool = PoolView(np.arange(12), {})
    strategy = make_strategy("ifal", {"shortage": "extend"})
    assert checked_select(strategy, pool, context_of(5, [1, 1])).tolist() == [0, 1, 5, 4, 3]


def test_few_voters_are_drawn_and_all_of_the_pool_may_be_chosen() -> None:
    chosen = [select(60, 30, 0, neighbours=5, voters=number) for number in (1, 20, 10_000)]
    assert len({tuple(each) for each in chosen}) == 3
    assert all(len(set(each)) == 30 for each in chosen)
    assert chosen[1] == select(60, 30, 0, neighbours=5, voters=20)


@pytest.mark.parametrize(("shortage", "expected"), [("restart", [0, 2, 3]), ("extend", [0, 1, 2])])
def test_candidates_that_are_too_few_are_forgotten_or_come_first(
    shortage: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of U sample 0 alone is a candidate, of U1 sample 1 alone."""
    uncertainties = rows([9, 1, 3, 2, 0], [0, 9, 0, 0, 0]).unbind()
    monkeypatch.setattr(ifal.Ifal, "_uncertainties", lambda *_: uncertainties)
    strategy = make_strategy("ifal", {"shortage": shortage})
    pool = PoolView(np.arange(5), {})
    assert checked_select(strategy, pool, context_of(3, [1, 1])).tolist() == expected
