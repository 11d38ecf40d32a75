from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.pools import context_of, log

from ahfal_app.parameters import Scalar
from ahfal_app.query import PoolView, Signal, checked_select, make_strategy
from ahfal_app.query.uncertainty_herding import (
    TEMPERATURES,
    UncertaintyHerding,
    calibrated_temperature,
    calibration_error,
    smallest_distance,
)


def select(
    line: Any,
    labelled: Any,
    logits: Any,
    budget: int,
    labels: Any = (),
    labelled_logits: Any = None,
    **parameters: Scalar,
) -> list[int]:
    if labelled_logits is None:
        labelled_logits = torch.zeros(len(labelled), logits.shape[1])
    pool_ND = torch.tensor(line, dtype=torch.float64)[:, None]
    labelled_LD = torch.tensor(labelled, dtype=torch.float64).reshape(-1, 1)
    view = PoolView(
        np.arange(len(pool_ND)),
        {
            Signal.LOCAL_EMBEDDINGS: lambda: pool_ND,
            Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: labelled_LD,
            Signal.LOCAL_LOGITS: lambda: logits,
            Signal.LABELLED_LOCAL_LOGITS: lambda: labelled_logits,
        },
    )
    strategy = make_strategy("uncertainty-herding", {"normalise": False, **parameters})
    context = context_of(budget, [1] * logits.shape[1], labels_L=np.array(labels, dtype=np.int64))
    return [int(i) for i in checked_select(strategy, view, context)]


def logits_with_margins(*margins: float) -> torch.Tensor:
    """Return logits of two classes whose probabilities differ by so much."""
    return log(*([(1 + m) / 2, (1 - m) / 2] for m in margins))


def test_uncertainty_decides_where_coverage_would_not() -> None:
    # Margins of .1 and .8 are uncertainties of .9 and .2.
    logits = logits_with_margins(0.1, 0.8)
    assert select([1, 3], [0], logits, 1) == [0]
    assert select([1, 3], [0], logits_with_margins(0.5, 0.5), 1) == [1]


def test_without_labels_it_is_max_herding() -> None:
    line = np.random.default_rng(0).uniform(0, 5, 30).tolist()
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    pool_ND = torch.tensor(line, dtype=torch.float64)[:, None]
    view = PoolView(
        np.arange(30),
        {
            Signal.LOCAL_EMBEDDINGS: lambda: pool_ND,
            Signal.LABELLED_LOCAL_EMBEDDINGS: lambda: pool_ND[:0],
        },
    )
    herding = make_strategy("max-herding", {"normalise": False})
    expected = checked_select(herding, view, context_of(8, [0, 0, 0])).tolist()
    assert select(line, [], logits, 8) == expected


@pytest.mark.parametrize(
    ("uncertainty", "expected"), [("margin", 1), ("least-confidence", 0), ("entropy", 0)]
)
def test_uncertainties(uncertainty: str, expected: int) -> None:
    """Sample 0 has three likely classes, sample 1 two; both are far from all others."""
    logits = log([0.4, 0.3, 0.3], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0])
    chosen = select([100, 200, 300], [0, 1], logits, 1, [0, 1], uncertainty=uncertainty)
    assert chosen == [expected]


def test_radius_is_the_smallest_distance_of_labelled_samples() -> None:
    points = torch.tensor([[0.0], [3.0], [3.0], [4.5]])
    assert smallest_distance(points) == pytest.approx(1.5)
    assert smallest_distance(points[1:3]) is None
    assert smallest_distance(points[:1]) is None
    assert smallest_distance(points[:0]) is None


def test_radius_decides_how_much_neighbours_count() -> None:
    """Three near samples, or a single one that is a little more uncertain."""
    line, logits = [10, 10.1, 10.2, 20], logits_with_margins(0.5, 0.5, 0.5, 0.4)
    assert select(line, [0, 0.01], logits, 1, [0, 1]) == [3]
    assert select(line, [0, 5], logits, 1, [0, 1]) == [2]
    fixed: dict[str, Scalar] = {"radius": "fixed", "radius-fixed": 5.0}
    assert select(line, [0, 0.01], logits, 1, [0, 1], **fixed) == [2]
    # Without two different labelled samples the fixed one stands in.
    fallback: dict[str, Scalar] = {"radius-fixed": 0.01}
    assert select(line, [0, 0], logits, 1, [0, 1], **fallback) == [3]


def test_calibration_error_by_hand() -> None:
    """Bins of (0, 1/2] and (1/2, 1]: confidences .5 (right), .8 (wrong) and .9 (right)."""
    logits = log([0.5, 0.5], [0.8, 0.2], [0.1, 0.9])
    error = calibration_error(logits, torch.tensor([0, 1, 1]))
    # |1 - .5| and |(0 - .8) + (1 - .9)|, over 3.
    assert error == pytest.approx((0.5 + 0.7) / 3)


def test_calibrated_temperature_makes_confidence_what_it_should_be() -> None:
    """Four of five are right: the confidence should be .8, as it is at temperature 2."""
    sure = 2 * math.log(4)
    logits = torch.tensor([[sure, 0.0]] * 5)
    labels = torch.tensor([0, 0, 0, 0, 1])
    assert calibrated_temperature(logits, labels) == 2.0
    assert calibrated_temperature(logits, torch.zeros(5, dtype=torch.int64)) == TEMPERATURES[0]


def test_calibration_is_on_the_clients_own_labels() -> None:
    """Labelled logits say nothing, so that any temperature is as good: the lowest, 1."""
    line, logits = [10.0, 20.0, 30.0], logits_with_margins(0.2, 0.1, 0.3)
    plain = select(line, [0, 1], logits, 2, [0, 1])
    assert plain == select(line, [0, 1], logits, 2, [0, 1], calibration="labelled") == [1, 0]


@pytest.mark.parametrize(("calibration", "expected"), [("none", 2), ("labelled", 0)])
def test_calibration_decides_by_hand(calibration: str, expected: int) -> None:
    """Two equal samples with odds of 16 to 1, or a single one with 4 to 1.

    Uncertainties are twice the smaller probability: 4/17 for both together, against 2/5. On labels
    of which four of five are right, at odds of 16 to 1, the temperature is 2, which makes the odds
    4 and 2 to 1: 4/5 against 2/3.
    """
    logits = log([16 / 17, 1 / 17], [16 / 17, 1 / 17], [4 / 5, 1 / 5])
    labelled_logits = log(*[[16 / 17, 1 / 17]] * 5)
    chosen = select(
        [10, 10, 20], [0] * 5, logits, 1, [0, 0, 0, 0, 1], labelled_logits, calibration=calibration
    )
    assert chosen == [expected]


def test_probabilities_are_not_calibrated_by_default() -> None:
    strategy = make_strategy("uncertainty-herding")
    assert isinstance(strategy, UncertaintyHerding)
    assert strategy.parameters.calibration == "none"
