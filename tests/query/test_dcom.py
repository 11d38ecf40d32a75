"""DCoM: radii, competence, and picks by hand and against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.pools import context_of
from support.reference_dcom import eager_dcom
from torch import Tensor

from ahfal_app.parameters import Scalar
from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.core.balls import Balls, ball_purity, bisected
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.dcom import Dcom


def select(
    points: Any, labels: list[int], probabilities: Any, budget: int, **parameters: Scalar
) -> list[int]:
    """Return what is taken of the first points; the last ones have the labels."""
    points_PD = torch.as_tensor(np.array(points), dtype=torch.float64)
    points_PD = points_PD[:, None] if points_PD.ndim == 1 else points_PD
    logits_PC = torch.as_tensor(np.array(probabilities), dtype=torch.float64).log()
    size = len(points_PD) - len(labels)
    view = PoolView(
        np.arange(size),
        {
            Signal.LOCAL_EMBEDDINGS: lambda: points_PD[:size],
            Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: points_PD[size:],
            Signal.LOCAL_LOGITS: lambda: logits_PC[:size],
            Signal.LABELLED_LOCAL_LOGITS: lambda: logits_PC[size:],
        },
    )
    counts = np.bincount(labels, minlength=logits_PC.shape[1]).tolist()
    context = context_of(budget, counts, labels_L=np.array(labels, dtype=np.int64))
    chosen = checked_select(make_strategy("dcom", parameters), view, context)
    return [int(i) for i in chosen]


def binary(margins: list[float]) -> list[list[float]]:
    """Return predictions of the class 0 with these margins."""
    return [[(1 + margin) / 2, (1 - margin) / 2] for margin in margins]


class TestCompetence:
    @pytest.mark.parametrize(
        ("covered", "expected"),
        [(0.7, 0.006693), (0.78, 0.268954), (0.8, 0.500023), (0.9, 0.993352), (1.0, 1.0)],
    )
    def test_by_hand(self, covered: float, expected: float) -> None:
        exact = Dcom(Dcom.Parameters(rounding="none")).competence(covered)
        assert exact == pytest.approx(expected, abs=1e-6)
        assert Dcom().competence(covered) == round(expected, 3)

    def test_of_nothing(self) -> None:
        assert Dcom().competence(0.0) == 0.0


class TestRadii:
    @staticmethod
    def of(purity: Callable[[float], float], least: float) -> float:
        def purities(radii_K: Tensor) -> Tensor:
            return torch.tensor([purity(float(radius)) for radius in radii_K], dtype=torch.float64)

        return float(bisected(purities, 1, least, 1.1, 0.05)[0])

    def test_of_pure_and_of_impure_balls(self) -> None:
        # .55, .825, .9625, 1.03125, 1.065625, and from there half of what is left.
        assert self.of(lambda radius: 1.0, 0.4) == pytest.approx(1.0828125)
        # .55, .275, .1375, .06875, .034375.
        assert self.of(lambda radius: 0.0, 0.4) == pytest.approx(0.0171875)

    def test_between(self) -> None:
        # .55 and .825 are pure, .9625 is not, .89375 is, .928125 is not.
        assert self.of(lambda radius: 0.5 if radius > 0.9 else 2 / 3, 0.6) == pytest.approx(
            0.9109375
        )

    def test_a_ball_that_is_exactly_pure_enough_ends_the_search(self) -> None:
        def purity(radius: float) -> float:
            return 0.75 if radius < 0.6 else 0.5

        assert self.of(purity, 0.75) == 0.55
        # .55 is pure, .825, .6875 and .61875 are not, .584375 is.
        assert self.of(purity, 0.74) == pytest.approx(0.6015625)

    def test_of_several_centres(self) -> None:
        """On a line: 0, .2, .5 and .9 of the classes 0, 0, 1, 1; centres at 0 and at .9."""
        points = EmbeddingPoints(torch.tensor([[0.0], [0.2], [0.5], [0.9]]).double())
        balls = Balls(points, torch.tensor([0, 3]), torch.arange(4))
        classes = torch.tensor([0, 0, 1, 1])
        radii = balls.pure_radii(torch.tensor([0, 1]), classes, 0.6, 1.1, 0.05)
        # Around .9, two of three are of class 1 up to .9, where there are two of four.
        torch.testing.assert_close(radii, torch.tensor([0.9109375, 0.9109375]).double())
        assert balls.covered(torch.tensor([0.2, 0.45]).double()).tolist() == [
            True,
            False,
            True,
            True,
        ]
        assert balls.covered(torch.tensor([0.3, 0.3]).double()).tolist() == [
            True,
            True,
            False,
            True,
        ]

    def test_of_an_empty_ball(self) -> None:
        nothing = ball_purity(torch.ones(1, 3), torch.zeros(1, 3).bool(), torch.tensor([0.5]))
        assert nothing.tolist() == [1.0]


class TestPicks:
    def test_without_labels_it_begins_as_prob_cover(self) -> None:
        line, unsure = [0.0, 1, 2, 3, 10], binary([0.5, 0.6, 0.7, 0.8, 0.9])
        named: dict[str, Scalar] = {"normalise": False, "initial-radius": 1.5}
        assert select(line, [], unsure, 3, **named) == [1, 2, 4]

    def test_density_and_doubt_by_hand(self) -> None:
        """Half of each: of six samples one is covered, by the labelled one at 0.

        Its radius is 2.25, as 1.5 is pure. Densities of 10, 11, 12, 20 and 30 are 3, 3, 3, 1 and 1,
        doubts scaled 0, .25, 0, 1 and .5. First .5, .625, .5, .667 and .417: 20. Then doubts
        are 0, .5, 0, 0, 1: .5, .75, .5, 0, .667: 11. Then nothing but 30 is not covered, and at
        last all is covered again.
        """
        chosen = select(
            [10.0, 11, 12, 20, 30, 0],
            [0],
            binary([0.9, 0.7, 0.9, 0.1, 0.5, 0.9]),
            4,
            normalise=False,
            **{"initial-radius": 1.5, "max-radius": 3.0, "resolution": 2.0, "centre": 1 / 6},
        )
        assert chosen == [3, 1, 4, 0]

    def test_where_all_is_covered_the_margin_decides(self) -> None:
        points, margins = [0.1, 0.2, 0.3, 0.4, 0.0], binary([0.8, 0.2, 0.6, 0.4, 1.0 - 1e-6])
        for exhausted in ("again", "id"):
            chosen = select(points, [0], margins, 3, normalise=False, exhausted=exhausted)
            assert chosen == [1, 3, 2]

    def test_covered_and_no_competence(self) -> None:
        """At a coverage of 4 of 5, far below the centre, density alone counts.

        The labelled sample at 1 covers 0, 1 and 2 with a radius of 1.08. When 5 is covered, too,
        ids decide, or 1 is the first of a second layer, in which it covers the most.
        """
        points, margins = [0.0, 1.0, 2.0, 5.0, 1.0], binary([0.9, 0.8, 0.7, 0.6, 0.9])
        named: dict[str, Scalar] = {"normalise": False, "centre": 1.0}
        assert select(points, [0], margins, 2, exhausted="id", **named) == [3, 0]
        assert select(points, [0], margins, 2, exhausted="again", **named) == [3, 1]

    @pytest.mark.parametrize("named", [{}, {"centre": 0.0}, {"steepness": 1.0}], ids=str)
    def test_without_labels_density_alone_counts(self, named: dict[str, Scalar]) -> None:
        """Whatever the curve's competence at a coverage of 0: the model has not seen a label."""
        points, margins = [0.0, 0.4, 0.8, 5.0], binary([0.9, 0.95, 0.9, 0.01])
        assert select(points, [], margins, 2, normalise=False, **named) == [1, 3]

    def test_a_wrongly_predicted_neighbourhood_makes_balls_small(self) -> None:
        """All is predicted to be 0: a sample of class 1 covers itself alone, one of 0 all."""
        points = [0.3, 0.4, 0.5, 0.6, 0.0]
        margins = binary([0.9, 0.8, 0.1, 0.7, 0.9])
        assert select(points, [1], margins, 1, normalise=False) == [0]
        assert select(points, [0], margins, 1, normalise=False) == [2]

    @pytest.mark.parametrize("labelled", [0, 1, 6])
    def test_as_plain_loops_have_it(self, labelled: int) -> None:
        for seed in range(12):
            random = np.random.default_rng(seed)
            points = random.normal(size=(30 + labelled, 3)) * (0.4 + seed / 12)
            probabilities = random.dirichlet(np.ones(3), 30 + labelled)
            labels = random.integers(0, 3, labelled).tolist()
            expected = eager_dcom(points.tolist(), 30, labels, probabilities.tolist(), 12)
            assert select(points, labels, probabilities, 12, normalise=False) == expected

    def test_labels_of_other_samples_are_refused(self) -> None:
        view = PoolView(
            np.arange(3),
            {
                Signal.LOCAL_EMBEDDINGS: lambda: torch.eye(3),
                Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: torch.eye(3)[:2],
                Signal.LOCAL_LOGITS: lambda: torch.zeros(3, 2),
                Signal.LABELLED_LOCAL_LOGITS: lambda: torch.zeros(2, 2),
            },
        )
        context = context_of(1, [1, 0], labels_L=np.array([0]))
        with pytest.raises(ValueError, match="1 labels for 2 labelled samples"):
            checked_select(Dcom(), view, context)
