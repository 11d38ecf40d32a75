from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fake_models import FakeModels
from support.pools import context_of

from ahfal_app.parameters import Scalar
from ahfal_app.query import PoolView, Signal, checked_select, ifal, make_strategy
from ahfal_app.query.ifal import (
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
