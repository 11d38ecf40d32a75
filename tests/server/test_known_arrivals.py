"""What a simulation's server tells of arrivals: counts, and how near the wanted mix they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from ahfal_app.arrivals import Amounts, ArrivalOrder, Arrivals, ClientArrivals, Stock
from ahfal_app.config import parse_settings
from ahfal_app.server.arrivals import KnownArrivals, SimulatedArrivals

#: Each client's samples: their classes, and the cycles that they come in.
CLASSES = ((0, 0, 1, 1, 1, 2, 0, 2), (2, 2, 2, 1))
CYCLES = ((0, 0, 0, 1, 1, 1, 1, -1), (0, 1, 2, -1))


class Halves(ArrivalOrder):
    """Wants half of class 0 and half of class 1, and in the second cycle class 2 alone."""

    name: ClassVar[str] = "halves"

    def arrival_cycles(self, stock: Stock, amounts: Amounts) -> NDArray[np.int64]:
        return np.zeros(len(stock.classes_N), np.int64)

    def wanted_mix(self, stock: Stock) -> NDArray[np.float64]:
        return np.array([[0.5, 0.5, 0], [0, 0, 1], [0.5, 0.5, 0]])


class Anything(Halves):
    """Wants nothing."""

    def wanted_mix(self, stock: Stock) -> None:  # type: ignore[override]
        return None


def _simulated(order: ArrivalOrder, folder: Path) -> SimulatedArrivals:
    clients, start = [], 0
    for client, (classes, cycles) in enumerate(zip(CLASSES, CYCLES, strict=True)):
        stock = Stock(0, client, np.array(classes), 3, 3)
        rows = np.arange(start, start + len(classes))
        clients.append(ClientArrivals(stock, rows, np.array(cycles), memory=1))
        start += len(classes)
    train = SimpleNamespace(labels_N=np.concatenate([np.array(each) for each in CLASSES]))
    loaded: Any = SimpleNamespace(num_classes=3, dataset=SimpleNamespace(train=train))
    settings = parse_settings({"arrivals": "count", "arrival-start": 1, "arrival-rate": 1})
    return SimulatedArrivals(settings, loaded, Arrivals(order, tuple(clients)), folder)


def test_how_far_what_came_is_from_what_was_wanted(tmp_path: Path) -> None:
    simulated = _simulated(Halves(), tmp_path)
    # Two and one of (½, ½, 0) is off by 1/6, one of class 2 by 1: three samples and one.
    assert simulated.drift_from_wanted(0) == pytest.approx((3 * (1 / 6) + 1 * 1) / 4)
    # One of four is of class 2, and one of one.
    assert simulated.drift_from_wanted(1) == pytest.approx((4 * 0.75 + 1 * 0) / 5)
    # Nothing comes for the first client, which weighs nothing.
    assert simulated.drift_from_wanted(2) == pytest.approx(1)
    assert _simulated(Anything(), tmp_path).drift_from_wanted(0) is None


def test_counts_have_what_has_arrived_and_nothing_of_the_future(tmp_path: Path) -> None:
    known = KnownArrivals(np.array([9, 9, 9]))
    assert known.class_counts(0).tolist() == [9, 9, 9]
    simulated = _simulated(Halves(), tmp_path)
    known.joined(simulated)
    assert [known.class_counts(cycle).tolist() for cycle in range(3)] == [
        [2, 1, 1],
        [3, 3, 3],
        [3, 3, 4],
    ]
    assert [simulated.new_class_counts(cycle).tolist() for cycle in range(3)] == [
        [2, 1, 1],
        [1, 2, 2],
        [0, 0, 1],
    ]
    assert simulated.unseen() == 2
    assert [known.arrived(0, 99, cycle) for cycle in range(3)] == [3, 7, 7]
