"""What is equal on paper is equal in the order: the smallest id decides, not rounding."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pools import context_of, pool_of
from torch import Tensor

from ahfal_app.config import Scalar
from ahfal_app.query import Signal, checked_select, make_strategy
from ahfal_app.query.core import points
from ahfal_app.query.core.picking import SAME, falling, first_highest, level, ranked, top_scores
from ahfal_app.query.core.points import EmbeddingPoints, OuterProductPoints
from ahfal_app.query.core.scores import entropy

INFINITE = float("inf")


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestRanked:
    def test_rounding_errors_do_not_rank(self) -> None:
        assert falling(doubles(1.0, 1 + 1e-15, 1 - 1e-15, 2.0)).tolist() == [3, 0, 1, 2]
        assert falling(doubles(0.1 + 0.2, 0.5, 0.3, 0.1 + 0.2)).tolist() == [1, 0, 2, 3]
        assert falling(-doubles(1.0, 1 + 1e-15, 1 - 1e-15, 2.0)).tolist() == [0, 1, 2, 3]

    def test_small_scores_are_told_apart_by_proportion(self) -> None:
        assert falling(doubles(1e-300, 0.0, 2e-300, 1e-20, 0.0)).tolist() == [3, 2, 0, 1, 4]
        assert falling(doubles(1.0, 1 + 1e-8)).tolist() == [1, 0]

    def test_infinite_values(self) -> None:
        values = doubles(1e308, INFINITE, -INFINITE, 1e308, INFINITE, 0.0, -INFINITE)
        assert ranked(values).tolist() == [1, 4, 0, 3, 5, 2, 6]

    def test_first_highest(self) -> None:
        assert first_highest(doubles(0.0, 1 - 1e-15, 1.0, 1 + 1e-15)) == 1
        assert first_highest(doubles(-1.0, -1 + 1e-15)) == 0
        assert first_highest(doubles(0.0, INFINITE, INFINITE)) == 1
        assert first_highest(doubles(-INFINITE, -INFINITE)) == 0
        assert level(-INFINITE) == -INFINITE

    @given(
        st.lists(
            st.tuples(st.integers(-3, 3), st.integers(-2, 2), st.sampled_from([1e-200, 1, 1e200])),
            min_size=1,
            max_size=40,
        )
    )
    def test_agrees_with_grouping_in_plain_loops(self, rows: list[tuple[int, int, float]]) -> None:
        """Whole numbers of some scale, each moved by up to two millionths of a billionth."""
        values = [scale * whole * (1 + ulps * 1e-15) for whole, ulps, scale in rows]
        order = sorted(range(len(values)), key=lambda i: -values[i])
        groups = [[order[0]]]
        for before, after in itertools.pairwise(order):
            larger = max(abs(values[before]), abs(values[after]))
            if values[before] - values[after] > SAME * larger:
                groups.append([])
            groups[-1].append(after)
        expected = [i for group in groups for i in sorted(group)]
        assert ranked(doubles(*values)).tolist() == expected
        ids = np.arange(len(values)) * 3
        top = top_scores(doubles(*values), ids, 5)
        assert top.tolist() == [3 * i for i in expected[:5]]


#: One prediction with its classes in all orders: 120 samples that no score can tell apart.
PERMUTED = torch.tensor(list(itertools.permutations([0.3, 1.7, -2.9, 0.05, 4.1])))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("entropy", {}),
        ("entropy", {"model": "global"}),
        ("least-confidence", {}),
        ("margin", {}),
        ("ahfal", {"balance": "none", "toggle": "hybrid"}),
        ("kafal", {}),
        ("feal", {}),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_samples_that_differ_by_the_order_of_classes_go_by_id(
    name: str, parameters: dict[str, Scalar], scale: float
) -> None:
    pool = pool_of(
        {
            Signal.LOCAL_LOGITS: scale * PERMUTED,
            # Another prediction, in the same orders.
            Signal.GLOBAL_LOGITS: scale * (PERMUTED.square() / 4 - PERMUTED),
            # Similar to nothing, so that nothing is passed over.
            Signal.LOCAL_FEATURE_MAPS: torch.zeros(120, 9),
        }
    )
    strategy = make_strategy(name, parameters)
    assert checked_select(strategy, pool, context_of(60, [7] * 5)).tolist() == list(range(60))


def test_badge_begins_with_the_smallest_id_of_the_largest_gradients() -> None:
    embeddings = torch.tensor(list(itertools.permutations([0.1, 0.7, -0.3, 1.9, 0.2])))
    pool = pool_of({Signal.LOCAL_LOGITS: PERMUTED, Signal.LOCAL_EMBEDDINGS: embeddings})
    for cycle in range(3):
        context = context_of(5, [1] * 5, cycle=cycle)
        assert checked_select(make_strategy("badge"), pool, context)[0] == 0


class TestDistances:
    def test_equally_far_samples_go_by_id(self) -> None:
        """Permuted coordinates are equally far from the origin, whatever their sum's order."""
        rows = torch.tensor(list(itertools.permutations([0.1, 0.7, -0.3, 1.9, 0.2])))
        labelled = torch.zeros(1, 5)
        for first in range(0, 120, 7):
            pool = pool_of(
                {
                    Signal.LOCAL_EMBEDDINGS: rows.roll(first, 0),
                    Signal.LABELLED_LOCAL_EMBEDDINGS: labelled,
                }
            )
            selected = checked_select(make_strategy("core-set"), pool, context_of(1, [1, 1]))
            assert selected.tolist() == [0]

    @pytest.mark.parametrize("rows", [7, 64, 1024])
    @pytest.mark.parametrize("width", [5, 64, 700])
    def test_picks_do_not_depend_on_blocks(
        self, rows: int, width: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of samples that are there twice, in other blocks, the first is picked."""
        monkeypatch.setattr(points, "ROWS", rows)
        half = torch.randn(150, width, generator=torch.Generator().manual_seed(0)) + 3
        pool = pool_of(
            {
                Signal.LOCAL_EMBEDDINGS: torch.cat([half, half.flip(0)]),
                Signal.LABELLED_LOCAL_EMBEDDINGS: half[:9] + 1,
            }
        )
        strategy = make_strategy("core-set")
        selected = checked_select(strategy, pool, context_of(155, [1, 1])).tolist()
        assert max(selected[:150]) == 149
        # Then nothing is left but duplicates.
        assert selected[150:] == [150, 151, 152, 153, 154]

    @given(seed=st.integers(0, 2**32 - 1), gap=st.sampled_from([1e-2, 1e-4, 1e-7, 1e-10, 1e-14]))
    def test_near_points_keep_their_digits(self, seed: int, gap: float) -> None:
        random = np.random.default_rng(seed)
        base = random.normal(size=(1, 9)) + 5
        values = base + gap * random.normal(size=(6, 9))
        near = EmbeddingPoints(torch.tensor(values)).squared_distances(slice(None), slice(None))
        expected = ((values[:, None] - values) ** 2).sum(axis=2)
        np.testing.assert_allclose(near, expected, rtol=1e-9, atol=0)

    @given(
        seed=st.integers(0, 2**32 - 1),
        gap=st.sampled_from([1e-2, 1e-5, 1e-8, 1e-12]),
        opposed=st.booleans(),
    )
    def test_near_outer_products_keep_their_digits(
        self, seed: int, gap: float, opposed: bool
    ) -> None:
        random = np.random.default_rng(seed)
        left = random.normal(size=(1, 4)) + gap * random.normal(size=(5, 4))
        right = random.normal(size=(1, 3)) + gap * random.normal(size=(5, 3))
        if opposed:
            # Both factors turned round give the same product.
            left[::2] *= -1
            right[::2] *= -1
        product = OuterProductPoints(torch.tensor(left), torch.tensor(right))
        near = product.squared_distances(slice(None), torch.arange(5))
        exact = left.astype(np.longdouble)[:, :, None] * right.astype(np.longdouble)[:, None, :]
        expected = ((exact[:, None] - exact) ** 2).sum(axis=(2, 3)).astype(float)
        scale = float(np.abs(exact).max()) ** 2
        # The oracle itself has rounding errors of 1e-19 of the products.
        np.testing.assert_allclose(near, expected, rtol=1e-5, atol=1e-32 * scale)
        assert not near.diagonal().any()

    def test_factors_that_move_against_each_other_cancel(self) -> None:
        """(2a) ⊗ (b / 2) is a ⊗ b, and 1.001 a ⊗ b / 1.001 is so but for rounding."""
        left = torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.001, 2.002]], dtype=torch.float64)
        right = torch.tensor([[3.0, 5.0], [1.5, 2.5], [3 / 1.001, 5 / 1.001]], dtype=torch.float64)
        distances = OuterProductPoints(left, right).squared_distances(slice(None), slice(None))
        assert float(distances.max()) < 1e-28

    def test_pairs_are_computed_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(points, "PAIRED", 8)
        values = torch.full((6, 3), 9.0, dtype=torch.float64)
        values[:, 0] += torch.arange(6) * 1e-9
        distances = EmbeddingPoints(values).squared_distances(slice(1, 5), torch.arange(6))
        expected = (values[1:5, :1] - values[:, 0]).square()
        torch.testing.assert_close(distances, expected, rtol=1e-9, atol=0)


class TestEntropy:
    @pytest.mark.parametrize("gap", [0.0, 1.0, 20.0, 36.0, 37.0, 80.0, 700.0])
    def test_confident_samples_keep_all_digits(self, gap: float) -> None:
        """By p log p, what is below 1e-16 of the likeliest class's term is lost."""
        with localcontext() as digits:
            digits.prec = 400
            weights = [Decimal(1), Decimal(-gap).exp(), Decimal(-gap - 1).exp()]
            shares = [weight / sum(weights) for weight in weights]
            exact = float(-sum(share * share.ln() for share in shares))
        value = float(entropy(torch.tensor([[gap, 0.0, -1.0]], dtype=torch.float64)))
        assert value == pytest.approx(exact, rel=1e-14, abs=0)

    def test_extreme_logits_are_certain(self) -> None:
        logits = torch.tensor([[1e308, -1e308, 0.0], [3e38, -3e38, 0.0]], dtype=torch.float64)
        assert entropy(logits).tolist() == [0.0, 0.0]
        assert float(entropy(torch.full((1, 4), 1e30))) == pytest.approx(math.log(4))
