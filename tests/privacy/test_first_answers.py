"""What a client tells once and never again in another way, whatever a server says of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ahfal_app.config import Settings
from ahfal_app.drift import Refusal, Shift, predicted_shift
from ahfal_app.privacy.disclosure import Disclosure
from ahfal_app.privacy.sessions import Topic
from ahfal_app.privacy.store import PrivacyStore


def disclosure(path: Path, rounds: int) -> Disclosure:
    return Disclosure(PrivacyStore(path), Settings(num_clients=4, rounds=rounds), "run", 0)


def test_predictions_of_a_cycle_are_those_of_the_first_call_however_many_rounds_there_are(
    tmp_path: Path,
) -> None:
    first = np.array([60, 7, 3], np.int64)
    assert disclosure(tmp_path / "p", 2).predictions(1, first).tolist() == [60, 7, 3]
    for rounds in range(2, 9):
        told = disclosure(tmp_path / "p", rounds).predictions(1, first + rounds)
        assert told.tolist() == [60, 7, 3]
    assert disclosure(tmp_path / "p", 2).predictions(2, first + 1).tolist() == [61, 8, 4]


def test_windows_are_predicted_by_the_first_model_alone(tmp_path: Path) -> None:
    windows = np.array([[5, 7], [0, 12]], np.int64)
    assert disclosure(tmp_path / "p", 2).drift_windows(3, lambda: windows).tolist() == [
        [5, 7],
        [0, 12],
    ]

    def never() -> np.ndarray:
        raise AssertionError("asked for what is kept")

    assert disclosure(tmp_path / "p", 9).drift_windows(3, never).tolist() == [[5, 7], [0, 12]]


@pytest.mark.parametrize(
    ("reference", "recent", "refusal"),
    [
        ([30, 30], [1, 0], Refusal.FEW_ARRIVALS),
        ([9, 0], [30, 30], Refusal.FEW_ARRIVALS),
        ([0, 0], [30, 30], Refusal.NO_ARRIVALS),
        ([10, 0], [5, 5], None),
    ],
)
def test_of_a_few_samples_nothing_is_told(
    reference: list[int], recent: list[int], refusal: Refusal | None
) -> None:
    found = predicted_shift(reference, recent)
    assert found == refusal if refusal else isinstance(found, Shift)


def test_no_two_sums_share_a_place() -> None:
    places = [
        topic.place(cycle, round_)
        for topic in Topic
        for cycle in range(5)
        for round_ in range(40)
        if round_ == 0 or topic is not Topic.HISTOGRAM
    ]
    assert len(set(places)) == len(places)
